"""The processes of an attempt find each other in a store that has the keys of earlier attempts."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fit_distributed.store import agree
from torch.distributed import DistStoreError, TCPStore

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def store(monkeypatch):
    """The store of torchrun, which lives as long as the run."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def attempt(size, timeout=60):
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: agree(rank, size, timeout), range(size)))


def test_an_attempt_does_not_see_the_keys_of_another(store):
    for size in (2, 3, 1, 2):
        parts = attempt(size)
        assert not any(part.check(["address of rank 0"]) for part in parts)
        parts[0].set("address of rank 0", str(size))
        assert {part.get("address of rank 0") for part in parts} == {str(size).encode()}


def test_a_process_that_was_killed_while_it_asked_does_not_count(store):
    with pytest.raises(DistStoreError):
        agree(1, 2, 0.5)  # its rank 0 did not get so far
    with pytest.raises(DistStoreError, match="timed out waiting for rank 1"):
        agree(0, 2, 0.5)  # answers that question, which nobody asks any more
    first, second = attempt(2)
    first.set("name", "this attempt")
    assert second.get("name") == b"this attempt"
