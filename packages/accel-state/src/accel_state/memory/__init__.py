"""Memory: giving it back, telling that there is none left, and finding the batch size that fits."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .batch_size import find_executable_batch_size as find_executable_batch_size
    from .call import BatchSizeCallError as BatchSizeCallError
    from .release import clear_device_cache as clear_device_cache
    from .release import release_memory as release_memory
    from .signs import should_reduce_batch_size as should_reduce_batch_size

_NAMES = {
    "BatchSizeCallError": ".call",
    "clear_device_cache": ".release",
    "find_executable_batch_size": ".batch_size",
    "release_memory": ".release",
    "should_reduce_batch_size": ".signs",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
