"""Releases of the four packages, each on its own: what the workflows run, and what anybody can run here.

``hatch run release:COMMAND`` at the root of the repository; ``hatch run release:help`` lists the commands.
"""
