"""The examples with several models against loops written by hand in plain PyTorch: every update's gradient.

Tolerance: float64, relative 1e-12: sums are taken in another order on two processes. A model that is averaged
wrongly, stepped too often or given another's gradients is off by per cent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Subset

pytest.importorskip("sklearn")
pytest.importorskip("rich")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
REL = 1e-12
GLOBAL_BATCH = 8
SAMPLES = 5 * GLOBAL_BATCH
"""Five batches an epoch: windows of two end with a short one."""
EPOCHS = 2


def example(name: str) -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).double()


class Recorder:
    """What each step of some optimizers was given: a label and all gradients; and the learning rate."""

    def __init__(self, **optimizers: torch.optim.Optimizer) -> None:
        self.seen: list[tuple[str, float, torch.Tensor]] = []
        for label, optimizer in optimizers.items():
            optimizer.register_step_pre_hook(lambda opt, *_, label=label: self.note(label, opt))

    def note(self, label: str, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        self.seen.append((label, group["lr"], flat(p.grad for p in group["params"])))


def compare(ours: list[Any], plain: list[Any], rel: float) -> None:
    assert [(label, rate) for label, rate, _ in ours] == [
        (label, pytest.approx(rate, rel=1e-12)) for label, rate, _ in plain
    ]
    for number, ((label, _, found), (_, _, wanted)) in enumerate(zip(ours, plain, strict=True)):
        error = float((found - wanted).norm() / wanted.norm())
        assert error <= rel, f"update {number}, {label}: off by {error:.1e}"


# -- adversarial ---------------------------------------------------------------------------------------------


def networks(gan: Any) -> torch.Tensor:
    return flat([*gan.generator.parameters(), *gan.discriminator.parameters()])


def gan_data(module: Any) -> Any:
    return Subset(module.load_data(), range(SAMPLES))


def our_gan(steps: int, precision: str) -> tuple[list[Any], torch.Tensor]:
    from accel import Accelerator
    from accel.utils import GradScalerKwargs

    if precision == "no":
        torch.set_default_dtype(torch.float64)
    module = example("gan")
    torch.manual_seed(5)
    gan = module.build()
    record = Recorder(generator=gan.generator_optimizer, discriminator=gan.discriminator_optimizer)
    handlers = [GradScalerKwargs(init_scale=64.0, growth_interval=1)] if precision == "fp16" else []
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=steps, mixed_precision=precision, kwargs_handlers=handlers
    )
    prepared = module.prepare(accelerator, gan)
    batch = GLOBAL_BATCH // accelerator.num_processes
    loader = accelerator.prepare(DataLoader(gan_data(module), batch_size=batch))
    for _ in range(EPOCHS):
        module.train(accelerator, prepared, loader)
    return record.seen, networks(gan)


def cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def windows(batches: list[Any], steps: int) -> Iterator[tuple[Any, int, bool]]:
    """Yield each batch with the length of its window, and whether it closes it."""
    for start in range(0, len(batches), steps):
        window = batches[start : start + steps]
        for number, batch in enumerate(window, start=1):
            yield batch, len(window), number == len(window)


def plain_gan(steps: int, precision: str) -> tuple[list[Any], torch.Tensor]:
    half = precision == "fp16"
    if not half:
        torch.set_default_dtype(torch.float64)
    module = example("gan")
    torch.manual_seed(5)
    gan = module.build()
    g_step, d_step = gan.generator_optimizer, gan.discriminator_optimizer
    record = Recorder(generator=g_step, discriminator=d_step)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1, enabled=half)

    def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16, enabled=half):
            out = model(x)
        return out.to(torch.get_default_dtype())

    batches = list(DataLoader(gan_data(module), batch_size=GLOBAL_BATCH))
    for _ in range(EPOCHS):
        for (images, noise), length, closes in windows(batches, steps):
            fakes = run(gan.generator, noise)
            on_real = cross_entropy(run(gan.discriminator, images), 1.0)
            on_fake = cross_entropy(run(gan.discriminator, fakes.detach()), 0.0)
            scaler.scale(on_real / length).backward()
            scaler.scale(on_fake / length).backward()
            if closes:
                scaler.step(d_step)
                d_step.zero_grad()
                # With nothing accumulated under it, the scale moves between the two.
                if length == 1:
                    scaler.update()
            kept = [None if p.grad is None else p.grad.clone() for p in gan.discriminator.parameters()]
            fooled = cross_entropy(run(gan.discriminator, fakes), 1.0)
            scaler.scale(fooled / length).backward()
            # That went through the discriminator, and is not its gradient.
            for parameter, gradient in zip(gan.discriminator.parameters(), kept, strict=True):
                parameter.grad = gradient
            if closes:
                scaler.step(g_step)
                g_step.zero_grad()
                scaler.update()
    return record.seen, networks(gan)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_gan(world: int, steps: int, pool: Any) -> None:
    plain, final = pool.run(1, plain_gan, steps, "no")[0]
    assert len(plain) == 2 * EPOCHS * -(-5 // steps)
    for ours, weights in pool.run(world, our_gan, steps, "no"):
        compare(ours, plain, REL)
        # Adam divides by the root of squares: where gradients are nearly 0 that enlarges the rounding.
        assert float((weights - final).norm() / final.norm()) <= REL


@pytest.mark.parametrize("steps", [1, 2])
def test_gan_in_half_precision(steps: int, pool: Any) -> None:
    """The same kernels on the same numbers; all that differs is who scales. The scale grows each time."""
    plain, final = pool.run(1, plain_gan, steps, "fp16")[0]
    ours, weights = pool.run(1, our_gan, steps, "fp16")[0]
    # fp16 gradients: scaled by another power of two, the smallest are rounded differently.
    compare(ours, plain, 1e-6)
    assert torch.allclose(weights, final, rtol=1e-6, atol=0)


# -- actor and critic ----------------------------------------------------------------------------------------


def agent_of(module: Any) -> tuple[Any, Recorder]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    agent = module.build(3 * SAMPLES)
    return agent, Recorder(actor=agent.optimizers[0], critic=agent.optimizers[1])


def policies(agent: Any) -> torch.Tensor:
    return flat([*agent.actor.parameters(), *agent.critic.parameters(), *agent.reference.parameters()])


def our_agent(steps: int) -> tuple[list[Any], torch.Tensor]:
    from accel import Accelerator

    module = example("actor_critic")
    agent, record = agent_of(module)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
    prepared = module.prepare(accelerator, agent)
    batch = GLOBAL_BATCH // accelerator.num_processes
    loader = accelerator.prepare(DataLoader(module.load_data(SAMPLES), batch_size=batch))
    for _ in range(EPOCHS):
        module.train(accelerator, prepared, loader)
    return record.seen, policies(agent)


def plain_agent(steps: int) -> tuple[list[Any], torch.Tensor]:
    module = example("actor_critic")
    agent, record = agent_of(module)
    batches = list(DataLoader(module.load_data(SAMPLES), batch_size=GLOBAL_BATCH))
    for _ in range(EPOCHS):
        total, read = 0, 0
        for (start, dice), _, closes in windows(batches, steps):
            episodes = module.play(agent.actor, start, dice)
            for loss in module.losses_of(agent, episodes):
                loss.backward()
            total += int(episodes.valid.sum())
            read += len(start)
            if not closes:
                continue
            for model, optimizer, scheduler in zip(
                (agent.actor, agent.critic), agent.optimizers, agent.schedulers, strict=True
            ):
                for parameter in model.parameters():
                    parameter.grad /= total
                optimizer.step()
                optimizer.zero_grad()
                for _ in range(read):
                    scheduler.step()
            total, read = 0, 0
    return record.seen, policies(agent)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_actor_and_critic(world: int, steps: int, pool: Any) -> None:
    plain, final = pool.run(1, plain_agent, steps)[0]
    rates = {rate for _, rate, _ in plain}
    assert len(rates) == EPOCHS * -(-5 // steps)
    for ours, weights in pool.run(world, our_agent, steps):
        compare(ours, plain, REL)
        assert float((weights - final).norm() / final.norm()) <= REL
