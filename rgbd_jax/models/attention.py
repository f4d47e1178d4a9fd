"""The transformer of the temporal branches: attention over the highest-scoring keys, then an MLP."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from rgbd_jax.models.layers import ClipRngs, Dropout, LayerNorm, Linear, at_least_float32, dtypes_of, remat, scaled
from rgbd_jax.models.ops import operations

Layer = TypeVar("Layer", bound=nnx.Module)

HEAD_FEATURES = 64
MLP_FEATURES = 768


class Padding(NamedTuple):
    """How many tokens of a sequence come before its padding, and how many keys a query keeps of them."""

    tokens: Int[Array, ""]
    kept: Int[Array, ""]


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

    def __call__(
        self, x: Float[Array, "b n c"], padding: Padding | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the attended tokens and the attention weights (rows sum to one)."""
        query, key, value = rearrange(self.qkv(x), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        attended, weights = attend(query, key, value, self.fraction, padding)
        return self.output(attended), weights


def attend(
    query: Float[Array, "b heads n d"],
    key: Float[Array, "b heads n d"],
    value: Float[Array, "b heads n d"],
    fraction: float,
    padding: Padding | None = None,
) -> tuple[Float[Array, "b n heads*d"], Float[Array, "b heads n n"]]:
    """Returns the values weighted by the highest-scoring keys, with the heads side by side, and the weights."""
    scores = jnp.einsum("bhid,bhjd->bhij", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(mask_below_top_k(at_least_float32(scores), fraction, padding))  # b heads n n
    attended = jnp.einsum("bhij,bhjd->bhid", weights.astype(value.dtype), value)
    return rearrange(attended, "b heads n d -> b n (heads d)"), weights


def mask_below_top_k(
    scores: Float[Array, "*rows n"], fraction: float, padding: Padding | None = None
) -> Float[Array, "*rows n"]:
    """Sets all but the int(n * fraction) highest scores of a row (and ties) to -inf; a fraction of 0 keeps all."""
    count = scores.shape[-1]
    if padding is not None:
        scores = jnp.where(jnp.arange(count) < padding.tokens, scores, -jnp.inf)
    if not fraction:
        return scores
    k = int(count * fraction)
    highest = jax.lax.top_k(scores, k)[0]  # *rows k
    threshold = highest[..., -1:] if padding is None else jnp.take(highest, padding.kept[None] - 1, axis=-1)
    return jnp.where(scores >= jax.lax.stop_gradient(threshold), scores, -jnp.inf)


class TransformerLayer(nnx.Module):
    """One pre-norm transformer layer: x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, features: int, config: ConfigDict):
        dtypes, hidden = dtypes_of(config), scaled(MLP_FEATURES, config.model.width)
        self.attention_norm = LayerNorm(features, dtypes)
        self.attention = TopKAttention(features, config)
        self.mlp_norm = LayerNorm(features, dtypes)
        self.mlp_in = Linear(features, hidden, dtypes)
        self.mlp_out = Linear(hidden, features, dtypes)
        self.dropout = Dropout(config.model.dropout)

    def __call__(
        self, x: Float[Array, "b n c"], keys: Key[Array, "b"] | None = None, padding: Padding | None = None
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b heads n n"]]:
        """Returns the tokens after the layer and its attention weights; `keys` turn dropout on."""
        rngs = None if keys is None else ClipRngs(keys)
        attended, weights = self.attention(self.attention_norm(x), padding)
        x = x + self.dropout(attended, rngs)
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)  # b n hidden
        return x + self.dropout(self.mlp_out(self.dropout(hidden, rngs)), rngs), weights


class Encoded(NamedTuple):
    """What transformer layers make of a sequence: the last layer's tokens, every layer's tokens and attention."""

    tokens: Float[Array, "b n c"]
    all_tokens: Float[Array, "depth b n c"]
    all_attention: Float[Array, "depth b heads n n"]


class TransformerStack(nnx.Module):
    """N transformer layers with parameters stacked along a leading axis, so that one layer can be compiled, not N."""

    def __init__(self, features: int, config: ConfigDict):
        self.depth = config.model.temporal_blocks
        self.remat, self.fraction, self.ops = config.remat.transformer, config.model.knn_attention, operations(config)
        self.layers = stacked(TransformerLayer(features, config), self.depth)


def stacked(layer: Layer, depth: int) -> Layer:
    """Returns so many layers as one module, whose parameters have them along a leading axis."""
    graph, state = nnx.split(layer)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.broadcast_to(x, (depth, *x.shape)), state))


def layer_keys(rngs: ClipRngs | None, depth: int) -> Key[Array, "depth b"] | None:
    """Returns the keys of each layer's dropout; None without `rngs`."""
    if rngs is None:
        return None
    return jax.vmap(lambda key: jax.random.split(key, depth), out_axes=1)(rngs.next_keys())


def encode(
    stacks: Mapping[str, TransformerStack],
    tokens: Mapping[str, Float[Array, "b n c"]],
    keys: Mapping[str, Key[Array, "depth b"] | None],
) -> dict[str, Encoded]:
    """Applies each stack to its sequence; on some platforms to all at once, padded to the longest.

    Padding changes no token before it: its keys have a weight of 0, and what is drawn for dropout does not depend on
    the length of a sequence.
    """
    first = next(iter(stacks.values()))
    if not first.ops.batched_stacks:
        result = {}
        for name, stack in stacks.items():
            with jax.named_scope(f"branch_{name}"):
                graph, state = nnx.split(stack.layers)
                result[name] = _apply_layers(first, graph, state, tokens[name], keys[name])
        return result
    lengths = {name: each.shape[1] for name, each in tokens.items()}
    longest = max(lengths.values())
    padded = [jnp.pad(tokens[name], ((0, 0), (0, longest - lengths[name]), (0, 0))) for name in stacks]
    padding = Padding(
        jnp.asarray(list(lengths.values())), jnp.asarray([int(n * first.fraction) for n in lengths.values()])
    )
    graph = nnx.split(first.layers)[0]
    state = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *(nnx.split(stack.layers)[1] for stack in stacks.values()))
    with jax.named_scope("branch_transformers"):
        together = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *keys.values())  # depth s b
        x, all_tokens, all_attention = _apply_layers(first, graph, state, jnp.stack(padded), together, padding)
    return {
        name: Encoded(x[i, :, :n], all_tokens[:, i, :, :n], all_attention[:, i, ..., :n, :n])
        for i, (name, n) in enumerate(lengths.items())
    }


def _apply_layers(
    stack: TransformerStack,
    graph: nnx.GraphDef,
    states: nnx.State,
    tokens: Float[Array, "*s b n c"],
    keys: Key[Array, "depth *s b"] | None,
    padding: Padding | None = None,
) -> Encoded:
    """Applies layers of which the states are stacked, of one sequence or with `padding` of several in parallel."""

    def apply(state, tokens, keys, padding):
        return remat(stack.remat, TransformerLayer.__call__)(nnx.merge(graph, state), tokens, keys, padding)

    apply = apply if padding is None else jax.vmap(apply)

    def step(tokens, layer):
        tokens, attention = apply(layer[0], tokens, layer[1], padding)
        return tokens, (tokens, attention)

    tokens, layers = jax.lax.scan(step, tokens, (states, keys), unroll=stack.ops.unrolled_layers)
    return Encoded(tokens, *layers)
