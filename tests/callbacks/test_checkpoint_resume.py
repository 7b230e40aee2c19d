"""A resume from an older checkpoint, with a compiled layer, with the wrong weights, on other processes."""

import os
import warnings
from functools import partial

import pytest
import torch
from checkpoints import Values
from fit_callbacks import CheckpointSaver, ModelEma
from fit_callbacks.checkpoint import read
from processes import on_two_processes
from scene import Watch, batches, flat, make, network
from torch import nn

pytestmark = pytest.mark.timeout(120)


def kept(folder):
    return {path.name: read(path)["monitor"]["value"] for path in folder.glob("*.pt") if "last" not in path.name}


def test_a_worse_epoch_after_an_older_checkpoint_does_not_replace_the_best(tmp_path):
    make(Values(0.5, 0.4, 0.1), CheckpointSaver(tmp_path, "value", "min")).fit(batches(), epochs=3)
    before_last = tmp_path / "before-last.pt"
    make(Values(0, 0, 0.3, 0.2), CheckpointSaver(tmp_path, "value", "min", resume=before_last)).fit(batches(), epochs=4)
    assert kept(tmp_path) == {"best.pt": 0.1}
    make(Values(0, 0, 0, 0, 0.05), CheckpointSaver(tmp_path, "value", "min", resume=True)).fit(batches(), epochs=5)
    assert kept(tmp_path) == {"best.pt": 0.05}


def test_of_an_epoch_that_is_run_twice_the_better_is_kept(tmp_path):
    def saver(**options):
        return CheckpointSaver(tmp_path, "value", "min", keep=2, **options)

    make(Values(0.5, 0.4, 0.1, 0.2), saver()).fit(batches(), epochs=4)
    os.replace(tmp_path / "before-last.pt", tmp_path / "third.pt")
    make(Values(0, 0, 0, 0.15), saver(resume=tmp_path / "third.pt")).fit(batches(), epochs=4)
    assert kept(tmp_path) == {"best.pt": 0.1, "epoch-0003.pt": 0.1, "epoch-0004.pt": 0.15, "third.pt": 0.1}
    make(Values(0, 0, 0, 0.3), saver(resume=tmp_path / "third.pt")).fit(batches(), epochs=4)
    assert kept(tmp_path)["epoch-0004.pt"] == 0.15


@pytest.mark.parametrize("compiles", ["before", "after"])
def test_an_average_of_a_compiled_layer_is_that_of_the_layer(tmp_path, compiles):
    def compiled(number):
        model = network()
        if (number == 0) == (compiles == "before"):
            model[0] = torch.compile(model[0], backend="eager")
        return model

    make(CheckpointSaver(tmp_path / "gold"), ModelEma(0.9), model=network()).fit(batches(), epochs=2)
    for number in range(2):
        saver = CheckpointSaver(tmp_path / "run", resume="auto")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the number of epochs
            make(saver, ModelEma(0.9), model=compiled(number)).fit(batches(), epochs=1 + number)
    gold, run = (read(tmp_path / name / "last.pt") for name in ("gold", "run"))
    assert flat(run["callbacks"]["ModelEma"]) == flat(gold["callbacks"]["ModelEma"])
    network().load_state_dict(run["callbacks"]["ModelEma"]["model"])


@pytest.mark.parametrize("is_first", [False, True])
def test_a_new_average_starts_with_the_weights_that_are_resumed(tmp_path, is_first):
    make(CheckpointSaver(tmp_path)).fit(batches())
    saved = read(tmp_path / "last.pt")["model"]
    ema, saver = ModelEma(0.5, warmup=False), CheckpointSaver(tmp_path, resume=True)
    start = Watch("on_batch_begin", lambda state: {name: v.clone() for name, v in ema.model.state_dict().items()})
    callbacks = (ema, saver) if is_first else (saver, ema)
    runner = make(*callbacks, start, model=network(1))
    with pytest.warns(UserWarning, match="resumed with other callbacks: ModelEma starts from scratch"):
        runner.fit(batches(), epochs=2)
    assert flat(start.seen[0]) == flat(saved)


@pytest.mark.parametrize("of", ["evaluate", "predict"])
@pytest.mark.parametrize("resume", [True, "auto", "file"])
def test_evaluation_before_fit_warns_that_nothing_was_loaded(tmp_path, resume, of):
    make(CheckpointSaver(tmp_path)).fit(batches())
    resume = tmp_path / "best.pt" if resume == "file" else resume
    runner = make(CheckpointSaver(tmp_path, resume=resume))
    with pytest.warns(
        UserWarning, match=r"resumes a run in fit, and not in evaluate or predict.*To use others, call mod"
    ):
        getattr(runner, of)(batches())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(runner, of)(batches())  # it warns once
        make(CheckpointSaver(tmp_path)).evaluate(batches())
        make(CheckpointSaver(tmp_path / "empty", resume="auto")).evaluate(batches())
        fitted = make(CheckpointSaver(tmp_path, resume=True))
        fitted.fit(batches())
        fitted.evaluate(batches())


def test_what_the_monitored_value_was_measured_with_is_said_in_the_file(tmp_path):
    make(CheckpointSaver(tmp_path), ModelEma(0.5)).fit(batches(), val_loader=batches(seed=1))
    best = read(tmp_path / "best.pt")
    assert best["monitor"]["weights"] == "callbacks.ModelEma.model"
    model = network()
    model.load_state_dict(best["callbacks"]["ModelEma"]["model"])
    assert make(model=model).evaluate(batches(seed=1))["val/loss"] == pytest.approx(best["monitor"]["value"], abs=1e-12)
    make(CheckpointSaver(tmp_path), ModelEma(0.5)).fit(batches())
    assert read(tmp_path / "best.pt")["monitor"]["weights"] == "model"  # that of train/loss


PLACES = ["same", "empty", "other"]


def resume_on_rank(rank, folder, place):
    """Resume on a rank that sees the file of rank 0, none, or one of another run under the same name."""
    os.chdir(folder if rank == 0 or place == "same" else f"{folder}/{place}")
    sent, real = [], torch.distributed.broadcast_object_list

    def broadcast(box, *args, **options):
        sent.append(any(isinstance(part, dict) for part in box))
        real(box, *args, **options)

    torch.distributed.broadcast_object_list = broadcast
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the number of processes
        make(CheckpointSaver("new", resume="run/last.pt"), model=model).fit(batches(), epochs=1)
    torch.distributed.broadcast_object_list = real
    return model.module.weight.detach().clone(), any(sent)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """For each place, the weights in the file of rank 0, and what both ranks returned."""
    folder, cases, expected = tmp_path_factory.mktemp("ranks"), {}, {}
    for place in PLACES:
        first = make(CheckpointSaver(folder / place / "run"), model=nn.Linear(6, 3))
        first.fit(batches())
        expected[place] = first.state.model.weight.detach()
        cases[place] = partial(resume_on_rank, folder=folder / place, place=place)
        make(CheckpointSaver(folder / place / "other" / "run"), model=nn.Linear(6, 3)).fit(batches(seed=1))
        (folder / place / "empty").mkdir()
    return expected, on_two_processes(cases, folder)


@pytest.mark.parametrize("place", PLACES)
def test_each_process_reads_the_file_that_rank_0_reads(resumed, place):
    expected, results = resumed
    weights, was_sent = zip(*results[place], strict=True)
    assert all(torch.equal(weight, expected[place]) for weight in weights)
    assert was_sent[0] == (place != "same")
