"""``accel estimate-memory``: what a model takes, from the headers of its files."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from typing import Any

_DTYPES = ("float32", "float16", "bfloat16", "fp8", "int8", "int4")
_OPTIMIZERS = (
    *("adafactor", "adagrad", "adam", "adam8bit", "adamw", "adamw8bit"),
    *("lion", "lion8bit", "rmsprop", "sgd", "sgd_momentum"),
)


class EstimateMemory:
    """Estimate what loading, running and training a model takes, without its weights or its code."""

    name = "estimate-memory"
    help = "Show how much memory a model takes, from the headers of its files alone."

    def configure(self, parser: ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add("model_name", metavar="MODEL", help="a name on the Hub, a folder, a file of weights or an index")
        _option(
            parser,
            "library_name",
            choices=("timm", "transformers"),
            help="the library of the model's class, where its repository does not say",
        )
        _option(
            parser,
            "dtypes",
            nargs="+",
            choices=_DTYPES,
            metavar="DTYPE",
            help=f"the types to show (default: {', '.join(_DTYPES)})",
        )
        _option(
            parser,
            "trust_remote_code",
            action="store_true",
            help="run code of the model's repository if its files alone do not say enough; off by default",
        )
        asked = parser.add_argument_group("running and training it")
        _option(asked, "batch_size", type=_count, metavar="N", help="sequences of a batch (default: 1)")
        _option(asked, "sequence_length", type=_count, metavar="N", help="tokens of a sequence")
        _option(
            asked,
            "attention",
            choices=("sdpa", "eager"),
            default="sdpa",
            help="whether attention makes all scores at once, as eager does (default: sdpa)",
        )
        _option(
            asked,
            "optimizer",
            choices=_OPTIMIZERS,
            metavar="NAME",
            help=f"one of {', '.join(_OPTIMIZERS)} (default: adam)",
        )
        _option(
            asked,
            "master_weights",
            action="store_true",
            help="a float32 copy of narrower weights, and optimizer states in float32",
        )
        _option(
            asked,
            "gradient_checkpointing",
            action="store_true",
            help="keep the inputs of layers only, and compute the rest again",
        )
        _option(asked, "shards", type=_count, default=1, metavar="N", help="cut states over N devices")
        _option(
            asked,
            "zero_stage",
            type=int,
            choices=range(4),
            help="what is cut: 1 optimizer states, 2 gradients too, 3 weights too (default: 3)",
        )
        where = parser.add_argument_group("where it is read from")
        _option(where, "revision", metavar="NAME", help="a branch, tag or commit on the Hub")
        _option(where, "offline", action="store_true", help="ask no server: folders and the cache alone")
        add("--json", action="store_true", help="print JSON for programs, in bytes")

    def run(self, arguments: Namespace) -> int:
        """Print the estimate."""
        from ..estimate.report import report

        return report(arguments)


def _option(parser: Any, name: str, **keywords: Any) -> None:
    """Add an option in both of its spellings."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, **keywords)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


__all__ = ["EstimateMemory"]
