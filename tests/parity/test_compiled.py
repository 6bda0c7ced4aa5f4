"""Compiled models train as uncompiled plain PyTorch does: losses, gradients and names, on 1 and 2 processes.

Tolerance: float64, relative 1e-12 for the backends ``eager`` and ``aot_eager``, which run torch's own
kernels: only sums over ranks and micro-batches are taken in another order. 1e-10 for ``inductor``, whose
generated loops add up in an order of their own; a wrong divisor or a lost block is off by per cent.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel.utils import DistributedDataParallelKwargs, TorchDynamoPlugin

PER_RANK = 4
REL = {"eager": 1e-12, "aot_eager": 1e-12, "inductor": 1e-10}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).tanh())


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_model(width: int = 8) -> nn.Module:
    torch.manual_seed(7)
    return Net(width).double()


def make_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randn(count, 2, dtype=torch.float64, generator=generator)


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).clone()


@dataclass(frozen=True)
class Case:
    world: int
    backend: str
    regional: bool
    steps: int = 1
    rounds: int = 6


def reference(case: Case) -> list[tuple[float, torch.Tensor]]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    size = case.world * PER_RANK * case.steps
    inputs, targets = make_data(case.rounds * case.world * PER_RANK)
    updates = []
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        updates.append((loss.item(), gradients(model)))
        optimizer.step()
        optimizer.zero_grad()
    return updates


def train(case: Case) -> tuple[list[tuple[float, torch.Tensor]], list[int], list[str], list[str]]:
    """Train compiled; return updates, graphs compiled until the end of each, and two lists of names."""
    from torch._dynamo.utils import counters

    from accel import Accelerator

    if case.backend == "inductor":
        from torch._inductor import config

        # Else it keeps threads for the next compilation, and the worker is to be left as it was.
        config.compile_threads = 1
    counters.clear()
    plugin = TorchDynamoPlugin(backend=case.backend, use_regional_compilation=case.regional)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case.steps, dynamo_plugin=plugin)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    loader = DataLoader(TensorDataset(*make_data(case.rounds * case.world * PER_RANK)), batch_size=PER_RANK)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    updates, losses, graphs = [], [], []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
            if accelerator.sync_gradients:
                updates.append((sum(losses) / len(losses), gradients(model)))
                losses = []
                graphs.append(counters["stats"]["unique_graphs"])
            optimizer.step()
            optimizer.zero_grad()
    unit = accelerator._registry.units[0]
    names = list(accelerator._strategy.states.full(unit))
    return updates, graphs, names, list(accelerator.unwrap_model(model).state_dict())


CASES = [
    *(
        Case(world, backend, regional)
        for world in (1, 2)
        for backend in ("eager", "aot_eager")
        for regional in (False, True)
    ),
    # Half a minute of a C++ compiler each.
    Case(1, "inductor", regional=False),
    Case(2, "inductor", regional=True),
    # Micro-batches under no_sync, the last window short.
    *(Case(world, "aot_eager", regional, steps=4) for world in (1, 2) for regional in (False, True)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.timeout(300)
def test_loss_and_gradients_are_those_of_the_uncompiled_model(case: Case, pool: Any) -> None:
    if case.backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler on the CPU, and there is none")
    expected = reference(case)
    for rank, (updates, graphs, names, own) in enumerate(pool.run(case.world, train, case, timeout=240)):
        assert names == own == list(make_model().state_dict())
        assert len(updates) == len(expected), f"rank {rank} took another number of steps"
        for (loss, gradient), (want_loss, want_gradient) in zip(updates, expected, strict=True):
            assert loss == pytest.approx(want_loss, rel=REL[case.backend])
            error = (gradient - want_gradient).norm() / want_gradient.norm()
            assert error.item() < REL[case.backend], f"rank {rank}: gradient is off by {error.item():.1e}"
        # One graph of the whole model, or one for all blocks; none after the first update.
        assert graphs == [1] * len(graphs)


@pytest.mark.parametrize("regional", [False, True])
def test_a_short_last_batch_and_evaluation_compile_once_more_each(regional: bool, pool: Any) -> None:
    """A new size makes torch compile for all sizes, the mode without gradients once more: then no more."""

    def run() -> tuple[list[int], bool]:
        from torch._dynamo.utils import counters

        from accel import Accelerator

        counters.clear()
        plugin = TorchDynamoPlugin(backend="aot_eager", use_regional_compilation=regional)  # type: ignore[arg-type]
        accelerator = Accelerator(cpu=True, dynamo_plugin=plugin)
        model, plain = make_model(), make_model()
        model = accelerator.prepare(model)
        graphs, equal = [], True
        for _ in range(3):
            for size in (4, 3, 2):
                x = make_data(size)[0]
                accelerator.backward(model(x).square().mean())
                plain(x).square().mean().backward()
                equal &= torch.allclose(gradients(model), gradients(plain), rtol=1e-12, atol=0)
            model.eval()
            with torch.no_grad():
                equal &= torch.equal(model(x), plain(x))
            model.train()
            graphs.append(counters["stats"]["unique_graphs"])
        return graphs, equal

    graphs, equal = pool.run(1, run)[0]
    assert equal
    assert graphs[0] <= 3
    assert graphs == [graphs[0]] * 3


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_mixed_precision_is_compiled_with_the_model(precision: str, regional: bool, pool: Any) -> None:
    """Bit-equal: the backend runs the same kernels in the same order, autocast's casts among them."""

    def run() -> bool:
        from accel import Accelerator

        plugin = TorchDynamoPlugin(backend="eager", fullgraph=True, use_regional_compilation=regional)  # type: ignore[arg-type]
        compiling = Accelerator(cpu=True, mixed_precision=precision, dynamo_plugin=plugin)
        plain = Accelerator(cpu=True, mixed_precision=precision)
        models = [compiling.prepare(make_model().float()), plain.prepare(make_model().float())]
        x = make_data(5)[0].float()
        outputs = [model(x) for model in models]
        for accelerator, output in zip((compiling, plain), outputs, strict=True):
            accelerator.backward(output.square().mean())
        assert outputs[0].dtype == torch.float32
        return torch.equal(*outputs) and torch.equal(gradients(models[0]), gradients(models[1]))

    assert pool.run(1, run) == [True]


def test_graphs_are_cut_at_the_buckets_of_the_container(pool: Any) -> None:
    """One graph for backward would have all gradients at its end: nothing to send while it computes."""

    def run(cap: int) -> int:
        from accel import Accelerator

        compiled = []

        def backend(graph: Any, inputs: Any) -> Any:
            compiled.append(graph)
            return graph.forward

        accelerator = Accelerator(
            cpu=True,
            dynamo_plugin=TorchDynamoPlugin(backend=backend),
            kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=cap)],
        )
        # 1.3 MiB of gradients in each block.
        model = accelerator.prepare(make_model(width=208))
        accelerator.backward(model(make_data(4)[0]).square().mean())
        return len(compiled)

    assert pool.run(1, run, 25) == [1]
    # The first bucket holds 1 MiB whatever the others hold.
    assert pool.run(2, run, 25) == [2, 2]
    assert all(parts >= 4 for parts in pool.run(2, run, 1))


@pytest.mark.parametrize("regional", [False, True])
def test_gradients_that_are_not_averaged_are_seen_in_compiled_models_too(regional: bool, pool: Any) -> None:
    def run() -> None:
        from accel import Accelerator

        plugin = TorchDynamoPlugin(backend="aot_eager", use_regional_compilation=regional)  # type: ignore[arg-type]
        accelerator = Accelerator(cpu=True, dynamo_plugin=plugin)
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        x = make_data(4)[0]
        accelerator.backward(model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        accelerator.backward(accelerator.unwrap_model(model)(x).square().mean())
        optimizer.step()

    for error in pool.failures(2, run):
        assert type(error).__name__ == "CollectiveError"
        assert "not averaged" in str(error)


CONTAINERS: dict[str, dict[str, Any]] = {
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "gradients in buckets": {"gradient_as_bucket_view": True},
}


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_settings_of_the_container_hold_around_compiled_models(name: str, regional: bool, pool: Any) -> None:
    case = Case(world=2, backend="aot_eager", regional=regional, steps=2, rounds=4)

    def run() -> list[torch.Tensor]:
        from accel import Accelerator

        accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=case.steps,
            dynamo_plugin=TorchDynamoPlugin(backend="aot_eager", use_regional_compilation=regional),  # type: ignore[arg-type]
            kwargs_handlers=[DistributedDataParallelKwargs(**CONTAINERS[name])],
        )
        model = make_model()
        if name == "unused parameters":
            model.unused = nn.Linear(2, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        data = TensorDataset(*make_data(case.rounds * case.world * PER_RANK))
        model, optimizer, loader = accelerator.prepare(
            model, optimizer, DataLoader(data, batch_size=PER_RANK)
        )
        found = []
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                if accelerator.sync_gradients:
                    found.append(gradients(model))
                optimizer.step()
                optimizer.zero_grad()
        return found

    expected = [gradient for _, gradient in reference(case)]
    for found in pool.run(2, run):
        for gradient, want in zip(found, expected, strict=True):
            assert ((gradient - want).norm() / want.norm()).item() < REL["aot_eager"]


def test_models_for_evaluation_are_compiled_too(pool: Any) -> None:
    def run() -> tuple[int, bool]:
        from torch._dynamo.utils import counters

        from accel import Accelerator

        counters.clear()
        accelerator = Accelerator(cpu=True, dynamo_backend="aot_eager")
        model = accelerator.prepare_model(make_model(), evaluation_mode=True)
        x = make_data(4)[0]
        with torch.no_grad():
            same = torch.equal(model(x), make_model()(x))
        return counters["stats"]["unique_graphs"], same

    assert pool.run(2, run) == [(1, True)] * 2
