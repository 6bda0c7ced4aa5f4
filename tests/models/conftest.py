"""What real libraries warn of while they are imported is theirs: they are imported here, before the tests."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes
    import torchao
    import torchao.quantization
    import transformers
    import transformers.modeling_utils

__all__ = ["bitsandbytes", "torchao", "transformers"]
