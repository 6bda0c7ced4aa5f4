"""``accel device-map``: which parts of a model go where, drawn."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from .options import count, option, read_from

_DTYPES = ("float32", "float16", "bfloat16", "fp8", "int8", "int4")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


class DeviceMap:
    """Plan where the parts of a model go, from the headers of its files."""

    name = "device-map"
    help = "Show which parts of a model go to which device, and why."

    def configure(self, parser: ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add("model_name", metavar="MODEL", help="a folder, a file of weights, an index or a name on the Hub")
        option(
            parser,
            "max_memory",
            nargs="+",
            metavar="DEVICE=SIZE",
            help="limits such as 0=24GiB, 0-3=80GiB, cpu=64GiB (default: what is free on this machine)",
        )
        option(
            parser,
            "strategy",
            choices=_STRATEGIES,
            default="auto",
            help="how to spread a model that fits: evenly (auto, balanced), off the first device "
            "(balanced_low_0), or one device after the other (sequential)",
        )
        option(parser, "dtype", choices=_DTYPES, help="the type to load it in (default: as it is stored)")
        option(
            parser,
            "no_split",
            nargs="+",
            metavar="PATTERN",
            help="modules that stay whole, such as 'model.layers.*' (default: the layers of every stack)",
        )
        option(parser, "offload_buffers", action="store_true", help="offload buffers too")
        option(
            parser,
            "fallback_allocation",
            action="store_true",
            help="where the next part is too large for a device, take the first later ones that fit",
        )
        room = parser.add_argument_group("room beside the weights")
        option(room, "batch_size", type=count, metavar="N", help="sequences at once (default: 1)")
        option(room, "sequence_length", type=count, metavar="N", help="tokens of a sequence")
        option(room, "reserve", metavar="SIZE", default=0, help="more on every device that runs the model")
        shown = parser.add_argument_group("what is shown")
        shown.add_argument("--explain", action="store_true", help="also every part, with the reason")
        shown.add_argument("--json", action="store_true", help="print JSON for programs, sizes in bytes")
        shown.add_argument("--png", metavar="FILE", help="draw it into FILE too (needs matplotlib)")
        shown.add_argument("--html", metavar="FILE", help="write a page into FILE too")
        read_from(parser)

    def run(self, arguments: Namespace) -> int:
        """Print the plan."""
        from ..drawing.command import run

        return run(arguments)


__all__ = ["DeviceMap"]
