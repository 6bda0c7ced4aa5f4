"""A program: peft on models that are offloaded here. ``python offloaded_lora.py FOLDER`` prints what holds.

peft asks for its own name of this software, which this process gives it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import accel_bigmodel as big


def alias() -> None:
    """Let peft find the names that it imports."""
    # First: it would look for an installed distribution of that name.
    import transformers.modeling_utils  # noqa: F401

    hooks = [
        "AlignDevicesHook",
        "add_hook_to_module",
        "remove_hook_from_module",
        "remove_hook_from_submodules",
    ]
    ours = {
        "accelerate": ["dispatch_model", "infer_auto_device_map"],
        "accelerate.hooks": hooks,
        "accelerate.utils": ["get_balanced_memory", "named_module_tensors", "offload_state_dict"],
        "accelerate.utils.imports": [],
        "accelerate.utils.memory": [],
        "accelerate.utils.dataclasses": [],
    }
    for place, names in ours.items():
        module = ModuleType(place)
        module.__spec__ = ModuleSpec(place, None)
        module.__path__ = []  # type: ignore[attr-defined]
        for name in names:
            setattr(module, name, getattr(big, name))
        for name in ("is_npu_available", "is_xpu_available", "is_mlu_available", "is_bf16_available"):
            setattr(module, name, lambda: False)
        module.clear_device_cache = module.get_module_class_from_name = None  # type: ignore[attr-defined]
        module.FullyShardedDataParallelPlugin = object  # type: ignore[attr-defined]
        module.__version__ = "1.13.0"  # type: ignore[attr-defined]
        sys.modules[place] = module
        parent, _, key = place.rpartition(".")
        if parent:
            setattr(sys.modules[parent], key, module)


class Net(nn.Module):
    """Two blocks between an embedding and a head."""

    _no_split_modules: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 9)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        out: torch.Tensor = self.head(self.blocks(self.embed(ids)))
        return out


def net() -> Net:
    """Return the same model every time."""
    torch.manual_seed(0)
    return Net().eval()


IDS = torch.tensor([[1, 2, 3]])
MAP = {"embed": "cpu", "blocks.0": "disk", "blocks.2": "cpu", "head": "disk"}


def show(name: str, model: nn.Module, expected: torch.Tensor) -> None:
    """Print whether a model answers as expected."""
    with torch.no_grad():
        print(name, torch.equal(model(IDS), expected), flush=True)


def main(folder: Path) -> None:
    """Compare with peft on the same model in memory."""
    import peft

    def lora() -> Any:
        model = net()
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["0", "2", "head"], r=2, init_lora_weights=False)
        return peft.get_peft_model(model, config).eval()

    plain = lora()
    with torch.no_grad():
        expected = plain(IDS)
    plain.save_pretrained(folder / "adapter")
    merged = plain.merge_and_unload()(IDS)
    longer = {f"base_model.model.{name}": place for name, place in MAP.items()}
    ways: dict[str, Callable[[Any], Any]] = {
        "cpu": lambda model: big.cpu_offload(model, offload_buffers=True),
        "disk": lambda model: big.disk_offload(model, folder / "disk"),
        "map": lambda model: big.dispatch_model(model, longer, offload_dir=folder / "map"),
    }
    for name, offload in ways.items():
        model = offload(lora())
        show(f"{name} adapted", model, expected)
        model = model.merge_and_unload()
        show(f"{name} merged", model, merged)
        big.remove_hook_from_submodules(model)
        show(f"{name} brought back", model, merged)
    base = big.dispatch_model(net(), MAP, offload_dir=folder / "base")
    found = peft.PeftModel.from_pretrained(
        base, folder / "adapter", device_map=longer, offload_folder=str(folder / "again")
    )
    found.eval()
    show("loaded", found, expected)
    print("offloaded", sum(big.has_offloaded_params(each) for each in found.modules()), flush=True)
    show("loaded and merged", found.merge_and_unload(), merged)


if __name__ == "__main__":
    alias()
    main(Path(sys.argv[1]))
