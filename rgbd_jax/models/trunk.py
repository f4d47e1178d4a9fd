"""The part of the network that every modality has: frames to features, recoupled and seen by three branches."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.layers import BatchStatistics, LayerNorm, Linear, Types, scaled
from rgbd_jax.models.spatial import SpatialNetwork
from rgbd_jax.models.temporal import TemporalNetwork

FEATURES = 512


def feature_count(config: ConfigDict) -> int:
    """Returns c, the length of a frame's and of a class feature."""
    return scaled(FEATURES, config.model.width)


def types_of(config: ConfigDict) -> Types:
    """Returns what the layers compute in (`config.model.dtype`) and what their parameters are kept in."""
    dtype = jnp.dtype(config.model.dtype)
    return {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}


def wide_types(config: ConfigDict) -> Types:
    """Returns the types of layers whose results decide: they compute in the type of their parameters."""
    param_dtype = types_of(config)["param_dtype"]
    return {"dtype": param_dtype, "param_dtype": param_dtype}


class Trunk(nnx.Module):
    """Spatial and temporal network of one modality.

    Args:
        config: the experiment's config; `config.model`, `config.remat` and `config.clip.frames` are read.
        axes: mesh axes over which BatchNorm's statistics are taken together, inside `jax.shard_map`.

    A new network holds zeros and ones; `initial.initial_values` gives the values that a training starts from.
    """

    def __init__(self, config: ConfigDict, axes: tuple[str, ...] = ()):
        model, remat = config.model, config.remat
        types = types_of(config)
        features = feature_count(config)
        recoupling = {
            "heads": model.recoupling_heads,
            "hidden": model.recoupling_hidden,
            "dropout": model.recoupling_dropout,
        }
        statistics = BatchStatistics(model.batch_norm_momentum, axes)
        self.spatial = SpatialNetwork(
            features,
            width=model.width,
            frp=model.frp,
            statistics=statistics,
            stem_remat=remat.stem,
            inception_remat=remat.inception,
            **types,
        )
        self.temporal = TemporalNetwork(
            config.clip.frames,
            features,
            width=model.width,
            branch_frames=tuple(model.branch_frames),
            random_frames=model.random_branch_frames,
            blocks=model.temporal_blocks,
            heads=model.attention_heads,
            knn_attention=model.knn_attention,
            dropout=model.dropout,
            recoupling=recoupling if model.recoupling else None,
            statistics=statistics,
            remat=remat.transformer,
            **types,
        )


class ClassHead(nnx.Module):
    """LayerNorm and a linear map from a class feature to logits, in float32 or wider whatever the compute type."""

    def __init__(self, config: ConfigDict, classes: int):
        features, types = feature_count(config), wide_types(config)
        self.norm = LayerNorm(features, **types)
        self.linear = Linear(features, classes, **types)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        """Returns the logits."""
        return self.linear(self.norm(x))


def at_least_float32(x: Array) -> Array:
    """Returns x in float32, or in its own type if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
