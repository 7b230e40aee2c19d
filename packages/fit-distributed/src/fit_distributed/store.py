"""Find the processes of the same attempt in the store of elastic, which still has the keys of earlier attempts."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its __all__

__all__ = ["agree"]


def agree(rank: int, world_size: int, timeout: float) -> PrefixStore:
    """Return a part of elastic's store that only the processes of this attempt use.

    The number of the attempt does not do as its name: torchrun counts on each machine, and only failures there. So
    rank 0 draws a name, and answers the others. Each asks under a name of its own, which earlier attempts do not have.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*address, timeout=timedelta(seconds=timeout))
    own = uuid.uuid4().hex
    if rank:
        store.set(f"fit/ask/{rank}", own)
        attempt = store.get(f"fit/answer/{own}").decode()
        store.set(f"fit/{attempt}/{rank}", "")
        return PrefixStore(attempt, store)
    deadline = time.monotonic() + timeout
    others = list(range(1, world_size))
    while others := [number for number in others if not store.check([f"fit/{own}/{number}"])]:
        for number in others:
            if store.check([f"fit/ask/{number}"]):  # Possibly an earlier attempt's. Then nobody reads the answer.
                store.set(f"fit/answer/{store.get(f'fit/ask/{number}').decode()}", own)
        if time.monotonic() > deadline:
            raise DistStoreError(f"timed out waiting for rank {', '.join(map(str, others))}")
        time.sleep(0.01)
    return PrefixStore(own, store)
