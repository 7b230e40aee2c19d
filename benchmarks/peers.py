"""Other libraries, each at the leanest setting that its documentation has: no bar, log, checkpoint or metric.

Each trains a work for some epochs and calls `mark()` after each, in an environment of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax_peers
import torch


def lightning(work, epochs, mark, folder):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.criterion = work.model, work.criterion

        def training_step(self, batch, index):
            input, target = batch
            return self.criterion(self.model(input), target)

        def configure_optimizers(self):
            return work.make_optimizer()

        def on_train_epoch_end(self):
            mark()

    class Loader:  # Lightning takes a list for several loaders.
        def __len__(self):
            return len(work.loader)

        def __iter__(self):
            return iter(work.loader)

    trainer = lightning.Trainer(barebones=True, accelerator="cpu", devices=1, max_epochs=epochs)
    trainer.fit(Module(), Loader())


def fabric(work, epochs, mark, folder):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(work.model, work.make_optimizer())
    by_hand(work, epochs, mark, model, optimizer, fabric.backward)


def accelerate(work, epochs, mark, folder):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(work.model, work.make_optimizer())
    by_hand(work, epochs, mark, model, optimizer, accelerator.backward)


def by_hand(work, epochs, mark, model, optimizer, backward):
    """The loop of Fabric and accelerate, which leave it to the user."""
    for _ in range(epochs):
        total = torch.zeros(())
        for input, target in work.loader:
            optimizer.zero_grad()
            loss = work.criterion(model(input), target)
            backward(loss)
            optimizer.step()
            total += loss.detach() * len(input)
        mark()


def ignite(work, epochs, mark, folder):
    from ignite.engine import Events, create_supervised_trainer

    engine = create_supervised_trainer(
        work.model, work.make_optimizer(), work.criterion, output_transform=lambda x, y, y_pred, loss: loss.detach()
    )
    engine.add_event_handler(Events.EPOCH_COMPLETED, mark)
    engine.run(work.loader, max_epochs=epochs)


def keras(work, epochs, mark, folder):
    import keras

    model = keras.Sequential([keras.layers.TorchModuleWrapper(work.model)])
    model.compile(
        getattr(keras.optimizers, work.optimizer)(work.lr),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def batches():
        while True:
            yield from work.loader

    model.fit(
        batches(),
        steps_per_epoch=len(work.loader),
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: mark())],
    )


def torchtnt(work, epochs, mark, folder):
    from torchtnt.framework.train import train
    from torchtnt.framework.unit import TrainUnit

    class Unit(TrainUnit):
        def __init__(self):
            super().__init__()
            self.model, self.optimizer = work.model, work.make_optimizer()

        def train_step(self, state, data):
            input, target = data
            self.optimizer.zero_grad()
            loss = work.criterion(self.model(input), target)
            loss.backward()
            self.optimizer.step()

        def on_train_epoch_end(self, state):
            mark()

    train(Unit(), work.loader, max_epochs=epochs)


def skorch(work, epochs, mark, folder):
    from skorch import NeuralNet

    class Net(NeuralNet):
        def on_epoch_end(self, *args, **kwargs):
            super().on_epoch_end(*args, **kwargs)
            mark()

    net = Net(
        work.model,
        work.criterion,
        optimizer=getattr(torch.optim, work.optimizer),
        lr=work.lr,
        max_epochs=epochs,
        train_split=None,
        callbacks="disable",
        iterator_train=lambda dataset, **options: work.loader,
        verbose=0,
        device="cpu",
    )
    net.fit(torch.utils.data.TensorDataset(torch.zeros(1), torch.zeros(1)), None)


def poutyne(work, epochs, mark, folder):
    from poutyne import Callback, Model

    class Mark(Callback):
        def on_epoch_end(self, epoch, logs):
            mark()

    model = Model(work.model, work.make_optimizer(), work.criterion, device="cpu")
    model.fit_generator(work.loader, epochs=epochs, callbacks=[Mark()], verbose=False)


def argus(work, epochs, mark, folder):
    import argus
    from argus.callbacks import on_epoch_complete

    class Model(argus.Model):
        nn_module = staticmethod(lambda: work.model)
        optimizer = getattr(torch.optim, work.optimizer)
        loss = staticmethod(lambda: work.criterion)

    model = Model({"nn_module": {}, "optimizer": {"lr": work.lr}, "loss": {}, "device": "cpu"})
    model.fit(work.loader, num_epochs=epochs, callbacks=[on_epoch_complete(lambda state: mark())])


class Peer(NamedTuple):
    """A library: the function that trains with it, what to install, and what a user imports."""

    run: Callable
    packages: list[str]
    module: str
    environment: dict[str, str] | None = None
    compiles: bool = False


ON_JAX = (["jax", "optax", "keras"], "keras", {"KERAS_BACKEND": "jax"}, True)

PEERS = {
    "Lightning": Peer(lightning, ["lightning"], "lightning"),
    "Fabric": Peer(fabric, ["lightning"], "lightning.fabric"),
    "Ignite": Peer(ignite, ["pytorch-ignite"], "ignite.engine"),
    "accelerate": Peer(accelerate, ["accelerate"], "accelerate"),
    "Keras on torch": Peer(keras, ["keras"], "keras", {"KERAS_BACKEND": "torch"}),
    "TorchTNT": Peer(torchtnt, ["torchtnt", "setuptools<81"], "torchtnt.framework.train"),
    "skorch": Peer(skorch, ["skorch"], "skorch"),
    "Poutyne": Peer(poutyne, ["poutyne"], "poutyne"),
    "argus": Peer(argus, ["pytorch-argus"], "argus"),
    "JAX, jit": Peer(jax_peers.jit, ON_JAX[0], "jax, optax", compiles=True),
    "JAX, scan": Peer(jax_peers.scan, ON_JAX[0], "jax, optax", compiles=True),
    "Keras on JAX": Peer(jax_peers.keras, *ON_JAX),
    "Keras on JAX, 100 steps": Peer(partial(jax_peers.keras, steps_per_execution=100), *ON_JAX),
}
