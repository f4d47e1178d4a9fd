"""Random number generators of a batch in training: a key for each clip."""

import jax
from jaxtyping import Array, Key


class ClipRngs:
    """A stream of keys for the clips of a batch.

    Draws for a clip depend on its own key alone: they are the same on any number of devices and processes, and
    whichever clips share the batch.

    Args:
        keys: a key for each clip.
    """

    def __init__(self, keys: Key[Array, "b"]):
        self._keys = keys
        self._count = 0

    def next_keys(self) -> Key[Array, "b"]:
        """Returns new keys, one for each clip."""
        self._count += 1
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._keys, self._count)

    def next_keys_of(self, layers: int) -> Key[Array, "layers b"]:
        """Returns new keys, one for each layer and clip."""
        return jax.vmap(lambda key: jax.random.split(key, layers), out_axes=1)(self.next_keys())
