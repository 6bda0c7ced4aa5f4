"""What is quantized, how, and what is left as it is: settings, one class for each library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from accel_core.config import Config, checks
from accel_core.errors import Fault

_SHORT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BNB_TYPES = ("fp4", "nf4")
"""The 4-bit types of bitsandbytes."""
TORCHAO_TYPES = ("int8", "int4")
"""The types of weights that torchao is used for here."""
TORCHAO_PACKINGS = ("plain", "tile_packed_to_4d")
"""How torchao lays out int4."""


@dataclass(frozen=True, slots=True)
class BnbQuantizationConfig(Config):
    """Linear layers as those of bitsandbytes: one of ``load_in_8bit`` and ``load_in_4bit``.

    dtypes are those of torch, or their names, long (``"bfloat16"``) or short (``"fp32"``, ``"fp16"``,
    ``"bf16"``). ``torch_dtype`` is the one of all that is not quantized; None stands for float16 with 8 bits
    and for ``bnb_4bit_compute_dtype`` with 4. Raises ConfigError with everything that is wrong.
    """

    load_in_8bit: bool = False
    """Weights as int8 with a scale for each row: https://arxiv.org/abs/2208.07339."""
    llm_int8_threshold: float = 6.0
    """Columns of an input with a value from here on are computed in its own dtype; 0: none. 8 bits only."""
    load_in_4bit: bool = False
    """Weights as 4 bits with a scale for each block of 64: https://arxiv.org/abs/2305.14314."""
    bnb_4bit_quant_type: str = "fp4"
    """What the 4 bits mean: ``"fp4"``, or ``"nf4"``, which suits weights that are normally distributed."""
    bnb_4bit_use_double_quant: bool = False
    """Quantize the scales, too."""
    bnb_4bit_compute_dtype: torch.dtype | str = "fp16"
    """What weights become again when a 4-bit layer computes."""
    torch_dtype: torch.dtype | str | None = None
    skip_modules: list[str] | None = None
    """Modules that keep their weights, by parts of their names; None: the output head and tied weights."""
    keep_in_fp32_modules: list[str] | None = None
    """Modules that keep their weights, in float32."""

    quantizer: ClassVar[str] = "bitsandbytes"
    """The name of what does it, in the entry points ``accel.quantizers``."""

    def __post_init__(self) -> None:
        _as_dtype(self, "bnb_4bit_compute_dtype")
        if self.torch_dtype is None:
            default = self.bnb_4bit_compute_dtype if self.load_in_4bit is True else torch.float16
            object.__setattr__(self, "torch_dtype", default)
        _as_dtype(self, "torch_dtype")
        Config.__post_init__(self)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.flags(self, "load_in_8bit", "load_in_4bit", "bnb_4bit_use_double_quant")
        if self.load_in_8bit is True and self.load_in_4bit is True:
            yield Fault("load_in_4bit", True, "cannot be given beside load_in_8bit=True", "give one of them")
        if self.load_in_8bit is False and self.load_in_4bit is False:
            yield Fault("load_in_8bit", False, "and load_in_4bit=False: nothing to do", "make one True")
        if self.llm_int8_threshold != 0:
            yield from checks.number(self, "llm_int8_threshold", above=0.0)
        yield from checks.one_of(self, "bnb_4bit_quant_type", BNB_TYPES)
        yield from _dtype_faults(self, "bnb_4bit_compute_dtype")
        if self.torch_dtype is not self.bnb_4bit_compute_dtype:
            yield from _dtype_faults(self, "torch_dtype")
        yield from _names_faults(self, "skip_modules", "keep_in_fp32_modules")


@dataclass(frozen=True, slots=True)
class TorchaoQuantizationConfig(Config):
    """Linear layers with the weights of torchao: ``weights`` is ``"int8"`` or ``"int4"``.

    The other fields are as those of `BnbQuantizationConfig`. Raises ConfigError with all that is wrong.
    """

    weights: str = "int8"
    """int8 has a scale for each row, int4 one for each ``group_size`` values of a row."""
    group_size: int = 128
    """32, 64, 128 or 256. int4 only."""
    int4_packing: str = "plain"
    """How torchao lays out int4: ``"plain"`` needs mslk, ``"tile_packed_to_4d"`` a CUDA GPU and bfloat16."""
    torch_dtype: torch.dtype | str | None = None
    """The dtype that weights are quantized from and become again, and of all else; None for bfloat16."""
    skip_modules: list[str] | None = None
    keep_in_fp32_modules: list[str] | None = None

    quantizer: ClassVar[str] = "torchao"
    """The name of what does it, in the entry points ``accel.quantizers``."""

    def __post_init__(self) -> None:
        if self.torch_dtype is None:
            object.__setattr__(self, "torch_dtype", torch.bfloat16)
        _as_dtype(self, "torch_dtype")
        Config.__post_init__(self)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.one_of(self, "weights", TORCHAO_TYPES)
        if isinstance(self.group_size, bool) or self.group_size not in (32, 64, 128, 256):
            yield Fault("group_size", self.group_size, "must be 32, 64, 128 or 256")
        yield from checks.one_of(self, "int4_packing", TORCHAO_PACKINGS)
        yield from _dtype_faults(self, "torch_dtype")
        yield from _names_faults(self, "skip_modules", "keep_in_fp32_modules")


def _as_dtype(owner: Config, name: str) -> None:
    """Replace the name of a dtype by it; what is none stays for the checks to report."""
    value = getattr(owner, name)
    if isinstance(value, str):
        found = _SHORT.get(value, getattr(torch, value.removeprefix("torch."), value))
        object.__setattr__(owner, name, found if isinstance(found, torch.dtype) else value)


def _dtype_faults(owner: Config, name: str) -> Iterator[Fault]:
    value = getattr(owner, name)
    if not (isinstance(value, torch.dtype) and value in _SHORT.values()):
        yield Fault(name, value, "must be float32, float16 or bfloat16, or 'fp32', 'fp16' or 'bf16'")


def _names_faults(owner: Config, *names: str) -> Iterator[Fault]:
    for name in names:
        value = getattr(owner, name)
        listed = isinstance(value, (list, tuple)) and all(isinstance(each, str) and each for each in value)
        if value is not None and not listed:
            yield Fault(name, value, "must be a list of names of modules, or None")


__all__ = [
    "BNB_TYPES",
    "TORCHAO_PACKINGS",
    "TORCHAO_TYPES",
    "BnbQuantizationConfig",
    "TorchaoQuantizationConfig",
]
