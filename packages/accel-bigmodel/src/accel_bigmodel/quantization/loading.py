"""Load a model and quantize its linear layers on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from accel_core import plugins
from accel_core.errors import CheckpointError, ConfigError, Fault
from accel_core.protocols import Quantizer

from ..dispatch import dispatch
from ..planning import resolve_device_map
from ..weights.reader import open_weights
from .again import laid_bare
from .casting import guard_casts
from .filling import Filling
from .placing import Place, Places, main_of
from .selection import Selection, select
from .values import Values, fit, own_tensors, unsaved_on_meta


def load_and_quantize_model(
    model: nn.Module,
    bnb_quantization_config: Any,
    weights_location: str | os.PathLike[str] | None = None,
    device_map: str | int | torch.device | Mapping[str, Place] | None = None,
    no_split_module_classes: Sequence[str] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    offload_state_dict: bool = False,  # noqa: ARG001 - documented
) -> nn.Module:
    """Quantize the linear layers of ``model`` as the settings say; return the same model.

    ``bnb_quantization_config``: a `BnbQuantizationConfig`, a `TorchaoQuantizationConfig`, or the settings
    of another quantizer. ``weights_location``: a folder, file or index with the weights, quantized by the
    same settings or not at all; without one, ``model`` has its weights. With one, ``model`` may have been
    quantized before: then it is loaded again. ``device_map``: as in
    `load_checkpoint_and_dispatch`; None stands for the accelerator of this process, or the CPU. What it says
    is on ``"cpu"`` or ``"disk"`` is quantized, too, and computed where the rest is. Weights on disk stay in
    the files that they are in; those that are changed on the way are written to ``offload_folder``.
    ``offload_state_dict`` is accepted, and not needed: no state is put together in memory.

    Tensors are read, quantized and placed one after the other. The dtype of a quantized model cannot be
    changed. Raises NotInstalledError, ConfigError and CapabilityError for what cannot be done here,
    CheckpointError for weights that do not fit, all before the model is changed.
    """
    quantizer = quantizer_for(bnb_quantization_config)
    with laid_bare(model, from_files=weights_location is not None):
        filling, found = _planned(
            model,
            bnb_quantization_config,
            quantizer,
            weights_location,
            device_map,
            no_split_module_classes,
            max_memory,
            offload_folder,
        )
    offloaded = filling.run()
    if filling.places.scattered:
        dispatch(model, found, main_device=filling.places.main, offloaded=offloaded)
    else:
        model.hf_device_map = found  # type: ignore[assignment]
    quantizer.mark(model)
    guard_casts(model)
    return model


def _planned(
    model: nn.Module,
    config: Any,
    quantizer: Quantizer,
    weights_location: str | os.PathLike[str] | None,
    device_map: Any,
    no_split: Sequence[str] | None,
    max_memory: Mapping[int | str, int | str] | None,
    offload_folder: str | os.PathLike[str] | None,
) -> tuple[Filling, dict[str, Place]]:
    """Return what is ready to fill the model, and the device map; everything that may be wrong is found."""
    selection = select(model, config, quantizer)
    bare = unsaved_on_meta(model)
    if bare:
        raise CheckpointError(
            f"The model has buffers without data that no checkpoint has: {', '.join(bare[:5])}",
            where=type(model).__name__,
            fix="make the skeleton with init_empty_weights(include_buffers=False)",
        )
    source = own_tensors(model) if weights_location is None else open_weights(weights_location)
    values = Values(source, type(model).__name__ if weights_location is None else str(weights_location))
    fit(model, selection, quantizer, values)
    found = _map(model, selection, quantizer, device_map, no_split, max_memory)
    places = Places(found, main_of(found))
    for device in places.devices:
        quantizer.check(device)
    reversible = all(parameter.device.type == "meta" for parameter in model.parameters())
    filling = Filling(model, selection, quantizer, values, places, offload_folder, reversible=reversible)
    filling.check()
    return filling, found


def quantizer_for(config: Any) -> Quantizer:
    """Return what ``config`` names in the entry points ``accel.quantizers``.

    Raises ConfigError for what are no such settings, NotInstalledError, UnknownNameError.
    """
    name = getattr(config, "quantizer", None)
    if isinstance(config, type) or not isinstance(name, str):
        fix = "give a BnbQuantizationConfig or a TorchaoQuantizationConfig"
        raise ConfigError(
            "quantization", [Fault("bnb_quantization_config", config, "are no settings of a quantizer", fix)]
        )
    found: Quantizer = plugins.find(plugins.QUANTIZERS, name)(config)
    return found


def _map(
    model: nn.Module,
    selection: Selection,
    quantizer: Quantizer,
    device_map: Any,
    no_split: Sequence[str] | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> dict[str, Place]:
    """Return the device map, made of the sizes that tensors will have."""
    if device_map is None:
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is None:
            return {"": "cpu"}
        return {"": torch.device(accelerator.type, torch.accelerator.current_device_index())}
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    dtypes = {
        name: selection.dtype_of(name, tensor)
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if tensor.is_floating_point()
    }
    try:
        for first, linear in selection.layers.items():
            weight = torch.empty(
                linear.out_features, linear.in_features, dtype=selection.dtype, device="meta"
            )
            stand_in = quantizer.layer(linear, quantizer.quantize(weight), movable=True)
            for name in selection.names[first]:
                path, _, key = name.rpartition(".")
                children: dict[str, Any] = model.get_submodule(path)._modules
                swapped.append((children, key, children[key]))
                children[key] = stand_in
            for key, part in stand_in.named_parameters(recurse=False):
                if key != "bias":
                    dtypes[f"{first}.{key}"] = part.dtype
        found = resolve_device_map(
            model,
            device_map,
            max_memory=max_memory,
            no_split_module_classes=no_split,
            special_dtypes=dtypes,
        )
    finally:
        for children, key, old in reversed(swapped):
            children[key] = old
    assert found is not None
    return found


__all__ = ["load_and_quantize_model", "quantizer_for"]
