"""Helpers of hand-written loops."""

import torch


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def assert_same_weights(model, by_hand):
    for name, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def mean(values, weights):
    return sum(float(value.detach()) * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
