"""Mixed batches: inputs and targets are mixed by the same shares, and the loss is that of the mixture."""

import pytest
import torch
from fit_callbacks import Cutmix, Mixup, SegmCutmix
from fit_core import Callback
from scene import Watch, accuracy, batches, make
from torch import nn
from torch.nn.functional import cross_entropy, one_hot


def images(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, 9, 7, generator=generator), torch.randint(3, (n,), generator=generator)


def mixed(callback, pairs, hook="on_batch_end", model=None):
    seen = Watch(hook, lambda state: (state.is_train, state.input, state.target, state.loss, state.output))
    model = model or nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    model(pairs[0][0])
    runner = make(callback, seen, model=model, metrics=[accuracy])
    history = runner.fit(pairs, val_loader=pairs)
    return seen.seen, history[0]


def test_mixup_mixes_each_sample_with_one_other_by_one_share():
    x = torch.eye(8)  # so that a mixed row shows which samples are in it
    y = torch.arange(8)
    (_, input, target, loss, output), *_ = mixed(Mixup(8, alpha=0.4), [(x, y)], model=nn.Linear(8, 8))[0]
    torch.testing.assert_close(input, target)  # an eye and its classes are mixed alike
    torch.testing.assert_close(target.sum(1), torch.ones(8))
    shares = input.diagonal()
    alone = shares > 1 - 1e-6
    assert shares[~alone].unique().numel() == 1
    assert ((input > 0).sum(1) <= 2).all()
    lam = float(shares[~alone][0])
    other = (input - lam * torch.eye(8)).argmax(1)
    expected = lam * cross_entropy(output, y) + (1 - lam) * cross_entropy(output, other)
    torch.testing.assert_close(loss, expected)


def test_mixups_share_is_drawn_from_beta():
    torch.manual_seed(0)
    data = [(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))] * 4000
    seen = Watch("on_batch_begin", lambda state: float(state.input.max()))
    runner = make(Mixup(alpha=2.0), seen, model=nn.Linear(1, 1))
    runner.state.criterion = nn.BCEWithLogitsLoss()
    runner.fit(data)
    shares = torch.tensor([value for value in seen.seen if value < 1])
    # the larger of lam and 1 - lam, for lam ~ Beta(2, 2), has mean 11/16
    assert float(shares.mean()) == pytest.approx(11 / 16, abs=0.01)


def test_cutmix_pastes_a_box_and_shares_targets_by_its_area():
    x, y = images()
    torch.manual_seed(3)
    for _ in range(20):
        (_, input, target, _, _), *_ = mixed(Cutmix(3), [(x, y)])[0]
        foreign = (input != x).any(1)
        for sample in range(len(x)):
            if not foreign[sample].any():
                continue
            rows, columns = foreign[sample].any(1).nonzero().flatten(), foreign[sample].any(0).nonzero().flatten()
            box = foreign[sample][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all()
            share = box.numel() / 63
            donor = [
                k for k in range(len(x)) if torch.equal(x[k, :, foreign[sample]], input[sample, :, foreign[sample]])
            ]
            expected = (1 - share) * one_hot(y[sample], 3) + share * one_hot(y[donor[0]], 3)
            torch.testing.assert_close(target[sample], expected.float())


def test_segmentation_cuts_the_mask_at_the_same_place():
    x = torch.rand(6, 1, 9, 7)
    y = (x[:, 0] * 3).long()
    seen, _ = mixed(SegmCutmix(), [(x, y)] * 4, model=nn.Conv2d(1, 3, 1))
    for is_train, input, target, _, _ in seen:
        assert torch.equal(target, (input[:, 0] * 3).long())
        assert is_train or torch.equal(input, x)
    assert any(not torch.equal(input, x) for is_train, input, *_ in seen if is_train)


@pytest.mark.parametrize("make_callback", [Mixup, Cutmix])
def test_validation_is_left_alone_and_metrics_count_the_larger_share(make_callback):
    x, y = images()
    seen, row = mixed(make_callback(3), [(x, y)] * 3)
    right = total = 0
    for is_train, input, target, _, output in seen:
        if is_train:
            right, total = right + int((output.argmax(1) == target.argmax(1)).sum()), total + len(output)
        else:
            assert input is x
            assert target is y
    assert row["train/accuracy"] == pytest.approx(right / total, rel=1e-12)


def test_a_share_of_batches_is_mixed():
    torch.manual_seed(0)
    seen = Watch("on_batch_begin", lambda state: state.input is not None and bool((state.input != before[0]).any()))
    before = []

    class Before(Callback):
        def on_batch_begin(self, state):
            before[:] = [state.input]

    make(Before(), Mixup(3, p=0.3), seen).fit(batches((8,) * 300))
    assert 0.2 < sum(seen.seen) / 300 < 0.4


def test_both_after_each_other_keep_targets_that_sum_to_one():
    x, y = images()
    seen = Watch("on_batch_end", lambda state: state.target)
    make(Mixup(3), Cutmix(3), seen, model=nn.Sequential(nn.Flatten(), nn.Linear(126, 3))).fit([(x, y)] * 5)
    for target in seen.seen:
        torch.testing.assert_close(target.sum(1), torch.ones(6))


def test_what_cannot_be_mixed_is_refused():
    x, y = images()
    for callback, data, message in (
        (Mixup(), (x, y), r"class indices, got \(6,\) of torch.int64. Pass num_classes"),
        (Cutmix(3), (x.flatten(1), y), r"images \(N, C, H, W\), got input \(6, 126\)"),
        (SegmCutmix(), (x, y), "expected masks of the images' height and width"),
    ):
        with pytest.raises(ValueError, match=message):
            make(callback, model=nn.Sequential(nn.Flatten(), nn.Linear(126, 3))).fit([data])
    with pytest.raises(TypeError, match="Mixup expected the input to be a tensor, got dict"):
        make(Mixup(3)).fit([({"x": x}, y)])
    with pytest.raises(ValueError, match="expected alpha to be above 0, got 0"):
        Mixup(alpha=0)
    with pytest.raises(ValueError, match="expected p to be 0 or more and at most 1, got 2"):
        Cutmix(p=2)
