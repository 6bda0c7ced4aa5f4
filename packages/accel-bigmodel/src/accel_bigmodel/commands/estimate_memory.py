"""``accel estimate-memory``: what a model takes, from the headers of its files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from .options import count, option, read_from

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
        option(
            parser,
            "library_name",
            choices=("timm", "transformers"),
            help="the library of the model's class, where its repository does not say",
        )
        option(
            parser,
            "dtypes",
            nargs="+",
            choices=_DTYPES,
            metavar="DTYPE",
            help=f"the types to show (default: {', '.join(_DTYPES)})",
        )
        option(
            parser,
            "trust_remote_code",
            action="store_true",
            help="run code of the model's repository if its files alone do not say enough; off by default",
        )
        asked = parser.add_argument_group("running and training it")
        option(asked, "batch_size", type=count, metavar="N", help="sequences of a batch (default: 1)")
        option(asked, "sequence_length", type=count, metavar="N", help="tokens of a sequence")
        option(
            asked,
            "attention",
            choices=("sdpa", "eager"),
            default="sdpa",
            help="whether attention makes all scores at once, as eager does (default: sdpa)",
        )
        option(
            asked,
            "optimizer",
            choices=_OPTIMIZERS,
            metavar="NAME",
            help=f"one of {', '.join(_OPTIMIZERS)} (default: adam)",
        )
        option(
            asked,
            "master_weights",
            action="store_true",
            help="a float32 copy of narrower weights, and optimizer states in float32",
        )
        option(
            asked,
            "gradient_checkpointing",
            action="store_true",
            help="keep the inputs of layers only, and compute the rest again",
        )
        option(asked, "shards", type=count, default=1, metavar="N", help="cut states over N devices")
        option(
            asked,
            "zero_stage",
            type=int,
            choices=range(4),
            help="what is cut: 1 optimizer states, 2 gradients too, 3 weights too (default: 3)",
        )
        read_from(parser)
        add("--json", action="store_true", help="print JSON for programs, in bytes")

    def run(self, arguments: Namespace) -> int:
        """Print the estimate."""
        from ..estimate.report import report

        return report(arguments)


__all__ = ["EstimateMemory"]
