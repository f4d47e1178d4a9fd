"""Recoupling module (RCM): weights frames by the sequence and channels by each other, before the temporal branches."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rgbd_jax.models.layers import LayerNorm, Linear, Types
from rgbd_jax.models.rngs import ClipRngs, Dropout

QUERY_FEATURES = 64


class Recoupling(nnx.Module):
    """Multiplies features by frame weights (from their mean over channels) and channel weights (self-attention).

    The reference forms the scores of all pairs of channels, q_i . k_j, and averages over i. The mean is linear:
    mean_i(q_i . k_j) = mean_i(q_i) . k_j, so neither the scores nor q and k themselves are ever formed here.
    """

    def __init__(
        self,
        frames: int,
        features: int,
        *,
        heads: int,
        hidden: int,
        dropout: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
    ):
        types: Types = {"dtype": dtype, "param_dtype": param_dtype}
        self.query = Linear(frames, QUERY_FEATURES * heads, use_bias=False, **types)
        self.key = Linear(frames, QUERY_FEATURES * heads, use_bias=False, **types)
        self.frame_hidden = Linear(frames, hidden, use_bias=False, **types)
        self.frame_output = Linear(hidden, frames, use_bias=False, **types)
        self.frame_norm = LayerNorm(frames, **types)
        self.spatial = Linear(frames, features, **types)
        self.heads = heads
        if heads > 1:
            self.merge_dropout = Dropout(dropout)
            self.merge = Linear(features * heads, features, use_bias=False, **types)
            self.merge_norm = LayerNorm(features, **types)

    def __call__(
        self, x: Float[Array, "b t c"], draws: ClipRngs | None = None
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b c"], Float[Array, "b t c"]]:
        """Returns the weighted features, the spatial summary that distillation teaches, and the weights."""
        sequence = x.mean(-1)  # b t
        hidden = jax.nn.gelu(self.frame_hidden(sequence), approximate=False)  # b hidden
        frame_weights = jax.nn.sigmoid(self.frame_norm(self.frame_output(hidden)))  # b t

        mean_query = self.query(sequence).reshape(-1, self.heads, QUERY_FEATURES)  # b heads d
        key_kernel = self.key.kernel[...].astype(x.dtype).reshape(-1, self.heads, QUERY_FEATURES)  # t heads d
        probe = jnp.einsum("bhd,thd->bht", mean_query, key_kernel)
        scores = jnp.einsum("bht,btc->bhc", probe, x) * QUERY_FEATURES**-0.5
        if self.heads > 1:
            merged = scores.reshape(x.shape[0], -1)  # b (heads c)
            merged = self.merge_dropout(merged, draws)
            channel_scores = self.merge_norm(self.merge(merged))  # b c
        else:
            channel_scores = scores[:, 0]  # b c
        channel_weights = jax.nn.sigmoid(channel_scores)  # b c

        weights = frame_weights[:, :, None] * channel_weights[:, None, :]  # b t c
        return x * weights, self.spatial(frame_weights), weights
