"""One run of the chaos campaign: killed, its newest file damaged, disturbed again, and yet the same in the end."""

import subprocess
import sys
from pathlib import Path

import pytest
from whole import whole

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"

if not CHAOS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


@whole
@pytest.mark.timeout(600)
def test_a_run_with_faults_ends_with_the_same_bits():
    # With this seed: fp16, two workers, kill -9 after 9 batches, a flipped bit in the newest checkpoint, another fault.
    command = [sys.executable, str(CHAOS), "--runs", "1", "--seed", "84310"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("0 lost, 0 differing\n"), ended.stdout + ended.stderr
    assert ended.returncode == 0
