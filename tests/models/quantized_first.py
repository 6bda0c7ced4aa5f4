"""A program: what a fresh process quantizes first is placed by a map. Prints each kind that computes."""

from __future__ import annotations

import test_quantization as parts

from accel_bigmodel import load_and_quantize_model

if __name__ == "__main__":
    for name in ("nested", "nf4", "8bit", "torchao"):
        made = load_and_quantize_model(parts.model(), parts.CONFIGS[name], device_map="auto")
        print(name, bool(parts.output(made).isfinite().all()), flush=True)
