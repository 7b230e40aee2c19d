"""Numbers and times in few characters, and the layout of the table."""

import pytest
from fit_callbacks.numbers import clock, short
from fit_callbacks.table import Row, Table


@pytest.mark.parametrize(
    ("value", "wide", "narrow"),
    [
        (0.0, "0", "0"),
        (1.0, "1.000", "1.000"),
        (0.98765, "0.9877", "0.9877"),
        (12345.6, "12346", "12346"),
        (-23000.0, "-23000", "-23000"),
        (1234567.0, "1.235e+06", "1.23e6"),
        (1.2345e-5, "1.234e-05", "1.2e-5"),
        (0.00012345, "0.0001234", "1.2e-4"),
        (-1.2345e-5, "-1.23e-05", "-1e-5"),
        (float("nan"), "nan", "nan"),
        (float("-inf"), "-inf", "-inf"),
    ],
)
def test_a_number_keeps_what_fits(value, wide, narrow):
    assert (short(value), short(value, 6)) == (wide, narrow)


def test_a_number_never_exceeds_its_width():
    for exponent in range(-300, 301, 3):
        for value in (1.2345, -9.99996, 5.0):
            assert len(short(value * 10.0**exponent)) <= 9
            assert len(short(value * 10.0**exponent, 7)) <= 7


def test_clock():
    times = [0.04, 9.96, 59.4, 59.6, 125, 3725, 360000]
    assert [clock(time) for time in times] == ["0.0s", "10.0s", "59.4s", "1:00", "2:05", "1:02:05", "100:00:00"]
    assert clock(16.4, 0) == "16s"


def row(**results):
    results = {name.replace("_", "/"): value for name, value in results.items()}
    return Row("3/15", results, results, lr=0.02, seconds=1.1, left=15.6, rate=36279.4, is_best=True)


def test_the_layout():
    results = {"train_loss": 1.0554, "train_Acc@1": 0.5825, "val_loss": 0.47241, "val_Acc@1": 0.84}
    assert Table().lines(row(**results), 79) == [
        "       ----- train ------  ------ val -------",
        "epoch      loss     Acc@1      loss     Acc@1      lr    time    left",
        " 3/15     1.055    0.5825    0.4724    0.8400    0.02    1.1s     16s *",
    ]
    assert Table().lines(row(**results), 30) == [
        "epoch 3/15  lr 0.02",
        "time 1.1s  left 16s *",
        "  train  loss 1.055",
        "         Acc@1 0.5825",
        "  val    loss 0.4724",
        "         Acc@1 0.8400",
    ]
