"""Spatial network (the paper's DSN): a GoogLeNet-like network on every frame, guided by the motion heat map."""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import ClipInput
from rgbd_jax.models.frp import FRP, pool_heat_map
from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import ConvUnit, Inception, LayerNorm, Linear, dtypes_of, scaled
from rgbd_jax.models.ops import max_pool
from rgbd_jax.models.remat import remat

INCEPTION_CHANNELS = {  # name -> channels of the six convolutions, in the order of the paper's network
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"mixed_4b": 3, "mixed_5b": 2}  # window of the stride-2 pooling in front of a block
STRIDE = (1, 2, 2)  # of every pooling between stages
GUIDED_BY_HEAT = ("mixed_3b", "mixed_4b", "mixed_5b")  # blocks after which FRP weights the features


class SpatialNetwork(nnx.Module):
    """Maps each frame to a feature vector; only the pools of the inception blocks mix neighbouring frames."""

    def __init__(self, features: int, config: ConfigDict):
        width, dtypes = config.model.width, dtypes_of(config)
        stem, inputs = scaled(64, width), scaled(192, width)
        self.conv_1a_7x7 = ConvUnit(3, stem, config, (1, 7, 7), spatial_stride=2)
        self.conv_2b_1x1 = ConvUnit(stem, stem, config)
        self.conv_2c_3x3 = ConvUnit(stem, inputs, config, (1, 3, 3))
        for name, channels in INCEPTION_CHANNELS.items():
            widths = [scaled(c, width) for c in channels]
            block = Inception(inputs, widths, config, kernel_shape=(1, 3, 3), pool_window=(3, 3, 3))
            setattr(self, name, block)
            inputs = block.outputs
        self.frp = FRP(dtypes) if config.model.frp else None
        self.stem_remat, self.inception_remat = config.remat.stem, config.remat.inception
        self.projection_norm = LayerNorm(inputs, dtypes)
        self.projection = Linear(inputs, features, dtypes)

    def __call__(self, x: ClipInput, *, train: bool, intermediates: Intermediates) -> Float[Array, "b t c"]:
        """Returns one feature vector a frame.

        Args:
            x: frames and heat maps.
            train: whether BatchNorm uses (and updates) the statistics of the batch.
            intermediates: collects the output of each stage by name.
        """
        heat = x.heat
        if self.frp is not None and heat is None:
            raise ValueError("this network has FRP (config.model.frp=True): it needs heat maps")
        stem = (self.conv_1a_7x7, self.conv_2b_1x1, self.conv_2c_3x3)
        with jax.named_scope("stem"):
            stages = remat(self.stem_remat if train else "none", stem, functools.partial(_stem, train=train), x.clip)
        for name, y in stages.items():
            intermediates.sow(name, y)
        for name in INCEPTION_CHANNELS:
            block = functools.partial(_inception, window=POOL_BEFORE.get(name), train=train)
            with jax.named_scope(name):
                y = remat(self.inception_remat if train else "none", (getattr(self, name),), block, y)
            intermediates.sow(name, y)
            if self.frp is not None and heat is not None and name in GUIDED_BY_HEAT:
                with jax.named_scope("frp"):
                    heat = pool_heat_map(heat, *y.shape[2:4])
                    y = self.frp(y, heat)
                intermediates.sow(f"{name}_guided", y)
        with jax.named_scope("projection"):
            pooled = intermediates.sow("pooled_features", y.mean((2, 3)))  # b t 1024
            features = self.projection(self.projection_norm(pooled))  # b t c
        intermediates.sow("frame_features", features)
        return features


def _stem(
    modules: tuple[ConvUnit, ConvUnit, ConvUnit], clip: Float[Array, "b t h w 3"], *, train: bool
) -> dict[str, Array]:
    """Returns the outputs of the layers before the inception blocks by name; the last is the blocks' input."""
    conv_1a_7x7, conv_2b_1x1, conv_2c_3x3 = modules
    stages = {"conv_1a_7x7": conv_1a_7x7(clip, train=train)}  # b t h/2 w/2 64
    stages["max_pool_2a"] = max_pool(stages["conv_1a_7x7"], (1, 3, 3), STRIDE)  # b t h/4 w/4 64
    narrow = conv_2b_1x1(stages["max_pool_2a"], train=train)
    stages["conv_2c_3x3"] = conv_2c_3x3(narrow, train=train)  # b t h/4 w/4 192
    stages["max_pool_3a"] = max_pool(stages["conv_2c_3x3"], (1, 3, 3), STRIDE)  # b t h/8 w/8 192
    return stages


def _inception(
    modules: tuple[Inception], x: Float[Array, "b t h w i"], *, window: int | None, train: bool
) -> Float[Array, "b t h2 w2 o"]:
    """Applies an inception block, after pooling with stride 2 where a window is given."""
    if window is not None:
        x = max_pool(x, (1, window, window), STRIDE)
    return modules[0](x, train=train)
