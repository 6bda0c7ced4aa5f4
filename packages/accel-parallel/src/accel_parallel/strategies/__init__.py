"""One strategy per module; each is an entry point of the group ``accel.strategies``."""
