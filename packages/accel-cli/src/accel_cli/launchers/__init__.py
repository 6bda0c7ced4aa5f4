"""Ways to start the processes of a run, published under the entry-point group ``accel.launchers``."""
