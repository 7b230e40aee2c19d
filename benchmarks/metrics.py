"""Compare the time of an update with torchmetrics' (validate_args=False): python benchmarks/metrics.py [NAME].

Both update with the same batch in turns, in blocks of equal length, so that other load on the machine affects both
alike. A ratio is the median over the blocks of ours / theirs. Below 1 fit-metrics is faster. With NAME only the rows
that contain it are measured. Needs torchmetrics.
"""

import statistics
import sys
import time

import torch
import torchmetrics.classification as classes
import torchmetrics.image as images
import torchmetrics.regression as numbers
from fit_metrics import (
    AUROC,
    F1,
    PSNR,
    R2,
    SSIM,
    Accuracy,
    ConfusionMatrix,
    Jaccard,
    MeanAbsoluteError,
    MeanSquaredError,
)

BLOCKS, SECONDS = 15, 0.05


class Both:
    """Two metrics, one after the other."""

    def __init__(self, *metrics):
        self.metrics = metrics

    def to(self, device):
        for metric in self.metrics:
            metric.to(device)
        return self

    def update(self, output, target):
        for metric in self.metrics:
            metric.update(output, target)

    def reset(self):
        for metric in self.metrics:
            metric.reset()


class Flat:
    """A metric of torchmetrics, which wants the classes in dimension 1."""

    def __init__(self, metric):
        self.metric = metric

    def to(self, device):
        self.metric.to(device)
        return self

    def update(self, output, target):
        self.metric.update(output.flatten(0, 1), target.flatten())

    def reset(self):
        self.metric.reset()


def two():
    """Return the two metrics that Accuracy(1, 5) replaces."""
    return Both(Accuracy(1), Accuracy(5))


class TopK:
    """One topk, whose result is not used."""

    def to(self, device):
        return self

    def update(self, output, target):
        output.topk(5, 1)

    def reset(self):
        pass


def cases():
    """Yield name, ours, theirs, output and target."""
    torch.manual_seed(0)
    quick = {"validate_args": False}
    top = {k: lambda c, k=k: classes.MulticlassAccuracy(c, top_k=k, average="micro", **quick) for k in (1, 5)}
    for n, c in (256, 10), (256, 1000):
        logits, target = torch.randn(n, c), torch.randint(c, (n,))
        shape = f"({n}, {c})"
        yield f"Accuracy(1) {shape}", Accuracy(1), top[1](c), logits, target
        yield f"Accuracy(5) {shape}", Accuracy(5), top[5](c), logits, target
        yield f"Accuracy(1, 5) {shape}", Accuracy(1, 5), Both(top[1](c), top[5](c)), logits, target
        yield f"    against Accuracy(1), Accuracy(5) {shape}", Accuracy(1, 5), two(), logits, target
        yield f"    against one bare topk {shape}", Accuracy(1, 5), TopK(), logits, target
        yield f"F1 {shape}", F1(c), classes.MulticlassF1Score(c, **quick), logits, target
        theirs = classes.MulticlassConfusionMatrix(c, **quick)
        yield f"ConfusionMatrix {shape}", ConfusionMatrix(c), theirs, logits, target
    logits, target = torch.randn(512, 80), torch.randint(2, (512, 80))
    theirs = classes.MultilabelAccuracy(80, average="micro", **quick)
    yield "Accuracy of labels (512, 80)", Accuracy(task="multilabel"), theirs, logits, target
    yield "F1 of labels (512, 80)", F1(80, task="multilabel"), classes.MultilabelF1Score(80, **quick), logits, target
    theirs = classes.MultilabelAUROC(80, thresholds=None, **quick)
    yield "AUROC of labels (512, 80)", AUROC(80, task="multilabel"), theirs, logits, target
    tokens, target = torch.randn(32, 128, 9), torch.randint(9, (32, 128))
    theirs = classes.MulticlassF1Score(9, ignore_index=0, **quick)
    last = Flat(theirs)
    yield "F1 of tokens (32, 128, 9)", F1(9, ignore_index=0), last, tokens, target
    logit, target = torch.randn(4096), torch.randint(2, (4096,))
    yield "Accuracy of a logit (4096,)", Accuracy(1), classes.BinaryAccuracy(**quick), logit, target
    yield "F1 of a logit (4096,)", F1(), classes.BinaryF1Score(**quick), logit, target
    yield "AUROC of a logit (4096,)", AUROC(), classes.BinaryAUROC(**quick), logit, target
    masks, target = torch.randn(4, 21, 128, 128), torch.randint(21, (4, 128, 128))
    theirs = classes.MulticlassJaccardIndex(21, ignore_index=0, **quick)
    yield "Jaccard (4, 21, 128, 128)", Jaccard(21, ignore_index=0), theirs, masks, target
    output, target = torch.randn(4096, 8), torch.randn(4096, 8)
    yield "MeanSquaredError (4096, 8)", MeanSquaredError(), numbers.MeanSquaredError(), output, target
    yield "MeanAbsoluteError (4096, 8)", MeanAbsoluteError(), numbers.MeanAbsoluteError(), output, target
    yield "R2 (4096,)", R2(), numbers.R2Score(), output[:, 0].contiguous(), target[:, 0].contiguous()
    yield "R2 (4096, 8)", R2(8), numbers.R2Score(), output, target
    image, truth = torch.rand(8, 3, 96, 96), torch.rand(8, 3, 96, 96)
    theirs = images.PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
    yield "PSNR (8, 3, 96, 96)", PSNR(), theirs, image, truth
    theirs = images.StructuralSimilarityIndexMeasure(data_range=1.0)
    yield "SSIM (8, 3, 96, 96)", SSIM(), theirs, image, truth


def seconds(metric, output, target, updates):
    """Return the seconds of one update, the mean over a block of them."""
    device = output.device
    metric.reset()  # Some keep every score.
    begin = time.perf_counter()
    for _ in range(updates):
        metric.update(output, target)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return (time.perf_counter() - begin) / updates


def main(wanted=""):
    """Measure and print the table."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.set_num_threads(1)
    print(f"{'':50} ours/us theirs/us ratio   on {device}, torch {torch.__version__}")
    with torch.no_grad():
        for name, ours, theirs, output, target in cases():
            if wanted not in name:
                continue
            ours, theirs, output, target = (value.to(device) for value in (ours, theirs, output, target))
            for metric in ours, theirs:
                seconds(metric, output, target, 3)
            updates = max(2, int(SECONDS / seconds(theirs, output, target, 3)))
            blocks = []
            for block in range(BLOCKS):
                first, second = (ours, theirs) if block % 2 else (theirs, ours)
                took = {id(metric): seconds(metric, output, target, updates) for metric in (first, second)}
                blocks.append((took[id(ours)], took[id(theirs)]))
            ratio = statistics.median(mine / other for mine, other in blocks)
            mine, other = (1e6 * statistics.median(column) for column in zip(*blocks, strict=True))
            print(f"{name:50} {mine:7.0f} {other:9.0f} {ratio:5.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
