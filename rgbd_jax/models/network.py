"""The whole unimodal network: spatial network, recoupling, three temporal branches and their class heads."""

from collections.abc import Mapping
from typing import Unpack

import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import LayerNorm, Linear, Types, scaled
from rgbd_jax.models.spatial import SpatialNetwork
from rgbd_jax.models.temporal import BRANCHES, TemporalNetwork

FEATURES = 512


@struct.dataclass
class NetworkOutput:
    """What the network says of a batch of clips.

    Attributes:
        logits: maximum over the branches, (b, classes), float32 or wider.
        branch_logits: "small", "medium" and "large" -> (b, classes).
        class_feature: mean of the branches' class features, (b, c): the teacher of the distillation.
        spatial: the recoupling module's spatial summary, (b, c): its pupil; None without recoupling.
        intermediates: name -> value of what was asked for.
    """

    logits: Float[Array, "b k"]
    branch_logits: Mapping[str, Float[Array, "b k"]]
    class_feature: Float[Array, "b c"]
    spatial: Float[Array, "b c"] | None
    intermediates: Mapping[str, Array]


class ClassHead(nnx.Module):
    """LayerNorm and a linear map from a class feature to logits."""

    def __init__(self, features: int, classes: int, **types: Unpack[Types]):
        self.norm = LayerNorm(features, **types)
        self.linear = Linear(features, classes, **types)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        """Returns the logits in float32 or wider, whatever the compute type."""
        logits = self.linear(self.norm(x))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class MotionNetwork(nnx.Module):
    """Recognises the motion in clips of one modality (the paper's Fig. 2).

    Args:
        config: the experiment's config; `config.model` and `config.clip.frames` are read.
        num_classes: number of classes.

    A new network holds zeros and ones; `initial.initial_values` gives the values that a training starts from.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        model = config.model
        dtype = jnp.dtype(model.dtype)
        param_dtype = jnp.promote_types(dtype, jnp.float32)
        types: Types = {"dtype": dtype, "param_dtype": param_dtype}
        features = scaled(FEATURES, model.width)
        recoupling = {
            "heads": model.recoupling_heads,
            "hidden": model.recoupling_hidden,
            "dropout": model.recoupling_dropout,
        }
        momentum = model.batch_norm_momentum
        self.spatial = SpatialNetwork(features, width=model.width, frp=model.frp, momentum=momentum, **types)
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
            momentum=momentum,
            **types,
        )
        for name in BRANCHES:
            setattr(self, f"head_{name}", ClassHead(features, num_classes, **types))

    def __call__(
        self,
        clip: Float[Array, "b t h w 3"],
        heat: Float[Array, "b t h w 1"] | None,
        *,
        temperature: Float[Array, ""] | float,
        train: bool,
        rngs: nnx.Rngs | None = None,
        intermediates: tuple[str, ...] = (),
    ) -> NetworkOutput:
        """Returns logits, features and what is asked for by name.

        Args:
            clip: normalised frames, (x - 127.5) / 128.
            heat: motion heat maps; None only for a network without FRP.
            temperature: divides the logits of every branch.
            train: whether dropout, random branch frames and batch statistics are on.
            rngs: stream `dropout`, needed in training.
            intermediates: names of intermediate results to return.
        """
        record = Intermediates(intermediates)
        frame_features = self.spatial(clip, heat, train=train, intermediates=record)  # b t c
        features, spatial = self.temporal(frame_features, train=train, rngs=rngs, intermediates=record)
        branch_logits = {name: getattr(self, f"head_{name}")(features[name]) / temperature for name in BRANCHES}
        return NetworkOutput(
            logits=jnp.max(jnp.stack(list(branch_logits.values())), axis=0),
            branch_logits=branch_logits,
            class_feature=jnp.mean(jnp.stack(list(features.values())), axis=0),
            spatial=spatial,
            intermediates=record.collected(),
        )
