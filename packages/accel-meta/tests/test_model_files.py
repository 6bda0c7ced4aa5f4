"""``save_model``, ``load_model``, ``get_state_dict``: one model over processes, containers and failures."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator, utils
from accel_core.config import ProjectConfiguration
from accel_core.errors import CheckpointError, ConfigError
from accel_core.testing import WorkerError


class Net(nn.Module):
    """An encoder and a decoder that share their matrix, and statistics in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.head(self.norm(self.embed(tokens)))


def values(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def bare() -> dict[str, list[float]]:
    torch.manual_seed(0)
    return values(Net())


@pytest.mark.world(1, 2)
@pytest.mark.parametrize("safe", [True, False])
def test_what_is_saved_is_loaded_on_every_process(pool: Any, world: int, tmp_path: Path, safe: bool) -> None:
    def run() -> tuple[Any, ...]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model, other = accelerator.prepare(Net(), Net())
        accelerator.save_model(model, tmp_path / "saved", max_shard_size=70, safe_serialization=safe)
        seen = names(tmp_path / "saved")
        report = accelerator.load_model(other, tmp_path / "saved")
        inner = accelerator.unwrap_model(other)
        return (
            seen,
            report.ok,
            sorted(report.restored),
            values(inner),
            inner.head.weight is inner.embed.weight,
        )

    stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    files = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    expected = bare()
    told = ([*files, f"{stem}.{ending}.index.json"], True, sorted(expected), expected, True)
    assert pool.run(world, run) == [told] * world


@pytest.mark.world(2)
def test_names_are_those_of_the_model_however_it_is_given(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> list[Any]:
        accelerator = Accelerator(cpu=True, dynamo_backend="eager")
        torch.manual_seed(0)
        model = Net()
        prepared = accelerator.prepare(model)
        given = [
            accelerator.get_state_dict(each) for each in (prepared, model, Net(), nn.DataParallel(Net()))
        ]
        wrapped = accelerator.get_state_dict(prepared, unwrap=False)
        assert given[0]["embed.weight"].data_ptr() == model.embed.weight.data_ptr(), "no copy"
        accelerator.save_model(model, tmp_path / "saved")
        return [*[sorted(each) for each in given], {name.split(".")[0] for name in wrapped}]

    expected = sorted(bare())
    assert pool.run(world, run) == [[expected] * 4 + [{"module"}]] * world


@pytest.mark.world(4)
def test_on_each_machine_one_process_writes(pool: Any, world: int, tmp_path: Path) -> None:
    def run(everywhere: bool) -> None:
        accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(save_on_each_node=everywhere))
        torch.manual_seed(0)
        place = tmp_path / f"{everywhere}" / os.environ["RANK"]
        accelerator.save_model(accelerator.prepare(Net()), place)
        # When it returns, all have left the writing behind.
        assert (tmp_path / f"{everywhere}" / "0" / "model.safetensors").exists()

    env = [
        {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": str(rank // 2)}
        for rank in range(4)
    ]
    for everywhere, writers in ((False, ["0"]), (True, ["0", "2"])):
        pool.run(world, run, everywhere, env=env)
        assert names(tmp_path / f"{everywhere}") == writers


@pytest.mark.world(1, 2)
def test_a_failure_of_the_writer_is_everybodys(pool: Any, world: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def run() -> tuple[str, list[float]]:
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(nn.Linear(1, 1))
        with pytest.raises(CheckpointError) as caught:
            accelerator.save_model(model, tmp_path / "file")
        assert accelerator.gather(torch.ones(1)).tolist() == [1.0] * world, "and the run can go on"
        with pytest.raises(ConfigError, match="max_shard_size='10 gigs'"):
            accelerator.save_model(model, tmp_path / "new", max_shard_size="10 gigs")
        return caught.value.what

    for rank, what in enumerate(pool.run(world, run)):
        assert "is a file, and weights are saved into a folder" in what
        assert what.startswith("Rank 0 could not save the model" if rank else str(tmp_path))


@pytest.mark.world(2)
def test_a_file_that_one_process_cannot_read_is_everybodys_error(
    pool: Any, world: int, tmp_path: Path
) -> None:
    def run() -> tuple[str, bool]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = accelerator.prepare(Net())
        before = values(model)
        own = tmp_path / os.environ["RANK"]
        if accelerator.is_main_process:
            accelerator.save(accelerator.get_state_dict(model), tmp_path / "pytorch_model.bin")
            own.mkdir()
            (tmp_path / "pytorch_model.bin").rename(own / "pytorch_model.bin")
        with pytest.raises(CheckpointError) as caught:
            accelerator.load_model(model, own)
        return caught.value.what, values(model) == before

    told = pool.run(world, run)
    assert told[0][0].startswith("Rank 1 could not read the weights: There is no file")
    assert told[1][0].startswith("There is no file")
    assert all(same for _, same in told)


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.more = nn.Linear(1, 1)
        del self.head


@pytest.mark.world(1, 2)
def test_what_does_not_fit_is_named_and_changes_nothing(pool: Any, world: int, tmp_path: Path) -> None:
    def run() -> tuple[Any, ...]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        small, wide = accelerator.prepare(Net(), Wider())
        accelerator.save_model(small, tmp_path)
        before = values(wide)
        with pytest.raises(CheckpointError, match="nothing was changed") as caught:
            accelerator.load_model(wide, tmp_path)
        same = values(wide) == before
        report = accelerator.load_model(wide, tmp_path, strict=False)
        inner = accelerator.unwrap_model(wide)
        return caught.value.where, same, report, values(inner)["embed.weight"]

    for where, same, report, loaded in pool.run(world, run):
        assert "missing: more.weight, more.bias" in where
        assert "unexpected: head.weight" in where
        assert "norm.bias: (3,) in the checkpoint, (4,) in the model" in where
        assert same
        assert (report.missing, report.unexpected) == (("more.weight", "more.bias"), ("head.weight",))
        assert set(report.mismatched) == {
            f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")
        }
        assert set(report.restored) == {"embed.weight", "norm.num_batches_tracked"}
        assert loaded == bare()["embed.weight"]


def test_a_model_that_is_not_prepared_and_other_dtypes(pool: Any, tmp_path: Path) -> None:
    def run() -> tuple[Any, ...]:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        accelerator.save_model(Net().bfloat16(), tmp_path)
        other = Net()
        accelerator.load_model(other, tmp_path)
        return other.embed.weight.dtype, values(other)["embed.weight"]

    ((dtype, loaded),) = pool.run(1, run)
    assert dtype is torch.float32
    assert loaded == torch.tensor(bare()["embed.weight"]).bfloat16().float().tolist()


class Odd(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_state_that_is_no_tensor_is_refused_by_name(pool: Any, tmp_path: Path) -> None:
    def run() -> None:
        accelerator = Accelerator(cpu=True)
        accelerator.save_model(accelerator.prepare(Odd(1, 1)), tmp_path / "saved")

    with pytest.raises(WorkerError, match="Extra state in the model of unit 'model_0' is a dict") as caught:
        pool.run(1, run)
    assert "_extra_state" in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_documented_parameters() -> None:
    found = {
        name: str(inspect.signature(getattr(Accelerator, name))) for name in ("get_state_dict", "save_model")
    }
    assert "(self, model: 'nn.Module', unwrap: 'bool' = True)" in found["get_state_dict"]
    assert "max_shard_size: 'int | str' = '10GB', safe_serialization: 'bool' = True" in found["save_model"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_NAME", "pytorch_model"),
        ("OPTIMIZER_NAME", "optimizer"),
        ("RNG_STATE_NAME", "random_states"),
        ("SCALER_NAME", "scaler.pt"),
        ("SCHEDULER_NAME", "scheduler"),
        ("WEIGHTS_NAME", "pytorch_model.bin"),
        ("WEIGHTS_INDEX_NAME", "pytorch_model.bin.index.json"),
        ("SAFE_WEIGHTS_NAME", "model.safetensors"),
        ("SAFE_WEIGHTS_INDEX_NAME", "model.safetensors.index.json"),
    ],
)
def test_documented_names_of_files(name: str, value: str) -> None:
    assert getattr(utils, name) == value
