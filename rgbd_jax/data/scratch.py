"""Memory that is overwritten frame after frame: fresh pages for every frame take as long as the arithmetic on it."""

import numpy as np
from numpy.typing import DTypeLike


class Scratch:
    """Arrays by their use, for one thread; each is valid until the same use is taken again."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> np.ndarray:
        """Returns an array with arbitrary contents, the same one as long as shape and dtype stay the same."""
        array = self._arrays.get(use)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self._arrays[use] = np.empty(shape, dtype)
        return array
