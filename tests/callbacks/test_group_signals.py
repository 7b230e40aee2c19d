"""Signals to a whole process group, repeated, while loader workers run."""

import sys

import crash
import group
import pytest
from processes import in_a_process

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks processes"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_signal_to_the_group_saves_and_stops_and_the_resumed_run_has_the_same_bits(tmp_path, context):
    wrong, errors = in_a_process(crash.run, group.signals, tmp_path, context)
    assert wrong == [], errors
    assert "DataLoader worker" not in errors
