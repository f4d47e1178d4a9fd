"""The transformer layer of the temporal branches: attention over the strongest keys, then a perceptron."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from rgbd_jax.models.layers import LayerNorm, Linear, Types
from rgbd_jax.models.remat import remat
from rgbd_jax.models.rngs import ClipRngs, Dropout


class TopKAttention(nnx.Module):
    """Multi-head self-attention in which each query keeps only its highest-scoring keys (the paper's k-NN attention).

    `knn_attention` is the share of the keys that is kept; 0 keeps all.
    """

    def __init__(
        self, features: int, heads: int, head_features: int, knn_attention: float, *,
        dtype: DTypeLike, param_dtype: DTypeLike,
    ):  # fmt: skip
        types: Types = {"dtype": dtype, "param_dtype": param_dtype}
        self.qkv = Linear(features, 3 * heads * head_features, use_bias=False, **types)
        self.output = Linear(heads * head_features, features, **types)
        self.heads = heads
        self.knn_attention = knn_attention

    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the attended tokens and the attention weights (rows sum to one)."""
        qkv = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        query, key, value = qkv
        scores = jnp.einsum("bhid,bhjd->bhij", query, key) * query.shape[-1] ** -0.5
        scores = mask_below_top_k(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), self.knn_attention)
        weights = jax.nn.softmax(scores, axis=-1)  # b heads n n
        attended = jnp.einsum("bhij,bhjd->bhid", weights.astype(value.dtype), value)
        return self.output(rearrange(attended, "b heads n d -> b n (heads d)")), weights


def mask_below_top_k(scores: Float[Array, "*rows n"], share: float) -> Float[Array, "*rows n"]:
    """Sets all but the int(n * share) highest scores of a row (and ties) to -inf; a share of 0 keeps all."""
    if not share:
        return scores
    kept = int(scores.shape[-1] * share)
    threshold = jax.lax.stop_gradient(jax.lax.top_k(scores, kept)[0][..., -1:])  # *rows 1
    return jnp.where(scores >= threshold, scores, -jnp.inf)


class TransformerLayer(nnx.Module):
    """One pre-norm transformer layer: x += attention(norm(x)); x += perceptron(norm(x))."""

    def __init__(
        self, features: int, heads: int, head_features: int, hidden: int, knn_attention: float, dropout: float, *,
        dtype: DTypeLike, param_dtype: DTypeLike,
    ):  # fmt: skip
        types: Types = {"dtype": dtype, "param_dtype": param_dtype}
        self.attention_norm = LayerNorm(features, **types)
        self.attention = TopKAttention(features, heads, head_features, knn_attention, **types)
        self.mlp_norm = LayerNorm(features, **types)
        self.mlp_in = Linear(features, hidden, **types)
        self.mlp_out = Linear(hidden, features, **types)
        self.dropout = Dropout(dropout)
        self.hidden = hidden

    def __call__(
        self, x: Float[Array, "b n c"], draws: ClipRngs | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the tokens after the layer and its attention weights."""
        tokens, features = x.shape[1:]
        shapes = (tokens, features), (tokens, self.hidden), (tokens, features)
        of_attention, of_hidden, of_output = self.dropout.draw(draws, *shapes)
        attended, weights = self.attention(self.attention_norm(x))
        x = x + self.dropout.drop(attended, of_attention)
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)
        hidden = self.dropout.drop(hidden, of_hidden)  # b n hidden
        return x + self.dropout.drop(self.mlp_out(hidden), of_output), weights


class TransformerStack(nnx.Module):
    """N transformer layers whose parameters are stacked along a first axis, so that one layer is compiled, not N."""

    def __init__(self, depth: int, *layer_arguments: Any, remat: str = "none", **layer_options: Any):
        graph, state = nnx.split(TransformerLayer(*layer_arguments, **layer_options))
        self.layers = nnx.merge(graph, jax.tree.map(lambda x: jnp.broadcast_to(x, (depth, *x.shape)), state))
        self.depth = depth
        self.remat = remat

    def __call__(
        self, x: Float[Array, "b n c"], draws: ClipRngs | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "depth b n c"], Float[Array, "depth b heads n n"]]:
        """Returns the last layer's tokens, every layer's tokens and every layer's attention weights."""
        graph, stacked = nnx.split(self.layers)
        keys = None if draws is None else draws.next_keys_of(self.depth)  # depth b

        def step(tokens, layer):
            state, keys = layer
            tokens, weights = remat(self.remat, (nnx.merge(graph, state),), apply_layer, tokens, keys)
            return tokens, (tokens, weights)

        x, (every_x, every_weights) = jax.lax.scan(step, x, (stacked, keys))
        return x, every_x, every_weights


def apply_layer(
    modules: tuple[TransformerLayer], tokens: Float[Array, "b n c"], keys: Key[Array, "b"] | None
) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
    """Returns the tokens and attention weights of a layer; keys, one for each clip, turn dropout on."""
    return modules[0](tokens, None if keys is None else ClipRngs(keys))
