"""Spatial network (the paper's DSN): a GoogLeNet-like network on every frame, guided by the motion heat map."""

from collections.abc import Mapping

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import ClipInput, Intermediates
from rgbd_jax.models.heat_map import FRP, pool_heat_map
from rgbd_jax.models.layers import ConvUnit, Inception, LayerNorm, Linear, dtypes_of, remat, scaled
from rgbd_jax.models.ops import operations
from rgbd_jax.models.ops.windows import Window

INCEPTION_CHANNELS = {  # name -> channels of the six convolutions, in the order of the paper's network
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"mixed_4b": (1, 3, 3), "mixed_5b": (1, 2, 2)}  # window of the stride-2 pooling that a block begins with
CELL = {"mixed_5c": 32, "mixed_4c": 16, "mixed_3c": 8}  # last block of a resolution -> pixels a position
SHOWN_POSITIONS = 7  # along a side: a class-activation map with fewer shows little
GUIDED_BY_HEAT = ("mixed_3b", "mixed_4b", "mixed_5b")  # blocks after which FRP weights the features


class FrameNetwork(nnx.Module):
    """The layers that spatial networks share: a stem, six inception blocks, and a projection to the frame features.

    Inside of it the clips have the axes b t h w c, or on some platforms 1 (b t) h w c. `pool_before` are the windows of
    the stride-2 poolings that inception blocks begin with; `channel_pool` channels of the last block are pooled before
    the projection.
    """

    def __init__(self, features: int, config: ConfigDict, *, pool_before: Mapping[str, Window], channel_pool: int = 1):
        width, dtypes = config.model.width, dtypes_of(config)
        stem, inputs = scaled(64, width), scaled(192, width)
        self.conv_1a_7x7 = ConvUnit(3, stem, config, (1, 7, 7), spatial_stride=2)
        self.conv_2b_1x1 = ConvUnit(stem, stem, config)
        self.conv_2c_3x3 = ConvUnit(stem, inputs, config, (1, 3, 3))
        windows = {"kernel_shape": (1, 3, 3), "pool_window": (3, 3, 3)}
        for name, channels in INCEPTION_CHANNELS.items():
            widths = [scaled(c, width) for c in channels]
            block = Inception(inputs, widths, config, **windows, pool_before=pool_before.get(name))
            setattr(self, name, block)
            inputs = block.outputs
        inputs //= channel_pool
        self.projection_norm = LayerNorm(inputs, dtypes)
        self.projection = Linear(inputs, features, dtypes)
        self.ops = operations(config)
        self.remat_stem, self.remat_inception = config.remat.stem, config.remat.inception

    def inside(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b2 t2 h w c"]:
        """Returns clips with the axes that they have inside of the network."""
        return rearrange(x, "b t h w c -> 1 (b t) h w c") if self.ops.clips_end_to_end else x

    def outside(self, y: Float[Array, "b2 t2 h w c"], frames: int) -> Float[Array, "b t h w c"]:
        """Returns clips of so many frames with the axes that they have outside of the network."""
        return rearrange(y, "1 (b t) h w c -> b t h w c", t=frames) if self.ops.clips_end_to_end else y

    def sow_clips(
        self, intermediates: Intermediates, name: str, y: Float[Array, "b2 t2 h w c"], frames: int
    ) -> Float[Array, "b2 t2 h w c"]:
        """Collects clips and returns them, plus their perturbation if there is one."""
        return self.inside(intermediates.sow(name, self.outside(y, frames)))

    def stem(self, x: Float[Array, "b t h w 3"], intermediates: Intermediates) -> Float[Array, "b2 t2 h2 w2 c"]:
        units = self.conv_1a_7x7, self.conv_2b_1x1, self.conv_2c_3x3
        with jax.named_scope("stem"):
            stages = remat(self.remat_stem, _stem)(*units, self.inside(x))
        for name, y in stages.items():
            self.sow_clips(intermediates, name, y, x.shape[1])
        return y

    def block(
        self, name: str, y: Float[Array, "b2 t2 h w c"], frames: int, intermediates: Intermediates
    ) -> Float[Array, "b2 t2 h2 w2 c2"]:
        """Applies an inception block to clips of so many frames."""
        with jax.named_scope(name):
            block = remat(self.remat_inception, lambda block, x: block(x, frames))
            y = block(getattr(self, name), y)
        return self.sow_clips(intermediates, name, y, frames)

    def project(
        self, y: Float[Array, "b2 t2 h w c"], frames: int, intermediates: Intermediates
    ) -> Float[Array, "b t c2"]:
        with jax.named_scope("projection"):
            pooled = self.outside(y, frames).mean((2, 3))  # b t c
            features = self.projection(self.projection_norm(pooled))  # b t c
        return intermediates.sow("frame_features", features)


class SpatialNetwork(FrameNetwork):
    """Maps each frame to a feature vector; only the pools of the inception blocks mix neighbouring frames."""

    def __init__(self, features: int, config: ConfigDict):
        super().__init__(features, config, pool_before=POOL_BEFORE)
        self.frp = FRP(dtypes_of(config)) if config.model.frp else None

    def __call__(self, x: ClipInput, intermediates: Intermediates) -> Float[Array, "b t c"]:
        """Returns one feature vector a frame; `intermediates` collects the output of each stage by name."""
        heat, frames = x.heat, x.clip.shape[1]
        if self.frp is not None and heat is None:
            raise ValueError("this network has FRP (config.model.frp=True): it needs heat maps")
        heat = None if heat is None else self.inside(heat)
        y = self.stem(x.clip, intermediates)
        for name in INCEPTION_CHANNELS:
            y = self.block(name, y, frames, intermediates)
            if self.frp is not None and heat is not None and name in GUIDED_BY_HEAT:
                with jax.named_scope("frp"):
                    heat = pool_heat_map(heat, *y.shape[2:4])
                    y = self.frp(y, heat)
                y = self.sow_clips(intermediates, f"{name}_guided", y, frames)
        return self.project(y, frames, intermediates)


def explained_block(size: int) -> str:
    """Returns the block whose output a class-activation map is of, for an input of `size` pixels a side.

    It is the last one with at least 7x7 positions, as the paper's network has at its end.
    """
    return next((name for name, cell in CELL.items() if -(-size // cell) >= SHOWN_POSITIONS), "mixed_3c")


def _stem(
    conv_1a_7x7: ConvUnit, conv_2b_1x1: ConvUnit, conv_2c_3x3: ConvUnit, clip: Float[Array, "b2 t2 h w 3"]
) -> dict[str, Array]:
    """Returns the outputs of the layers before the inception blocks by name; the last is the blocks' input."""
    window, stride = (1, 3, 3), (1, 2, 2)
    half, quarter = conv_1a_7x7.before_max_pool(clip, window, stride)  # h/2 w/2 64, h/4 w/4 64
    quarter_2c, eighth = conv_2c_3x3.before_max_pool(conv_2b_1x1(quarter), window, stride)  # h/4 w/4 192, h/8 w/8 192
    return {"conv_1a_7x7": half, "max_pool_2a": quarter, "conv_2c_3x3": quarter_2c, "max_pool_3a": eighth}
