"""UMDR's spatial network: the layers of the first one, with recoupling of channels and frames between its stages."""

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import ClipInput, Intermediates
from rgbd_jax.models.layers import LayerNorm, Linear, at_least_float32, dtypes_of, remat
from rgbd_jax.models.spatial import INCEPTION_CHANNELS, FrameNetwork

QUERY_FEATURES = 16
# Inception block -> window of the stride-2 pooling and number of the recoupling module after it.
STAGE_ENDS = {"mixed_3c": ((1, 3, 3), 1), "mixed_4c": ((1, 2, 2), 2), "mixed_5c": (None, 3)}
RECOUPLINGS = tuple(number for _, number in STAGE_ENDS.values())
CHANNEL_POOL = 2  # neighbouring channels of the last block, of which the larger is kept


class StageRecoupling(nnx.Module):
    """Mixes the channels of each frame by attention (one head a frame, over the channels) and weights the frames."""

    def __init__(self, features: int, config: ConfigDict):
        frames, dtypes = config.clip.frames, dtypes_of(config)
        self.query = Linear(frames, QUERY_FEATURES * frames, dtypes, use_bias=False)
        self.key = Linear(frames, QUERY_FEATURES * frames, dtypes, use_bias=False)
        self.frame_hidden = Linear(frames, 2 * frames, dtypes, use_bias=False)
        self.frame_output = Linear(2 * frames, frames, dtypes, use_bias=False)
        self.frame_norm = LayerNorm(frames, dtypes)
        self.spatial = Linear(frames, features, dtypes)

    def __call__(
        self, x: Float[Array, "b t h w c"]
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "b f"], Float[Array, "b t"]]:
        """Returns the mixed features, the spatial feature (a student of the distillation), and the frame weights."""
        sequence = reduce(x, "b t h w c -> b c t", "mean")
        query, key = (
            rearrange(linear(sequence), "b c (t d) -> b t c d", d=QUERY_FEATURES) for linear in (self.query, self.key)
        )
        scores = jnp.einsum("btid,btjd->btij", query, key) * QUERY_FEATURES**-0.5
        weights = jax.nn.softmax(at_least_float32(scores)).astype(x.dtype)  # b t c c
        mixed = jnp.einsum("btij,bthwj->bthwi", weights, x)
        hidden = jax.nn.gelu(self.frame_hidden(reduce(mixed, "b t h w c -> b t", "mean")), approximate=False)  # b 2t
        excitation = self.frame_norm(self.frame_output(hidden))  # b t
        frame_weights = jax.nn.sigmoid(excitation)
        y = x + mixed * frame_weights[:, :, None, None, None]
        return y, self.spatial(excitation), frame_weights


class UMDRSpatialNetwork(FrameNetwork):
    """Maps each frame to a feature vector; recoupling and the pools of the inception blocks mix frames."""

    def __init__(self, features: int, config: ConfigDict):
        super().__init__(features, config, pool_before={}, channel_pool=CHANNEL_POOL)
        for number in RECOUPLINGS:
            setattr(self, f"recoupling_{number}", StageRecoupling(features, config))

    def __call__(
        self, x: ClipInput, intermediates: Intermediates
    ) -> tuple[Float[Array, "b t c"], list[Float[Array, "b c"]]]:
        """Returns one feature vector a frame, and the spatial feature of each recoupling module."""
        frames, spatial = x.clip.shape[1], []
        y = self.stem(x.clip, intermediates)
        for name in INCEPTION_CHANNELS:
            y = self.block(name, y, frames, intermediates)
            if name not in STAGE_ENDS:
                continue
            window, number = STAGE_ENDS[name]
            if window is not None:
                y = self.ops.max_pool(y, window, (1, 2, 2))
            else:
                y = reduce(y, "b t h w (c p) -> b t h w c", "max", p=CHANNEL_POOL)
                y = self.sow_clips(intermediates, "channel_pool", y, frames)
            with jax.named_scope("recoupling"):
                apply = remat(self.remat_inception, StageRecoupling.__call__)
                clips, feature, weights = apply(getattr(self, f"recoupling_{number}"), self.outside(y, frames))
            y = self.inside(intermediates.sow(f"recoupled_{number}", clips))
            spatial.append(intermediates.sow(f"recoupling_{number}_spatial", feature))  # b c
            intermediates.sow(f"recoupling_{number}_weights", weights[:, :, None])  # b t 1
        return self.project(y, frames, intermediates), spatial
