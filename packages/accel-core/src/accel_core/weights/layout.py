"""How files of weights are called."""

from __future__ import annotations

import re
from dataclasses import dataclass

WEIGHTS_NAME = "pytorch_model.bin"
WEIGHTS_INDEX_NAME = "pytorch_model.bin.index.json"
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one format: of a single file, of the index, and of the files that it leads to."""

    stem: str
    ending: str

    @property
    def single(self) -> str:
        """Return the name of a file that holds everything."""
        return self.stem + self.ending

    @property
    def index(self) -> str:
        """Return the name of the index of several files."""
        return f"{self.single}.index.json"

    def names(self, count: int) -> list[str]:
        """Return the names of ``count`` files that hold everything together."""
        if count == 1:
            return [self.single]
        return [f"{self.stem}-{number:05d}-of-{count:05d}{self.ending}" for number in range(1, count + 1)]

    def is_shard(self, name: str) -> bool:
        """Tell whether ``name`` is that of one of several files."""
        return re.fullmatch(rf"{self.stem}-\d{{5,}}-of-\d{{5,}}{re.escape(self.ending)}", name) is not None

    def owns(self, name: str) -> bool:
        """Tell whether a save in this format may have written a file called ``name``."""
        return name in {self.single, self.index} or self.is_shard(name)


SAFE = Family("model", ".safetensors")
PICKLED = Family("pytorch_model", ".bin")
FAMILIES = (SAFE, PICKLED)
"""In the order in which readers look for them."""

__all__ = [
    "FAMILIES",
    "PICKLED",
    "SAFE",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "Family",
]
