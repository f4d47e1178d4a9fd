"""Frame-wise rank pooling attention (FRP): a heat map of motion weights the features of each frame."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rgbd_jax.models.layers import DTypes
from rgbd_jax.models.ops import max_pool


class FRP(nnx.Module):
    """Adds to x a learned mixture of x and of x weighted by the heat map: x + (w0 x + w1 x (heat + 1))."""

    def __init__(self, dtypes: DTypes):
        self.mixture = nnx.Param(jnp.asarray([1.0, 0.0], dtypes.param))
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "b t h w c"], heat: Float[Array, "b t h w 1"]) -> Float[Array, "b t h w c"]:
        """Returns the weighted features; the heat map must have the size of x (see `pool_heat_map`)."""
        keep, attend = self.mixture[...].astype(self.dtype)
        return x * (1 + keep + attend * (heat.astype(self.dtype) + 1))


def pool_heat_map(heat: Float[Array, "b t h w 1"], height: int, width: int) -> Float[Array, "b t h2 w2 1"]:
    """Max-pools a heat map by 2x2 until it is no larger than height x width.

    Sizes are halved rounding up, as the network's strided layers do. The reference rounds down: the same for even
    sizes, while it fails on others.
    """
    while heat.shape[2] > height or heat.shape[3] > width:
        heat = max_pool(heat, (1, 2, 2), (1, 2, 2))
    return heat
