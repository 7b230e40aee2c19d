"""Real kills, real signals, a disk that is really full: a run is never lost, and ends with the same bits."""

import sys

import crash
import pytest
from processes import in_a_process

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks processes"),
    pytest.mark.timeout(280),
]


def scenario(name, folder):
    (folder / "runs").mkdir() if name not in ("killed_while_writing", "second_signal") else None
    return in_a_process(crash.run, getattr(crash, name), folder / "runs")


def test_killed_at_every_step_the_run_ends_with_the_same_bits(tmp_path):
    assert scenario("killed_at_every_step", tmp_path)["wrong"] == []


def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(tmp_path):
    result = scenario("killed_while_writing", tmp_path)
    assert result["partial"] > 0  # some kills came while a file was being written
    assert result["steps"] == sorted(result["steps"])  # and a resume never fell back behind what was there
    assert result["steps"][-1] > 0


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    result = scenario("disk_full", tmp_path)
    assert result["status"] == 0
    assert result["error"].startswith("CheckpointError: cannot save a checkpoint in ")
    assert "It needs 25.2 MB, " in result["error"]
    assert "MB are free. The checkpoints before it are intact" in result["error"]
    assert result["intact"]
    assert result["left"] == ["digest", "error", "log.csv", "previous-1"]


def test_signals_save_and_stop(tmp_path):
    statuses = {"SIGTERM": 143, "SIGINT": -2, "SIGUSR1": 138, "SIGHUP": 129}
    for case, (status, steps, again, same) in scenario("signals", tmp_path).items():
        name, place = case.split()
        assert status == statuses[name], case
        assert steps == {"training": 4, "saving": 4, "validation": 6}[place], case
        assert (again, same) == (0, True), case


def test_a_ctrl_c_that_is_repeated_later_ends_at_once_and_a_second_sigterm_does_not(tmp_path):
    assert scenario("second_signal", tmp_path) == {"status": 130, "first": True, "second": False}


def test_two_processes_agree_on_the_step_of_a_stop(tmp_path):
    result = scenario("ranks", tmp_path)
    assert result["gold"] == [0, 0]
    assert result["asked"] == result["validating"] == [143, 143]
    assert result["stopped_at"] == 8  # asked in the seventh batch, told to each other at its end, read at the next
    assert result["validated_at"] == 10  # stopped in validation, though one process had batches left
    assert result["resumed"] == [[0, 0], [0, 0]]
    assert (result["killed"], result["after"]) == (-9, [0, 0])
    assert result["same"] == [True, True, True]
