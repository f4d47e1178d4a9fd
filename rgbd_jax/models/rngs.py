"""Random draws in training: every clip has a key of its own, wherever and with whichever others it is computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key


class ClipRngs:
    """A stream of keys for the clips of a batch.

    What is drawn for a clip is a function of its own key alone: the same on any number of devices and processes, and
    whichever clips are computed together.

    Args:
        keys: a key for each clip.
    """

    def __init__(self, keys: Key[Array, "b"]):
        self._keys = keys
        self._count = 0

    def next_keys(self) -> Key[Array, "b"]:
        """Returns a key for each clip, others with every call."""
        self._count += 1
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._keys, self._count)

    def next_keys_of(self, layers: int) -> Key[Array, "layers b"]:
        """Returns a key for each layer and clip, others with every call."""
        return jax.vmap(lambda key: jax.random.split(key, layers), out_axes=1)(self.next_keys())


class Dropout(nnx.Module):
    """Sets a share of the values to zero in training and scales the others up."""

    def __init__(self, share: float):
        self.share = share

    def __call__(self, x: Float[Array, "b *rest"], draws: ClipRngs | None) -> Float[Array, "b *rest"]:
        """Returns x with values dropped; as it is without draws."""
        (kept,) = self.draw(draws, x.shape[1:])
        return self.drop(x, kept)

    def draw(self, draws: ClipRngs | None, *shapes: tuple[int, ...]) -> tuple[Bool[Array, "b *rest"] | None, ...]:
        """Draws which values of several tensors are kept, in one go: a generator is compiled once, not for each.

        Args:
            draws: where the draws come from; None drops nothing.
            shapes: of the tensors, without the clips' axis.

        Returns:
            A mask for each tensor; None where nothing is dropped.
        """
        if draws is None or not self.share:
            return (None,) * len(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        keys = draws.next_keys()
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.share, (sum(sizes),)))(keys)  # b sum
        parts = jnp.split(kept, np.cumsum(sizes)[:-1], axis=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))

    def drop(self, x: Float[Array, "b *rest"], kept: Bool[Array, "b *rest"] | None) -> Float[Array, "b *rest"]:
        """Returns x without what is not kept, scaled up; as it is without a mask."""
        return x if kept is None else jnp.where(kept, x / (1 - self.share), 0)
