"""Run both sides of the pages in docs/migrating, and compare their weights and results.

`hatch run migrating:test` installs the other libraries. Without one of them, its tests are skipped.
"""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
PAGES = Path(__file__).parents[2] / "docs" / "migrating"
LIBRARIES = {"ignite": "ignite", "accelerate": "accelerate", "hf_trainer": "transformers"}


def needs(library):
    return pytest.mark.skipif(not importlib.util.find_spec(library), reason="hatch run migrating:test installs it")


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)


def run(code, names=None):
    names = {"__name__": "page"} if names is None else names
    for block in code:
        exec(compile(block, "page", "exec"), names)
    return names


def both(page):
    """Run ours and theirs after a shared beginning, up to what both of them call `results`."""
    shared, ours = blocks(page, "python")[:2]
    return run([shared, ours]), run([shared, blocks(page, "py")[0]])


def assert_same_weights(model, other):
    other = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, other[name].to(parameter), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [pytest.param(page, marks=needs(library)) for page, library in LIBRARIES.items()])
def test_both_sides_end_with_the_same_weights(page, monkeypatch):
    if page == "hf_trainer":  # It draws its order in another way.
        from torch.utils.data import SequentialSampler
        from transformers import Trainer

        monkeypatch.setattr(Trainer, "_get_train_sampler", lambda self, *args: SequentialSampler(self.train_dataset))
        code = blocks(page, "python")[:2]
        ours = run([code[0], code[1].replace("shuffle=True", "shuffle=False")])
        theirs = run([code[0], blocks(page, "py")[0]])
        torch.testing.assert_close(torch.tensor(ours["scores"]), torch.tensor(theirs["scores"]), rtol=1e-3, atol=1e-3)
    else:
        ours, theirs = both(page)
    assert_same_weights(ours["model"], theirs["model"])
    assert ours["results"].keys() == theirs["results"].keys()
    for name, value in ours["results"].items():
        assert theirs["results"][name] == pytest.approx(value, rel=1e-4), name


@needs("ignite")
def test_the_other_code_on_the_ignite_page_runs(capsys):
    theirs = run([blocks("ignite", "python")[0], *blocks("ignite", "py")])
    theirs["trainer"].run(theirs["train_loader"], max_epochs=5)
    assert "epoch 4: the last batch" in capsys.readouterr().out


def keras_names():
    """Run our side of the Keras page. It defines the data of their side, too."""
    import keras

    return run(blocks("keras", "python"), {"__name__": "page", "keras": keras})


@needs("keras")
def test_the_code_on_the_keras_page_runs():
    names = keras_names()
    training, gap, own_step = blocks("keras", "py")
    run([training, gap], names)
    assert names["scores"].shape == (297, 10)
    names["model"].fit(names["x"], names["y"], validation_split=0.2, callbacks=[names["Gap"]()], verbose=0)
    run([own_step], names)
    keras = names["keras"]
    model = names["MyModel"](inputs := keras.Input((64,)), keras.layers.Dense(10)(inputs))
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert model.fit(names["x"], names["y"], epochs=2, verbose=0).history["loss"][1] > 0


@needs("keras")
def test_keras_and_fit_train_to_the_same_weights_and_results():
    names = keras_names()
    keras, Runner, Accuracy, nn = (names[name] for name in ("keras", "Runner", "Accuracy", "nn"))
    dataset = names["dataset"](names["x"], names["y"])
    x, y = (tensor.numpy() for tensor in dataset.tensors)
    ours = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    layers = [keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
    theirs = keras.Sequential(layers)
    theirs.set_weights([p.detach().numpy().T for p in ours.parameters()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    # 1500 samples in batches of 70: the last one is short.
    history = theirs.fit(x, y, batch_size=70, epochs=3, shuffle=False, verbose=0).history
    loader = torch.utils.data.DataLoader(dataset, batch_size=70)
    runner = Runner(ours, torch.optim.SGD(ours.parameters(), lr=0.1), nn.CrossEntropyLoss(), [Accuracy()])
    rows = runner.fit(loader, epochs=3)
    for own, other in zip(ours.parameters(), theirs.get_weights(), strict=True):
        torch.testing.assert_close(own.detach(), torch.tensor(other).T, rtol=1e-4, atol=1e-5)
    assert [row["train/loss"] for row in rows] == pytest.approx(history["loss"], rel=1e-4)
    assert [row["train/Acc@1"] for row in rows] == pytest.approx(history["accuracy"], rel=1e-4)


@needs("lightning")
def test_the_code_on_the_lightning_page_runs():
    names = run(blocks("lightning", "python"))
    ours = names["Autoencoder"]
    training, max_time, autoencoder, _gan, several = blocks("lightning", "py")
    run([training, max_time], names)
    assert names["trainer"].callback_metrics["val_acc"] > 0.5
    L = names["L"]
    trainer = L.Trainer(max_epochs=1, callbacks=[names["MaxTime"]()], logger=False, enable_checkpointing=False)
    trainer.fit(names["Classifier"](), names["train_loader"])
    assert trainer.global_step == 30

    run([autoencoder], names)

    class Whole(names["Autoencoder"]):
        def __init__(self):
            super().__init__()
            self.net = ours()

        def forward(self, image):
            return self.net(image)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(Whole(), names["DataLoader"](names["images"], batch_size=50))
    assert {"mse", "kl"} <= trainer.callback_metrics.keys()
    assert "strategy=" in several  # It needs four GPUs.


@needs("lightning")
def test_lightning_and_fit_train_to_the_same_weights():
    names = run(blocks("lightning", "python"))
    Runner, GradientClipping, nn, plain = (names[name] for name in ("Runner", "GradientClipping", "nn", "Classifier"))
    model, loader = plain(), names["DataLoader"](names["train_loader"].dataset, batch_size=50)
    run(blocks("lightning", "py")[:1], names)

    class Sgd(names["Classifier"]):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    theirs = Sgd()
    theirs.net.load_state_dict(model.net.state_dict())
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    names["L"].Trainer(max_epochs=3, accumulate_grad_batches=2, gradient_clip_val=1.0, **options).fit(theirs, loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), (), [GradientClipping(1.0)], accumulate_steps=2)
    runner.fit(loader, epochs=3)
    assert_same_weights(model.net, theirs.net)
