"""Recoupling module (the paper's RCM): weights frames by the sequence and channels by each other."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.layers import ClipRngs, Dropout, LayerNorm, Linear, dtypes_of

QUERY_FEATURES = 64


class Recoupling(nnx.Module):
    """Multiplies features by frame weights (from their mean over channels) and channel weights (self-attention).

    The reference forms the scores of all pairs of channels, q_i . k_j, and averages over i. The mean is linear:
    mean_i(q_i . k_j) = mean_i(q_i) . k_j, so neither the scores nor q and k themselves are formed here.
    """

    def __init__(self, features: int, config: ConfigDict):
        model, frames, dtypes = config.model, config.clip.frames, dtypes_of(config)
        self.heads = model.recoupling_heads
        self.query = Linear(frames, QUERY_FEATURES * self.heads, dtypes, use_bias=False)
        self.key = Linear(frames, QUERY_FEATURES * self.heads, dtypes, use_bias=False)
        self.frame_hidden = Linear(frames, model.recoupling_hidden, dtypes, use_bias=False)
        self.frame_output = Linear(model.recoupling_hidden, frames, dtypes, use_bias=False)
        self.frame_norm = LayerNorm(frames, dtypes)
        self.spatial = Linear(frames, features, dtypes)
        if self.heads > 1:
            self.merge_dropout = Dropout(model.recoupling_dropout)
            self.merge = Linear(features * self.heads, features, dtypes, use_bias=False)
            self.merge_norm = LayerNorm(features, dtypes)

    def __call__(
        self, x: Float[Array, "b t c"], rngs: ClipRngs | None = None
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b c"], Float[Array, "b t c"]]:
        """Returns the weighted features, the spatial feature (the student of the distillation), and the weights."""
        sequence = x.mean(-1)  # b t
        hidden = jax.nn.gelu(self.frame_hidden(sequence), approximate=False)  # b hidden
        frame_weights = jax.nn.sigmoid(self.frame_norm(self.frame_output(hidden)))  # b t

        mean_query = self.query(sequence).reshape(-1, self.heads, QUERY_FEATURES)  # b heads d
        key_kernel = self.key.kernel[...].astype(x.dtype).reshape(-1, self.heads, QUERY_FEATURES)  # t heads d
        probe = jnp.einsum("bhd,thd->bht", mean_query, key_kernel)
        scores = jnp.einsum("bht,btc->bhc", probe, x) * QUERY_FEATURES**-0.5
        channel_scores = scores[:, 0]  # b c
        if self.heads > 1:
            channel_scores = self.merge_norm(self.merge(self.merge_dropout(scores.reshape(len(x), -1), rngs)))  # b c
        weights = frame_weights[:, :, None] * jax.nn.sigmoid(channel_scores)[:, None, :]  # b t c
        return x * weights, self.spatial(frame_weights), weights
