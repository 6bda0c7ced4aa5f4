"""``Accelerator.save`` and the documented utilities, by their documented names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import accel
from accel import Accelerator, utils
from accel_core.config import ProjectConfiguration


@pytest.mark.world(4)
@pytest.mark.parametrize("everywhere", [False, True])
def test_one_process_saves_and_all_can_load(pool: Any, world: int, everywhere: bool, tmp_path: Path) -> None:
    def run() -> list[float]:
        accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(save_on_each_node=everywhere))
        mine = tmp_path / f"state.{accelerator.process_index}"
        accelerator.save({"w": torch.full((2,), float(accelerator.process_index))}, mine)
        accelerator.wait_for_everyone()
        shared: list[float] = utils.load(tmp_path / "state.0")["w"].tolist()
        return shared

    # Two machines with two processes each.
    env = [
        {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": str(rank // 2)}
        for rank in range(4)
    ]
    assert pool.run(world, run, env=env) == [[0.0, 0.0]] * 4
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == (["state.0", "state.2"] if everywhere else ["state.0"])


DOCUMENTED = {
    "broadcast": ["tensor", "from_process"],
    "broadcast_object_list": ["object_list", "from_process"],
    "concatenate": ["data", "dim"],
    "convert_outputs_to_fp32": ["model_forward"],
    "convert_to_fp32": ["tensor"],
    "gather": ["tensor"],
    "gather_object": ["object"],
    "get_grad_scaler": ["distributed_type", "kwargs"],
    "get_mixed_precision_context_manager": ["native_amp", "autocast_kwargs"],
    "listify": ["data"],
    "pad_across_processes": ["tensor", "dim", "pad_index", "pad_first"],
    "recursively_apply": ["func", "data", "args", "test_type", "error_on_other_type", "kwargs"],
    "reduce": ["tensor", "reduction", "scale"],
    "send_to_device": ["tensor", "device", "non_blocking", "skip_keys"],
    "slice_tensors": ["data", "tensor_slice", "process_index", "num_processes"],
    "is_bf16_available": ["ignore_tpu"],
    "is_mps_available": ["min_version"],
    "is_npu_available": ["check_device"],
    "is_torch_version": ["operation", "version"],
    "is_torch_xla_available": ["check_is_tpu", "check_is_gpu"],
    "is_xpu_available": ["check_device"],
    "patch_environment": ["kwargs"],
    "clear_environment": [],
    "write_basic_config": ["mixed_precision", "save_location"],
    "set_numa_affinity": ["local_process_index", "verbose"],
    "environment.override_numa_affinity": ["local_process_index", "verbose"],
    "save": ["obj", "f", "save_on_each_node", "safe_serialization"],
    "load": ["f", "map_location", "kwargs"],
    "wait_for_everyone": [],
    "set_seed": ["seed", "device_specific", "deterministic"],
    "synchronize_rng_state": ["rng_type", "generator"],
    "synchronize_rng_states": ["rng_types", "generator"],
    "install_xla": ["upgrade"],
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_utilities_have_their_names_and_parameters(name: str) -> None:
    thing: Any = utils
    for part in name.split("."):
        thing = getattr(thing, part)
    # What is ours is given by keyword only.
    found = [
        each.name
        for each in inspect.signature(thing).parameters.values()
        if each.kind is not each.KEYWORD_ONLY or each.name in DOCUMENTED[name]
    ]
    assert found == DOCUMENTED[name]


def test_documented_places_hold_the_same_things() -> None:
    for place in (utils.operations, utils.random, utils.environment, utils.imports, utils.versions):
        for name in place.__all__:
            if name in utils.__all__:
                assert getattr(place, name) is getattr(utils, name)
    assert accel.utils.environment.patch_environment is utils.patch_environment


@pytest.mark.parametrize(
    "name",
    [
        "AutocastKwargs",
        "DDPCommunicationHookType",
        "DataLoaderConfiguration",
        "DistributedDataParallelKwargs",
        "DistributedType",
        "GradScalerKwargs",
        "InitProcessGroupKwargs",
        "ProfileKwargs",
        "find_executable_batch_size",
        "synchronize_rng_states",
    ],
)
def test_what_the_documents_import_from_the_top_is_there(name: str) -> None:
    assert name in accel.__all__
    assert getattr(accel, name) is getattr(utils, name)
