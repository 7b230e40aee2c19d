"""Train a GAN to draw points from a ring of eight Gaussians: a step with two optimizers.

`_make_step` is the only method to override. The loop, metrics, callbacks and checkpoints stay as they are. So do
mixed precision, accumulation and gradient clipping, since the step calls `self.autocast`, `self.backward` and
`self.optimizer_step`.

Seeded. After 3000 steps on a CPU, 96.2% of 8000 drawn points lie within three standard deviations of a Gaussian (98.9%
of the data do), and each of the eight gets between 947 and 1058 points. It is 96.3% in bfloat16, 96.5% in float16, and
92.7% with `--accumulate 2`, where half of the generator's gradient comes from a discriminator one step older.
"""

import argparse

import torch
from fit_callbacks import Phase, PhasesScheduler
from fit_core import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

SPREAD = 0.1
ANGLES = torch.arange(8) * torch.pi / 4
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


class Both:
    """Hold the optimizers of generator and discriminator as one, so that a checkpoint contains both."""

    def __init__(self, generator: torch.optim.Optimizer, discriminator: torch.optim.Optimizer) -> None:
        self.generator, self.discriminator = generator, discriminator

    @property
    def param_groups(self) -> list[dict]:
        return self.generator.param_groups + self.discriminator.param_groups

    def step(self) -> None:
        raise RuntimeError("the two optimizers step in turn: call self.optimizer_step(optimizer) for each")

    def state_dict(self) -> dict:
        return {name: optimizer.state_dict() for name, optimizer in vars(self).items()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, optimizer in vars(self).items():
            optimizer.load_state_dict(state_dict[name])


class GanRunner(Runner):
    """Train on batches of points `(N, 2)`. Evaluate and predict on batches of noise `(N, 8)`."""

    def _make_step(self) -> None:
        state = self.state
        generator, discriminator = state.model["generator"], state.model["discriminator"]
        if not state.is_train:
            with self.autocast():
                state.output = generator(state.input)
            return

        real = state.input.requires_grad_()
        with self.autocast():
            state.output = generator(torch.randn(len(real), 8, device=real.device))
            score = discriminator(real)
            ones, zeros = torch.ones_like(score), torch.zeros_like(score)
            fake_score = discriminator(state.output.detach())
            discriminator_loss = state.criterion(score, ones) + state.criterion(fake_score, zeros)
        slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
        # Without the penalty, generator and discriminator chase each other round the ring.
        penalty = 0.05 * slope.square().sum(1).mean()
        self.backward(discriminator_loss + penalty, state.optimizer.discriminator)
        self.optimizer_step(state.optimizer.discriminator)

        with self.autocast():
            generator_loss = state.criterion(discriminator(state.output), ones)
        self.backward(generator_loss, state.optimizer.generator)
        self.optimizer_step(state.optimizer.generator)
        state.loss = {"loss": generator_loss, "discriminator": discriminator_loss}


def good(points: Tensor, _: None) -> Tensor:
    """Return the share of points within three standard deviations of a centre."""
    return (torch.cdist(points.float(), CENTRES).amin(1) < 3 * SPREAD).float().mean()


def network(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before in (inputs, 128, 128):
        layers += [nn.Linear(before, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of points, weights and noise (default: 0)")
    parser.add_argument("--half", choices=["bf16", "fp16"], help="run in bfloat16 or float16 (default: float32)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step, each smaller (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    points = CENTRES[torch.randint(8, (50_000,))] + SPREAD * torch.randn(50_000, 2)
    model = nn.ModuleDict({"generator": network(8, 2), "discriminator": network(2, 1)})
    adams = [torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.0, 0.99)) for part in model.values()]
    runner = GanRunner(
        model,
        Both(*adams),
        nn.BCEWithLogitsLoss(),
        [good],
        [PhasesScheduler([Phase(0, 1, lr=(2e-3, 0), mode="cos")])],
        accumulate_steps=arguments.accumulate,
        use_bf16=arguments.half == "bf16",
        use_fp16=arguments.half == "fp16",
    )
    train_loader = DataLoader(points, batch_size=256 // arguments.accumulate, shuffle=True)
    runner.fit(train_loader, steps_per_epoch=arguments.steps * arguments.accumulate)

    drawn = runner.predict(DataLoader(torch.randn(8000, 8), batch_size=1000)).float()
    counts = torch.cdist(drawn, CENTRES).argmin(1).bincount(minlength=8)
    print(f"{good(drawn, None):.1%} of 8000 points lie on a Gaussian ({good(points, None):.1%} of the data do)")
    print(f"points of each of the eight: {' '.join(map(str, counts.tolist()))}")


if __name__ == "__main__":
    main()
