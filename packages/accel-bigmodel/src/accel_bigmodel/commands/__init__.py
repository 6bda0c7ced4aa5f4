"""Sub-commands of ``accel``: imported when they are named, without torch where they can do without."""
