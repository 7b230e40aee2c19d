"""What docs/writing shows keeps the protocol: its callback and its metric pass the checks that the pages name."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "protocol"))

from conformance import (  # noqa: E402  # it stands with the tests of the protocol
    CALLBACK_CHECKS,
    CallbackCase,
    check_ranks,
    in_two_processes,
    train_on_rank,
)


def names_of(page):
    """What the code of a page has defined when it has run."""
    text, names = (ROOT / "docs" / "writing" / page).read_text(), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


LossSpikes = names_of("callback.md")["LossSpikes"]
CALLBACK = CallbackCase(lambda folder: [LossSpikes(1.01)])


@pytest.mark.parametrize("check", CALLBACK_CHECKS)
def test_the_callback_keeps_the_protocol(check, tmp_path):
    check(CALLBACK, tmp_path)


def on_a_rank(rank, folder):
    return {"callback": train_on_rank(CALLBACK, rank, folder)}


def test_two_processes(tmp_path):
    one, other = in_two_processes(on_a_rank, tmp_path)
    check_ranks(one["callback"], other["callback"])
