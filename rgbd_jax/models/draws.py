"""Random draws in training: every clip has a key of its own, wherever and with whichever others it is computed."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key


class ClipDraws:
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

    def __call__(self, x: Float[Array, "b *rest"], draws: ClipDraws | None) -> Float[Array, "b *rest"]:
        """Returns x with values dropped; as it is without draws."""
        if draws is None or not self.share:
            return x
        keys = draws.next_keys()
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.share, x.shape[1:]))(keys)  # b *rest
        return jnp.where(kept, x / (1 - self.share), 0)
