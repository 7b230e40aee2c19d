"""Test both in two processes, which are started once."""

import test_calibration
import test_milestones
from fit_core.testing import check_measures, check_ranks, in_two_processes, measure_on_rank, train_on_rank


def on_a_rank(rank, folder):
    return {
        "milestones": train_on_rank(test_milestones.CASE, rank, folder),
        "calibration": measure_on_rank(test_calibration.CASE, rank),
    }


def test_two_processes(tmp_path):
    first, second = in_two_processes(on_a_rank, tmp_path)
    check_ranks(first["milestones"], second["milestones"])
    assert "train/loss has reached 0.5" in first["milestones"]["printed"]
    check_measures(test_calibration.CASE, first["calibration"], second["calibration"])
