"""Spatial network (the paper's DSN): a GoogLeNet-like network on every frame, guided by the motion heat map."""

from typing import Unpack

from flax import nnx
from jaxtyping import Array, Float

from rgbd_jax.models.frp import FRP, pool_heat_map
from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import ConvUnit, Inception, LayerNorm, Linear, Types, max_pool, scaled

INCEPTION_CHANNELS = {  # name -> channels of the six convolutions, in the order of the paper's network
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"mixed_4b": 3, "mixed_5b": 2}  # window of the stride-2 pooling in front of a block
GUIDED_BY_HEAT = ("mixed_3b", "mixed_4b", "mixed_5b")  # blocks whose output FRP weights


class SpatialNetwork(nnx.Module):
    """Maps each frame to a feature vector; only the pools of the inception blocks mix neighbouring frames."""

    def __init__(self, features: int, *, width: float, frp: bool, momentum: float, **types: Unpack[Types]):
        stem, wide = scaled(64, width), scaled(192, width)
        self.conv_1a_7x7 = ConvUnit(3, stem, (1, 7, 7), spatial_stride=2, momentum=momentum, **types)
        self.conv_2b_1x1 = ConvUnit(stem, stem, momentum=momentum, **types)
        self.conv_2c_3x3 = ConvUnit(stem, wide, (1, 3, 3), momentum=momentum, **types)
        inputs = wide
        for name, channels in INCEPTION_CHANNELS.items():
            block = Inception(
                inputs,
                [scaled(c, width) for c in channels],
                kernel_shape=(1, 3, 3),
                pool_window=(3, 3, 3),
                momentum=momentum,
                **types,
            )
            setattr(self, name, block)
            inputs = block.outputs
        self.frp = FRP(**types) if frp else None
        self.projection_norm = LayerNorm(inputs, **types)
        self.projection = Linear(inputs, features, **types)

    def __call__(
        self,
        clip: Float[Array, "b t h w 3"],
        heat: Float[Array, "b t h w 1"] | None,
        *,
        train: bool,
        intermediates: Intermediates,
    ) -> Float[Array, "b t c"]:
        """Returns one feature vector a frame.

        Args:
            clip: normalised frames, (x - 127.5) / 128.
            heat: motion heat maps in [0, 2]; None only for a network without FRP.
            train: whether BatchNorm uses (and moves to) the statistics of the batch.
            intermediates: collects the output of each stage under its name.
        """
        if self.frp is not None and heat is None:
            raise ValueError("this network has FRP (config.model.frp=True): it needs heat maps")
        stage_pool = {"stride": (1, 2, 2)}
        x = self._offer(intermediates, "conv_1a_7x7", self.conv_1a_7x7(clip, train=train))  # b t h/2 w/2 64
        x = self._offer(intermediates, "max_pool_2a", max_pool(x, (1, 3, 3), **stage_pool))  # b t h/4 w/4 64
        x = self.conv_2b_1x1(x, train=train)
        x = self._offer(intermediates, "conv_2c_3x3", self.conv_2c_3x3(x, train=train))  # b t h/4 w/4 192
        x = self._offer(intermediates, "max_pool_3a", max_pool(x, (1, 3, 3), **stage_pool))  # b t h/8 w/8 192
        for name in INCEPTION_CHANNELS:
            if window := POOL_BEFORE.get(name):
                x = max_pool(x, (1, window, window), **stage_pool)
            x = self._offer(intermediates, name, getattr(self, name)(x, train=train))
            if self.frp is not None and heat is not None and name in GUIDED_BY_HEAT:
                heat = pool_heat_map(heat, *x.shape[2:4])
                x = self._offer(intermediates, f"{name}_guided", self.frp(x, heat))
        pooled = x.mean((2, 3))  # b t 1024
        return self._offer(intermediates, "frame_features", self.projection(self.projection_norm(pooled)))  # b t c

    @staticmethod
    def _offer(intermediates: Intermediates, name: str, value: Array) -> Array:
        intermediates.offer(name, value)
        return value
