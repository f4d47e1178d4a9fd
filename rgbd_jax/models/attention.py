"""The transformer of the temporal branches: attention over the highest-scoring keys, then an MLP."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from rgbd_jax.models.layers import ClipRngs, Dropout, Linear, at_least_float32, dtypes_of, layer_norm, remat, scaled

HEAD_FEATURES = 64
MLP_FEATURES = 768


class TopKAttention(nnx.Module):
    """Multi-head self-attention in which each query attends to its highest-scoring keys (the paper's k-NN attention).

    `config.model.knn_attention` is the fraction of the keys that is kept; 0 keeps all.
    """

    def __init__(self, features: int, config: ConfigDict):
        model, dtypes = config.model, dtypes_of(config)
        inner = model.attention_heads * scaled(HEAD_FEATURES, model.width)
        self.qkv = Linear(features, 3 * inner, dtypes, use_bias=False)
        self.output = Linear(inner, features, dtypes)
        self.heads = model.attention_heads
        self.fraction = model.knn_attention

    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the attended tokens and the attention weights (rows sum to one)."""
        query, key, value = rearrange(self.qkv(x), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        scores = jnp.einsum("bhid,bhjd->bhij", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(mask_below_top_k(at_least_float32(scores), self.fraction))  # b heads n n
        attended = jnp.einsum("bhij,bhjd->bhid", weights.astype(value.dtype), value)
        return self.output(rearrange(attended, "b heads n d -> b n (heads d)")), weights


def mask_below_top_k(scores: Float[Array, "*rows n"], fraction: float) -> Float[Array, "*rows n"]:
    """Sets all but the int(n * fraction) highest scores of a row (and ties) to -inf; a fraction of 0 keeps all."""
    if not fraction:
        return scores
    k = int(scores.shape[-1] * fraction)
    threshold = jax.lax.stop_gradient(jax.lax.top_k(scores, k)[0][..., -1:])  # *rows 1
    return jnp.where(scores >= threshold, scores, -jnp.inf)


class TransformerLayer(nnx.Module):
    """One pre-norm transformer layer: x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, features: int, config: ConfigDict):
        dtypes, hidden = dtypes_of(config), scaled(MLP_FEATURES, config.model.width)
        self.attention_norm = layer_norm(features, dtypes)
        self.attention = TopKAttention(features, config)
        self.mlp_norm = layer_norm(features, dtypes)
        self.mlp_in = Linear(features, hidden, dtypes)
        self.mlp_out = Linear(hidden, features, dtypes)
        self.dropout = Dropout(config.model.dropout)

    def __call__(
        self, x: Float[Array, "b n c"], keys: Key[Array, "b"] | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the tokens after the layer and its attention weights; `keys` turn dropout on."""
        rngs = None if keys is None else ClipRngs(keys)
        attended, weights = self.attention(self.attention_norm(x))
        x = x + self.dropout(attended, rngs)
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)  # b n hidden
        return x + self.dropout(self.mlp_out(self.dropout(hidden, rngs)), rngs), weights


class TransformerStack(nnx.Module):
    """N transformer layers with parameters stacked along a leading axis, so that one layer is compiled, not N."""

    def __init__(self, features: int, config: ConfigDict):
        self.depth = config.model.temporal_blocks
        self.remat = config.remat.transformer
        graph, state = nnx.split(TransformerLayer(features, config))
        self.layers = nnx.merge(graph, jax.tree.map(lambda x: jnp.broadcast_to(x, (self.depth, *x.shape)), state))

    def __call__(
        self, x: Float[Array, "b n c"], rngs: ClipRngs | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "depth b n c"], Float[Array, "depth b heads n n"]]:
        """Returns the last layer's tokens, every layer's tokens and every layer's attention weights."""
        graph, stacked = nnx.split(self.layers)
        keys = None
        if rngs is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, self.depth), out_axes=1)(rngs.next_keys())  # depth b

        def step(tokens, layer):
            state, keys = layer
            tokens, weights = remat(self.remat, TransformerLayer.__call__)(nnx.merge(graph, state), tokens, keys)
            return tokens, (tokens, weights)

        x, (all_tokens, all_weights) = jax.lax.scan(step, x, (stacked, keys))
        return x, all_tokens, all_weights
