"""The value of a metric over batches, and exact comparison."""

import torch


def value(metric, *batches):
    for output, target in batches:
        metric.update(output, target)
    return metric.compute()


def number(metric, *batches):
    return float(value(metric, *batches))


def same(value, expected):
    torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
