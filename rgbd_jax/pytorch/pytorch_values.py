"""From what the pickle of a checkpoint describes to plain values."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from rgbd_jax.pytorch.checkpoint_file import RefusedError
from rgbd_jax.pytorch.pytorch_globals import Constructor, TorchDtype
from rgbd_jax.pytorch.pytorch_tensor import Storage, Tensor

MAX_VALUES = 1_000_000
MAX_DEPTH = 64


class PlainValues:
    """Makes new plain containers with arrays in place of tensors; what was shared is shared again.

    A pickle of a few bytes can describe a value that would fill any memory if it were written out in full (a list that
    holds another one twice, which holds another one twice, ...), and whoever walks it would never end. So values are
    counted as often as they occur, without walking them again.

    Args:
        array: gives the array of a tensor.
    """

    def __init__(self, array: Callable[[Tensor], np.ndarray]):
        self._array = array
        self._count = 0
        self._deepest = 0
        # By id of a container: the new one, how many values it has in full, and how deep it is.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def convert(self, value: Any, depth: int = 0) -> Any:
        """Returns the plain value of what `PickleMachine.load` returned.

        A torch.dtype becomes its name ("torch.float32"), as a torch.device has become its ("cuda:0").

        Raises:
            RefusedError: the value is nested deeper than MAX_DEPTH, contains itself, has more than MAX_VALUES in full,
                or holds something that is no value (a function, say).
        """
        self._add(1, depth)
        kind = type(value)
        if kind in (str, bytes, int, float, bool, type(None)):
            return value
        if kind in (dict, OrderedDict, list, tuple, set):
            return self._container(value, depth)
        if kind is Tensor:
            return self._array(value)
        if kind is Storage:
            return self._array(Tensor(value, value.dtype, 0, (value.length,), (1,)))
        if kind is TorchDtype:
            return f"torch.{value.name}"
        name = value.name if kind is Constructor else f"a {kind.__name__}"
        raise RefusedError(f"the pickle holds {name} as a value, which is not a tensor or plain value; nothing was run")

    def _container(self, value: Any, depth: int) -> Any:
        if id(value) in self._known:
            converted, count, height = self._known[id(value)]
            self._add(count, depth + height)
            return converted
        count_before, deepest_before = self._count, self._deepest
        self._deepest = depth
        if isinstance(value, dict):
            converted = type(value)((key, self.convert(item, depth + 1)) for key, item in value.items())
        else:
            converted = type(value)(self.convert(item, depth + 1) for item in value)
        self._known[id(value)] = converted, self._count - count_before, self._deepest - depth
        self._deepest = max(self._deepest, deepest_before)
        return converted

    def _add(self, count: int, depth: int) -> None:
        self._count += count
        self._deepest = max(self._deepest, depth)
        if self._count > MAX_VALUES or self._deepest > MAX_DEPTH:
            raise RefusedError(
                f"its values are nested deeper than {MAX_DEPTH}, or are more than {MAX_VALUES} when shared ones are "
                f"counted as often as they occur"
            )
