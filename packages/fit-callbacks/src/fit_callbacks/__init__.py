"""Callbacks that let one see, steer and record a run of fit_core.Runner."""
