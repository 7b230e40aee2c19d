"""Exchange tensors of different lengths between processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["gather_rows"]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in the order of their ranks.

    Args:
        rows: `(n, ...)`. The number n may differ between processes and may be 0. The other sizes and the dtype are
            the same on all.
    """
    length = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(length) for _ in range(distributed.get_world_size())]
    distributed.all_gather(lengths, length)
    counts = [int(length) for length in lengths]
    # all_gather needs equal shapes: pad to the longest, and remove the padding afterwards.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    return torch.cat([block[:count] for block, count in zip(gathered, counts, strict=True)])
