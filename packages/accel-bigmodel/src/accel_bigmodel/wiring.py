"""Which module of a model computes where, what of it is offloaded, and the hooks that make it so."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from accel_core.errors import CheckpointError

from .guard import guard, hooks_of
from .hooks.align import AlignDevicesHook, same_shape
from .hooks.attach import taken_whole
from .hooks.base import SequentialHook
from .hooks.forward import add_hook_to_module, remove_hook_from_module
from .offload.block import like
from .offload.lane import Lane
from .offload.loader import PrefixedDataset
from .offload.tied import TiedTensors
from .sources import Layered
from .tensors import all_tensors, moved, owner_of, refresh


class Away:
    """The place of weights that come for the time of a forward."""


AWAY = Away()
Place = torch.device | Away
Places = Mapping[str, Place]
"""Where modules and tensors are kept, by name; a name stands for all inside that has no entry of its own."""
_MOST_SHOWN = 5


@dataclass(slots=True)
class Unit:
    """A module that gets a hook: ``whole`` if its hook serves what is inside, too.

    ``device``: where it computes. ``away``, ``here``: its tensors that are offloaded, and those that are not.
    ``returns``: its output goes to where its input came from.
    """

    name: str
    module: nn.Module
    whole: bool
    device: torch.device
    returns: bool = False
    away: list[str] = field(default_factory=list)
    here: list[str] = field(default_factory=list)

    def full(self, name: str) -> str:
        """Return the name of a tensor in the model."""
        return f"{self.name}.{name}" if self.name else name


class Wiring:
    """The hooks of one model, planned before anything is changed.

    ``places``: as `Places`. ``main``: where offloaded parts compute. ``offloaded``: their weights.
    ``preload``: classes whose modules are taken whole. What has no place is left as it is.

    Raises CheckpointError for tensors without data that ``offloaded`` does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Places,
        main: torch.device,
        offloaded: Mapping[str, torch.Tensor],
        *,
        offload_buffers: bool = False,
        preload: Collection[str] = (),
    ) -> None:
        self.model = model
        self.offload_buffers = offload_buffers
        self._main = main
        self._places = places
        self._preload = frozenset(preload)
        ties = _ties(model)
        self._names = {name: group for group in ties for name in group}
        self.tied = TiedTensors(ties)
        self.units: list[Unit] = []
        # Containers that are never called: no hook could bring their tensors, so these stay.
        self.loose: list[Unit] = []
        self._inner: set[int] = set()
        self._plan(model, "", set(), None, main)
        if len({unit.device for unit in self.units}) == 1:
            # Inputs are where they belong from the start, and stay there.
            self.units = [unit for unit in self.units if unit.away or unit.here or unit.module is model]
        self.source = self._complete(offloaded)

    # The plan

    def _plan(
        self, module: nn.Module, name: str, seen: set[int], around: Unit | None, near: torch.device
    ) -> None:
        """Append the units inside; ``around``: the nearest one that has weights beside modules.

        ``near``: where the nearest module that is called computes.
        """
        if id(module) in seen and id(module) not in self._inner:
            return
        seen.add(id(module))
        # Called from elsewhere too, what is inside of a whole one needs a hook of its own.
        self._inner.discard(id(module))
        is_root = module is self.model
        if next(all_tensors(module), None) is None and not is_root:
            return
        whole = bool(module._modules) and taken_whole(module, self._preload)
        own = [each for each, _ in all_tensors(module, recurse=whole)]
        # What lies in containers is used by the module around them.
        beside = own or list(_held(module, ""))
        place = self._place(name)
        runs = is_root or _runs(module)
        unit = Unit(name, module, whole, self._device(place, name, beside) if runs else near)
        self._sort(unit, own)
        if is_root or (runs and (beside or place is not None)):
            # What modules inside return has to come to where the weights beside them are.
            unit.returns = is_root or (around is not None and around.device != unit.device)
            self.units.append(unit)
            around = unit if beside else None
        elif own:
            unit.here, unit.away = unit.here + unit.away, []
            self.loose.append(unit)
        if whole:
            inner = {id(each) for each in module.modules()} - seen
            self._inner |= inner
            seen |= inner
            return
        for key, child in module.named_children():
            self._plan(child, f"{name}.{key}" if name else key, seen, around, unit.device if runs else near)

    def _device(self, place: Place | None, name: str, own: list[str]) -> torch.device:
        if place is None and own:
            place = self._tensor_place(f"{name}.{own[0]}" if name else own[0])
        return place if isinstance(place, torch.device) else self._main

    def _place(self, name: str) -> Place | None:
        """Return the entry of a name, or of the nearest module around it."""
        while name and name not in self._places:
            name = name.rpartition(".")[0]
        return self._places.get(name)

    def _tensor_place(self, full: str) -> Place | None:
        found = self._place(full)
        if found is None:
            # Maps name what is tied once.
            others = (self._place(other) for other in self._names.get(full, ()))
            found = next((each for each in others if each is not None), None)
        return found

    def _sort(self, unit: Unit, names: list[str]) -> None:
        """Note which tensors of a unit are offloaded, and which are not."""
        stay: set[str] = set()
        if not self.offload_buffers:
            stay.update(name for name, _ in all_tensors(unit.module, recurse=unit.whole, parameters=False))
        for name in names:
            place = self._tensor_place(unit.full(name))
            if place is not None:
                (unit.here if name in stay or place == unit.device else unit.away).append(name)

    def _complete(self, offloaded: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the offloaded weights, and with them what they lack and the model has."""
        own: dict[str, torch.Tensor] = {}
        lost: list[str] = []
        for unit in [*self.units, *self.loose]:
            away = set(unit.away)
            for name in [*unit.away, *unit.here]:
                full = unit.full(name)
                tensor = _tensor(unit, name)
                spelled = self.tied.spelled(full, offloaded)
                known = spelled in offloaded
                if tensor.device.type == "meta" and not known:
                    lost.append(full)
                elif name in away and known:
                    same_shape(tensor, offloaded, spelled, repr(full))
                elif name in away:
                    place = self._tensor_place(full)
                    where = place if isinstance(place, torch.device) else torch.device("cpu")
                    own[full] = moved(tensor, where).detach()
        if lost:
            rest = f" and {len(lost) - _MOST_SHOWN} more" if len(lost) > _MOST_SHOWN else ""
            raise CheckpointError(
                f"There are no weights for {', '.join(map(repr, lost[:_MOST_SHOWN]))}{rest}",
                where=f"{type(self.model).__name__}, which was not changed",
                fix="load a checkpoint that has them, or give them: state_dict, or offload_index",
            )
        return Layered(own, offloaded) if own else offloaded

    # The change

    def attach(self, skip_keys: str | list[str] | None = None, *, hooks: bool = True) -> None:
        """Put all weights where they belong, and the hooks on their modules, unless ``hooks`` is False."""
        # Made inside torch.inference_mode, tensors could never be used outside of it.
        with torch.inference_mode(mode=False):
            self._settle()
        if not hooks:
            return
        lanes: dict[torch.device, Lane] = {}
        for unit in self.units:
            prefix = f"{unit.name}." if unit.name else ""
            hook = AlignDevicesHook(
                unit.device,
                offload=bool(unit.away),
                io_same_device=unit.returns,
                weights_map=PrefixedDataset(self.source, prefix) if unit.away else None,
                offload_buffers=self.offload_buffers,
                place_submodules=unit.whole,
                skip_keys=skip_keys,
                tied_params_map=self.tied if unit.away else None,
            )
            # Also what has no place: all but the offloaded tensors.
            hook.resident = frozenset(_own(unit)).difference(unit.away)
            if unit.away:
                if unit.device not in lanes:
                    lanes[unit.device] = Lane(unit.device)
                hook.lane = lanes[unit.device]
                # A part of the model may not be moved or cast either.
                guard(unit.module)
            add_hook_to_module(unit.module, hook, append=True)

    def _settle(self) -> None:
        """Move what stays: a tensor that several modules share is one tensor on each device."""
        shared: dict[tuple[str, torch.device], torch.Tensor] = {}
        for unit in [*self.units, *self.loose]:
            for name in unit.here:
                owner, key, table = owner_of(unit.module, name)
                group = self.tied.group(unit.full(name))
                if group is None:
                    table[key] = self._settled(unit, name, table[key])
                else:
                    spot = (group, unit.device)
                    if spot not in shared:
                        shared[spot] = self._settled(unit, name, table[key])
                        self._share(group, unit.device, shared[spot])
                    table[key] = shared[spot]
                refresh(owner)

    def _share(self, group: str, device: torch.device, tensor: torch.Tensor) -> None:
        """Let offloaded modules that are tied to a tensor find it where it stays."""
        self.tied.acquire(group, device, lambda: tensor)
        self.tied.restored(group, device, lambda: tensor)

    def _settled(self, unit: Unit, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "meta":
            return tensor if tensor.device == unit.device else moved(tensor, unit.device)
        value = self.source[self.tied.spelled(unit.full(name), self.source)]
        return like(tensor, value.to(unit.device))


def _tensor(unit: Unit, name: str) -> torch.Tensor:
    _, key, table = owner_of(unit.module, name)
    found: torch.Tensor = table[key]
    return found


def _own(unit: Unit) -> list[str]:
    return [name for name, _ in all_tensors(unit.module, recurse=unit.whole)]


def _held(module: nn.Module, name: str) -> Iterator[str]:
    """Yield the names of tensors in containers of ``module``."""
    for key, child in module.named_children():
        if not _runs(child):
            inside = f"{name}{key}."
            yield from (inside + each for each, _ in all_tensors(child, recurse=False))
            yield from _held(child, inside)


def _runs(module: nn.Module) -> bool:
    """Tell whether calling ``module`` is how it is used; containers are mostly walked through."""
    return isinstance(module, ParametrizationList) or not isinstance(
        module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    )


def _ties(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in all_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def unhook(model: nn.Module) -> None:
    """Take the hooks of an earlier dispatch away, and leave all others."""
    for module in model.modules():
        hooks = list(hooks_of(module))
        others = [each for each in hooks if not isinstance(each, AlignDevicesHook)]
        if len(others) == len(hooks):
            continue
        remove_hook_from_module(module)
        if others:
            add_hook_to_module(module, others[0] if len(others) == 1 else SequentialHook(*others))


__all__ = ["AWAY", "Away", "Place", "Places", "Unit", "Wiring", "unhook"]
