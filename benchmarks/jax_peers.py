"""JAX with optax, and Keras on JAX, on the models of works.py with the same weights and batches."""

import math
from functools import partial

import torch
from torch import nn
from works import Block, Mean


def apply(module, weights, x, name=""):
    """Return the output of a torch module, computed by JAX with `weights` by their names in its state."""
    import jax
    from jax import numpy as jnp

    def weight(part):
        return weights[name + part]

    def inside(part, x):
        return apply(getattr(module, part), weights, x, f"{name}{part}.")

    if isinstance(module, nn.Sequential):
        for key, child in module.named_children():
            x = apply(child, weights, x, f"{name}{key}.")
        return x
    if isinstance(module, nn.Linear):
        return x @ weight("weight").T + (weight("bias") if module.bias is not None else 0)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        pads = [(pad, pad) for pad in module.padding]
        x = jax.lax.conv_general_dilated(x, weight("weight"), module.stride, pads)
        return x + weight("bias").reshape(-1, *(1 for _ in module.stride))
    if isinstance(module, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(module, nn.MaxPool2d):
        size = (1, 1, module.kernel_size, module.kernel_size)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")
    if isinstance(module, nn.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(module, nn.Unflatten):
        return x.reshape(len(x), *module.unflattened_size)
    if isinstance(module, Mean):
        return x.mean(1)
    if isinstance(module, nn.LayerNorm):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + module.eps) * weight("weight") + weight("bias")
    if isinstance(module, Block):
        batch, length, width = x.shape
        three = inside("qkv", inside("norm1", x)).reshape(batch, length, 3, module.heads, -1)
        query, key, value = three.transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(width // module.heads)
        mixed = (jax.nn.softmax(scores) @ value).swapaxes(1, 2).reshape(batch, length, width)
        x = x + inside("out", mixed)
        return x + inside("mlp", inside("norm2", x))
    raise TypeError(f"expected a module of works.py, got {type(module).__name__}")


def weights_of(model):
    from jax import numpy as jnp

    return {name: jnp.asarray(value.detach().numpy()) for name, value in model.named_parameters()}


def copy_back(weights, model):
    """Copy weights into the torch model, which is tested."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(weights[name].__array__()))


def training(work):
    """Return weights, the optimizer's state, and a function that trains them on a batch."""
    import jax
    import optax

    weights = weights_of(work.model)
    optimizer = getattr(optax, work.optimizer.lower())(work.lr)

    def loss_of(weights, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(apply(work.model, weights, x), y).mean()

    def step(carry, batch):
        weights, state, total = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)
        updates, state = optimizer.update(gradients, state, weights)
        return (optax.apply_updates(weights, updates), state, total + loss * len(batch[0])), None

    return weights, optimizer.init(weights), step


def arrays(work):
    """Return a function that returns the batches of an epoch. Those that are the same in each are made once."""
    from jax import numpy as jnp

    def convert():
        return [(jnp.asarray(x.numpy()), jnp.asarray(y.numpy())) for x, y in work.loader]

    once = convert() if isinstance(work.loader, list) else None
    return lambda: convert() if once is None else once


def end_of_epoch(work, weights, total, mark):
    total.block_until_ready()
    if work.test is not None:
        copy_back(weights, work.model)
    mark()


def jit(work, epochs, mark, folder):
    """Compile a step, and call it for each batch."""
    import jax
    from jax import numpy as jnp

    weights, state, step = training(work)
    batches, step = arrays(work), jax.jit(step, donate_argnums=0)
    for _ in range(epochs):
        total = jnp.zeros(())
        for batch in batches():
            (weights, state, total), _ = step((weights, state, total), batch)
        end_of_epoch(work, weights, total, mark)


def scan(work, epochs, mark, folder):
    """Compile a whole epoch. All its batches have to be in memory."""
    import jax
    from jax import numpy as jnp

    weights, state, step = training(work)
    epoch = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)

    def stacked():
        return tuple(jnp.asarray(torch.stack(part).numpy()) for part in zip(*work.loader, strict=True))

    once = stacked() if isinstance(work.loader, list) else None
    for _ in range(epochs):
        (weights, state, total), _ = epoch((weights, state, jnp.zeros(())), stacked() if once is None else once)
        end_of_epoch(work, weights, total, mark)


def keras(work, epochs, mark, folder, steps_per_execution=1):
    """Train with Keras on JAX. The model is one layer of the same JAX code."""
    import keras

    layer = keras.layers.JaxLayer(
        lambda params, inputs: apply(work.model, params, inputs), params=weights_of(work.model)
    )
    model = keras.Sequential([layer])
    model.compile(
        getattr(keras.optimizers, work.optimizer)(work.lr),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=min(steps_per_execution, len(work.loader)),  # It would train more than an epoch has.
    )
    batches = arrays(work)

    def forever():
        while True:
            yield from batches()

    def end(epoch, logs):
        if work.test is not None:
            model.jax_state_sync()
            copy_back({name: value.value for name, value in layer.params.items()}, work.model)
        mark()

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=end)]
    model.fit(forever(), steps_per_epoch=len(work.loader), epochs=epochs, verbose=0, callbacks=callbacks)
