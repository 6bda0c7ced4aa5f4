"""How many bits a number takes, by what files, libraries and people call its type."""

from __future__ import annotations

BITS = {
    **dict.fromkeys(("C128",), 128),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("F4", "I4", "U4"), 4),
}
"""By what safetensors calls a type. Source: https://huggingface.co/docs/safetensors (Format)."""

FLOATS = frozenset(code for code in BITS if code.startswith(("F", "BF", "C")))

WANTED = {"float32": 32, "float16": 16, "bfloat16": 16, "fp8": 8, "int8": 8, "int4": 4}
"""The types that a model can be asked about, widest first."""

__all__ = ["BITS", "FLOATS", "WANTED"]
