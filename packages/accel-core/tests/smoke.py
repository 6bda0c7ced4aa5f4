"""What this package does alone, run from its wheel with only what it declares: no torch."""

from accel_core import ConfigError, Fault, get_logger, map_nested

assert map_nested(lambda value: value + 1, {"a": [1, (2, 3)]}) == {"a": [2, (3, 4)]}

get_logger("smoke").info("nothing is set up yet, and this does not raise")

text = str(
    ConfigError("Settings", [Fault("size", 0, "must be at least 1"), Fault("kind", "x", "is unknown")])
)
assert "size" in text, text
assert "kind" in text, text
