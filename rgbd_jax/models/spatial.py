"""Spatial network (the paper's DSN): a GoogLeNet-like network on every frame, guided by the motion heat map."""

import jax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import ClipInput, Intermediates
from rgbd_jax.models.heat_map import FRP, pool_heat_map
from rgbd_jax.models.layers import ConvUnit, Inception, Linear, dtypes_of, layer_norm, remat, scaled
from rgbd_jax.models.ops import max_pool

INCEPTION_CHANNELS = {  # name -> channels of the six convolutions, in the order of the paper's network
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"mixed_4b": (1, 3, 3), "mixed_5b": (1, 2, 2)}  # window of the stride-2 pooling that a block begins with
GUIDED_BY_HEAT = ("mixed_3b", "mixed_4b", "mixed_5b")  # blocks after which FRP weights the features


class SpatialNetwork(nnx.Module):
    """Maps each frame to a feature vector; only the pools of the inception blocks mix neighbouring frames."""

    def __init__(self, features: int, config: ConfigDict):
        width, dtypes = config.model.width, dtypes_of(config)
        stem, inputs = scaled(64, width), scaled(192, width)
        self.conv_1a_7x7 = ConvUnit(3, stem, config, (1, 7, 7), spatial_stride=2)
        self.conv_2b_1x1 = ConvUnit(stem, stem, config)
        self.conv_2c_3x3 = ConvUnit(stem, inputs, config, (1, 3, 3))
        windows = {"kernel_shape": (1, 3, 3), "pool_window": (3, 3, 3)}
        for name, channels in INCEPTION_CHANNELS.items():
            widths = [scaled(c, width) for c in channels]
            block = Inception(inputs, widths, config, **windows, pool_before=POOL_BEFORE.get(name))
            setattr(self, name, block)
            inputs = block.outputs
        self.frp = FRP(dtypes) if config.model.frp else None
        self.projection_norm = layer_norm(inputs, dtypes)
        self.projection = Linear(inputs, features, dtypes)
        self.remat_stem, self.remat_inception = config.remat.stem, config.remat.inception

    def __call__(self, x: ClipInput, intermediates: Intermediates) -> Float[Array, "b t c"]:
        """Returns one feature vector a frame; `intermediates` collects the output of each stage by name."""
        heat = x.heat
        if self.frp is not None and heat is None:
            raise ValueError("this network has FRP (config.model.frp=True): it needs heat maps")
        with jax.named_scope("stem"):
            stages = remat(self.remat_stem, _stem)(self.conv_1a_7x7, self.conv_2b_1x1, self.conv_2c_3x3, x.clip)
        for name, y in stages.items():
            intermediates.sow(name, y)
        for name in INCEPTION_CHANNELS:
            with jax.named_scope(name):
                y = remat(self.remat_inception, Inception.__call__)(getattr(self, name), y)
            intermediates.sow(name, y)
            if self.frp is not None and heat is not None and name in GUIDED_BY_HEAT:
                with jax.named_scope("frp"):
                    heat = pool_heat_map(heat, *y.shape[2:4])
                    y = self.frp(y, heat)
                intermediates.sow(f"{name}_guided", y)
        with jax.named_scope("projection"):
            pooled = intermediates.sow("pooled_features", y.mean((2, 3)))  # b t 1024
            features = self.projection(self.projection_norm(pooled))  # b t c
        return intermediates.sow("frame_features", features)


def _stem(
    conv_1a_7x7: ConvUnit, conv_2b_1x1: ConvUnit, conv_2c_3x3: ConvUnit, clip: Float[Array, "b t h w 3"]
) -> dict[str, Array]:
    """Returns the outputs of the layers before the inception blocks by name; the last is the blocks' input."""
    stages = {"conv_1a_7x7": conv_1a_7x7(clip)}  # b t h/2 w/2 64
    stages["max_pool_2a"] = max_pool(stages["conv_1a_7x7"], (1, 3, 3), (1, 2, 2))  # b t h/4 w/4 64
    stages["conv_2c_3x3"] = conv_2c_3x3(conv_2b_1x1(stages["max_pool_2a"]))  # b t h/4 w/4 192
    stages["max_pool_3a"] = max_pool(stages["conv_2c_3x3"], (1, 3, 3), (1, 2, 2))  # b t h/8 w/8 192
    return stages
