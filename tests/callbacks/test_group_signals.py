"""Signals to a whole process group, repeated, while loader workers run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks processes"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_signal_to_the_group_saves_and_stops_and_the_resumed_run_has_the_same_bits(tmp_path, context):
    command = [sys.executable, str(Path(__file__).with_name("group.py")), str(tmp_path), context]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"wrong": []}
    assert "DataLoader worker" not in result.stderr
