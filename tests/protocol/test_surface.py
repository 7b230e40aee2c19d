"""The protocol is what surface.txt says."""

from pathlib import Path

from surface import surface


def test_the_code_promises_what_surface_txt_says():
    written = Path(__file__).with_name("surface.txt").read_text()
    assert surface() == written, "the protocol changed: see the docstring of surface.py for what belongs to that"
