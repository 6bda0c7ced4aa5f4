"""The sub-commands that accel-cli publishes under the entry-point group ``accel.commands``."""
