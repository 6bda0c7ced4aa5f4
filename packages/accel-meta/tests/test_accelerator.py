"""The Accelerator's own behaviour; training against plain PyTorch is in tests/parity of the repository."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
)
from accel_core.errors import ConfigError

DOCUMENTED = {
    "accumulate": "(*models)",
    "autocast": "(autocast_handler=None)",
    "backward": "(loss, **kwargs)",
    "clear": "(*objects)",
    "clip_grad_norm_": "(parameters, max_norm, norm_type=2)",
    "clip_grad_value_": "(parameters, clip_value)",
    "free_memory": "(*objects)",
    "gather": "(tensor)",
    "gather_for_metrics": "(input_data, use_gather_object=False)",
    "local_main_process_first": "()",
    "main_process_first": "()",
    "no_sync": "(model)",
    "on_last_process": "(function)",
    "on_local_main_process": "(function=None)",
    "on_main_process": "(function=None)",
    "on_process": "(function=None, process_index=None)",
    "pad_across_processes": "(tensor, dim=0, pad_index=0, pad_first=False)",
    "prepare": "(*args, device_placement=None)",
    "prepare_data_loader": "(data_loader, device_placement=None, slice_fn_for_dispatch=None)",
    "prepare_model": "(model, device_placement=None, evaluation_mode=False)",
    "prepare_optimizer": "(optimizer, device_placement=None)",
    "prepare_scheduler": "(scheduler)",
    "print": "(*args, **kwargs)",
    "reduce": "(tensor, reduction='sum', scale=1.0)",
    "split_between_processes": "(inputs, apply_padding=False)",
    "unscale_gradients": "(optimizer=None)",
    "unwrap_model": "(model, keep_fp32_wrapper=True, keep_torch_compile=True)",
    "wait_for_everyone": "()",
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_signatures(name: str) -> None:
    """What is documented comes first and as documented; what is ours is by keyword only, and optional."""
    signature = inspect.signature(getattr(Accelerator, name))
    kept = []
    for key, parameter in signature.parameters.items():
        ours = parameter.kind is parameter.KEYWORD_ONLY and f"{key}=" not in DOCUMENTED[name]
        if ours:
            assert parameter.default is not parameter.empty, key
        elif key != "self" and not (parameter.kind is parameter.VAR_KEYWORD and "**" not in DOCUMENTED[name]):
            kept.append(parameter.replace(annotation=parameter.empty))
    text = str(inspect.Signature(kept)).replace(", *, device", ", device")
    assert text == DOCUMENTED[name]


def test_documented_constructor() -> None:
    parameters = inspect.signature(Accelerator.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][1:]
    assert names == [
        "device_placement",
        "split_batches",
        "mixed_precision",
        "gradient_accumulation_steps",
        "cpu",
        "dataloader_config",
        "deepspeed_plugin",
        "fsdp_plugin",
        "torch_tp_plugin",
        "megatron_lm_plugin",
        "rng_types",
        "log_with",
        "project_dir",
        "project_config",
        "gradient_accumulation_plugin",
        "step_scheduler_with_optimizer",
        "kwargs_handlers",
        "dynamo_backend",
        "dynamo_plugin",
        "deepspeed_plugins",
        "parallelism_config",
    ]


def parts(
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, torch.optim.Optimizer, Any, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return model, optimizer, scheduler, DataLoader(TensorDataset(torch.ones(8, 4, dtype=dtype)), batch_size=2)


# -- one process --------------------------------------------------------------------------------------------


def test_properties_of_one_process(pool: Any) -> None:
    def look() -> dict[str, Any]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3, project_dir="here")
        names = [
            "num_processes",
            "process_index",
            "local_process_index",
            "is_main_process",
            "is_local_main_process",
            "is_last_process",
            "use_distributed",
            "mixed_precision",
            "gradient_accumulation_steps",
            "sync_gradients",
            "split_batches",
            "even_batches",
            "dispatch_batches",
            "non_blocking",
            "use_seedable_sampler",
            "use_stateful_dataloader",
            "project_dir",
            "save_iteration",
            "optimizer_step_was_skipped",
        ]
        found = {name: getattr(accelerator, name) for name in names}
        return {**found, "device": str(accelerator.device), "type": str(accelerator.distributed_type)}

    assert pool.run(1, look)[0] == {
        "num_processes": 1,
        "process_index": 0,
        "local_process_index": 0,
        "is_main_process": True,
        "is_local_main_process": True,
        "is_last_process": True,
        "use_distributed": False,
        "mixed_precision": "no",
        "gradient_accumulation_steps": 3,
        "sync_gradients": True,
        "split_batches": False,
        "even_batches": True,
        "dispatch_batches": None,
        "non_blocking": False,
        "use_seedable_sampler": False,
        "use_stateful_dataloader": False,
        "project_dir": "here",
        "save_iteration": 0,
        "optimizer_step_was_skipped": False,
        "device": "cpu",
        "type": "NO",
    }


def test_environment_is_heard_and_code_wins(pool: Any) -> None:
    def look(**options: Any) -> tuple[str, int]:
        accelerator = Accelerator(cpu=True, **options)
        return accelerator.mixed_precision, accelerator.gradient_accumulation_steps

    env = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "5"}
    assert pool.run(1, look, env=env) == [("bf16", 5)]

    def insist() -> tuple[str, int]:
        return look(mixed_precision="no", gradient_accumulation_steps=2)

    assert pool.run(1, insist, env=env) == [("no", 2)]


def test_clipping_waits_for_the_end_of_the_window(pool: Any) -> None:
    def clip() -> list[tuple[float, float]]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer, _, loader = parts()
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        seen = []
        for (x,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(100 * model(x).sum())
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                left = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
                seen.append((float(norm), float(left)))
                optimizer.step()
                optimizer.zero_grad()
        return seen

    first, second, *_ = pool.run(1, clip)[0]
    assert first[0] == pytest.approx(first[1])
    assert first[0] > 100
    assert second[0] == pytest.approx(2 * first[0])
    assert second[1] == pytest.approx(1.0, rel=1e-5)


def test_clip_by_value(pool: Any) -> None:
    def clip() -> float:
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(parts()[0])
        accelerator.backward(100 * model(torch.ones(2, 4)).sum())
        accelerator.clip_grad_value_(model.parameters(), 0.25)
        return max(float(p.grad.abs().max()) for p in model.parameters())

    assert pool.run(1, clip) == [0.25]


def test_free_memory_forgets_everything(pool: Any) -> None:
    def free() -> tuple[Any, bool]:
        accelerator = Accelerator(cpu=True)
        model, optimizer, scheduler, loader = accelerator.prepare(*parts())
        released = accelerator.free_memory(model, optimizer, scheduler, loader)
        again = accelerator.prepare(*parts())
        return released, len(again) == 4

    assert pool.run(1, free) == [([None] * 4, True)]


# -- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_bf16_computes_in_bf16_and_returns_float32(world: int, pool: Any) -> None:
    def look() -> list[str]:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model = accelerator.prepare(parts()[0])
        inside = []
        accelerator.unwrap_model(model).register_forward_hook(
            lambda _m, _i, out: inside.append(str(out.dtype))
        )
        out = model(torch.ones(2, 4))
        with accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        with accelerator.autocast(AutocastKwargs(enabled=False)):
            plain = torch.ones(2, 2) @ torch.ones(2, 2)
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            restored = bare(torch.ones(2, 4))
        dtypes = [t.dtype for t in (out, product, plain, restored, next(bare.parameters()))]
        return [str(dtype).removeprefix("torch.") for dtype in dtypes]

    assert pool.run(world, look) == [["float32", "bfloat16", "float32", "bfloat16", "float32"]] * world


@pytest.mark.parametrize("world", [1, 2])
def test_fp16_overflow_skips_the_step_on_every_rank(world: int, pool: Any) -> None:
    def overflow() -> tuple[list[bool], list[float], bool]:
        accelerator = Accelerator(
            cpu=True, mixed_precision="fp16", kwargs_handlers=[GradScalerKwargs(init_scale=1024.0)]
        )
        model, optimizer, scheduler, _ = parts()
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        before = [p.detach().clone() for p in model.parameters()]
        skipped, rates = [], []
        # The overflow happens on the last rank only; the reduction carries it to the others.
        for factor in (float("inf") if accelerator.is_last_process else 1.0, 1.0):
            accelerator.backward(model(torch.ones(2, 4)).sum() * factor)
            accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            if not skipped:
                unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            scheduler.step()
            optimizer.zero_grad()
            skipped.append(accelerator.optimizer_step_was_skipped)
            rates.append(scheduler.get_last_lr()[0])
        return skipped, rates, unchanged

    for skipped, rates, unchanged in pool.run(world, overflow):
        assert skipped == [True, False]
        assert unchanged
        assert rates == [0.1, pytest.approx(0.1 * 0.5**world)]


def test_two_optimizers_share_one_loss_scale(pool: Any) -> None:
    """The scale may change only when every optimizer of the step has used it."""

    def train(precision: str) -> list[torch.Tensor]:
        handlers = [GradScalerKwargs(init_scale=1024.0, growth_interval=1)]
        accelerator = Accelerator(
            cpu=True, mixed_precision=precision, kwargs_handlers=handlers if precision == "fp16" else None
        )
        torch.manual_seed(0)
        models = [nn.Linear(4, 1), nn.Linear(4, 1)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
        a, b, first, second = accelerator.prepare(*models, *optimizers)
        for _ in range(4):
            x = torch.ones(2, 4)
            accelerator.backward((a(x) * 2 + b(x)).mean())
            first.step()
            second.step()
            first.zero_grad()
            second.zero_grad()
        return [p.detach().clone() for model in (a, b) for p in model.parameters()]

    half, full = pool.run(1, train, "fp16")[0], pool.run(1, train, "no")[0]
    for got, want in zip(half, full, strict=True):
        # These gradients are small whole numbers, exact in fp16; only the weights' own rounding is left.
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# -- several processes --------------------------------------------------------------------------------------


def test_no_sync_leaves_gradients_local(pool: Any) -> None:
    def gradients() -> tuple[float, float]:
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(nn.Linear(1, 1, bias=False))
        x = torch.full((1, 1), float(accelerator.process_index + 1))
        with accelerator.no_sync(model):
            accelerator.backward(model(x).sum())
        local = float(next(model.parameters()).grad)
        accelerator.backward(model(x).sum())
        return local, float(next(model.parameters()).grad)

    assert pool.run(2, gradients) == [(1.0, 3.0), (2.0, 3.0)]


def test_operations_between_ranks(pool: Any) -> None:
    def operate() -> dict[str, Any]:
        accelerator = Accelerator(cpu=True)
        rank = accelerator.process_index
        mine = torch.full((rank + 1,), rank)
        padded = accelerator.pad_across_processes(mine, pad_index=-1)
        with accelerator.split_between_processes(list("abcde")) as part:
            share = list(part)
        with accelerator.split_between_processes(list("abcde"), apply_padding=True) as part:
            filled = list(part)
        return {
            "gather": accelerator.gather({"x": [torch.tensor([rank])]})["x"][0].tolist(),
            "sum": accelerator.reduce(torch.tensor([rank, 1])).tolist(),
            "mean": accelerator.reduce(torch.tensor([2.0 * rank]), "mean", 10).tolist(),
            "padded": padded.tolist(),
            "share": share,
            "filled": filled,
        }

    first, second = pool.run(2, operate)
    assert first["gather"] == second["gather"] == [0, 1]
    assert first["sum"] == second["sum"] == [1, 2]
    assert first["mean"] == second["mean"] == [10.0]
    assert (first["padded"], second["padded"]) == ([0, -1], [1, 1])
    assert (first["share"], second["share"]) == (["a", "b", "c"], ["d", "e"])
    assert (first["filled"], second["filled"]) == (["a", "b", "c"], ["d", "e", "e"])


def test_both_spellings_of_the_local_rank_contradict_each_other(pool: Any) -> None:
    def both() -> None:
        Accelerator(cpu=True).on_local_process(local_process_index=0, local_process_idx=1)

    (error,) = pool.failures(1, both)
    assert isinstance(error, ConfigError)
    assert "is a second name of local_process_index" in str(error)


def test_decorators_and_order(pool: Any, tmp_path: Any) -> None:
    def decorated(log: str) -> dict[str, Any]:
        accelerator = Accelerator(cpu=True)

        def who() -> int:
            return accelerator.process_index

        with accelerator.main_process_first(), Path(log).open("a") as file:
            file.write(f"{accelerator.process_index} ")
        accelerator.wait_for_everyone()
        return {
            "main": accelerator.on_main_process(who)(),
            "called": accelerator.on_main_process()(who)(),
            "local": accelerator.on_local_main_process(who)(),
            "last": accelerator.on_last_process(who)(),
            "one": accelerator.on_process(process_index=1)(who)(),
            "idx": accelerator.on_local_process(local_process_idx=1)(who)(),
            "index": accelerator.on_local_process(who, local_process_index=0)(),
        }

    log = tmp_path / "order"
    first, second = pool.run(2, decorated, str(log))
    assert first == {"main": 0, "called": 0, "local": 0, "last": None, "one": None, "idx": None, "index": 0}
    assert second == {
        "main": None,
        "called": None,
        "local": None,
        "last": 1,
        "one": 1,
        "idx": 1,
        "index": None,
    }
    assert log.read_text().split() == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1 * 0.5**2),
        ({"split_batches": True}, 0.1 * 0.5),
        ({"step_scheduler_with_optimizer": False}, 0.1 * 0.5),
    ],
    ids=str,
)
def test_scheduler_steps_as_documented(options: dict[str, Any], expected: float, pool: Any) -> None:
    def rate() -> float:
        accelerator = Accelerator(cpu=True, **options)
        model, optimizer, scheduler, _ = parts()
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        accelerator.backward(model(torch.ones(2, 4)).sum())
        optimizer.step()
        scheduler.step()
        return scheduler.get_last_lr()[0]

    assert pool.run(2, rate) == [pytest.approx(expected)] * 2


def test_the_scheduler_trap_is_said_once_on_the_main_process(pool: Any) -> None:
    def notes() -> list[str]:
        import logging

        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("accel.prepare_api").addHandler(handler)
        accelerator = Accelerator(cpu=True)
        for _ in range(3):
            accelerator.prepare(*parts())
            accelerator.prepare(*parts())
            accelerator.free_memory()
        logging.getLogger("accel.prepare_api").removeHandler(handler)
        return messages

    main, other = pool.run(2, notes)
    assert len(main) == 1
    assert "moves 2 steps per optimizer step" in main[0]
    assert "step_scheduler_with_optimizer=False" in main[0]
    assert other == []
    assert pool.run(1, notes) == [[]]


def test_settings_reach_the_container_and_the_group(pool: Any) -> None:
    def look() -> tuple[bool, float]:
        from datetime import timedelta

        from accel_state import process

        accelerator = Accelerator(
            cpu=True,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timedelta(seconds=123)),
            ],
        )
        model = accelerator.prepare(parts()[0])
        return model.find_unused_parameters, process.start().timeout.total_seconds()

    assert pool.run(2, look) == [(True, 123.0)] * 2


def test_evaluation_mode_needs_no_container(pool: Any) -> None:
    def kind() -> list[str]:
        accelerator = Accelerator(cpu=True)
        prepared = (
            accelerator.prepare_model(parts()[0], evaluation_mode=True),
            accelerator.prepare(parts()[0]),
        )
        return [type(model).__name__ for model in prepared]

    assert pool.run(2, kind) == [["Linear", "SharedModel"]] * 2


def test_unwrap_returns_the_model_that_was_given(pool: Any) -> None:
    def same() -> bool:
        accelerator = Accelerator(cpu=True)
        model = parts()[0]
        return accelerator.unwrap_model(accelerator.prepare(model)) is model

    assert pool.run(1, same) + pool.run(2, same) == [True] * 3


def test_sync_each_batch_synchronises_inside_the_window(pool: Any) -> None:
    def gradients(each: bool) -> list[float]:
        plugin = GradientAccumulationPlugin(num_steps=2, sync_each_batch=each)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
        model = accelerator.prepare(nn.Linear(1, 1, bias=False))
        x = torch.full((1, 1), float(accelerator.process_index + 1))
        seen = []
        for _ in range(2):
            with accelerator.accumulate(model):
                accelerator.backward(model(x).sum())
                seen.append(float(next(model.parameters()).grad))
        return seen

    assert pool.run(2, gradients, True) == [[0.75, 1.5], [0.75, 1.5]]
    assert pool.run(2, gradients, False) == [[0.5, 1.5], [1.0, 1.5]]
