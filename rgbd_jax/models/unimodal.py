"""The network of one modality: spatial network, recoupling, three temporal branches and their class heads."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import Intermediates, Output, ScheduleValues, Tree
from rgbd_jax.models.layers import ClipRngs, LayerNorm, Linear, head_dtypes, scaled
from rgbd_jax.models.spatial import SpatialNetwork
from rgbd_jax.models.temporal import BRANCHES, TemporalNetwork

FEATURES = 512


def feature_count(config: ConfigDict) -> int:
    """Returns c, the length of a frame feature and of a class feature."""
    return scaled(FEATURES, config.model.width)


class Trunk(nnx.Module):
    """Spatial and temporal network of one modality.

    A new network holds zeros and ones; `initializers.initial_values` gives the values that a training starts from.
    """

    def __init__(self, config: ConfigDict):
        self.spatial = SpatialNetwork(feature_count(config), config)
        self.temporal = TemporalNetwork(feature_count(config), config)


class ClassHead(nnx.Module):
    """LayerNorm and a linear map from a class feature to logits, in float32 or wider whatever the compute dtype."""

    def __init__(self, config: ConfigDict, classes: int):
        self.norm = LayerNorm(feature_count(config), head_dtypes(config))
        self.linear = Linear(feature_count(config), classes, head_dtypes(config))

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        return self.linear(self.norm(x))


class UnimodalNetwork(Trunk):
    """Recognises the motion in clips of one modality (the paper's Fig. 2).

    The features of its output are `teacher`, the mean of the branches' class features, and `student`, the recoupling
    module's spatial feature (absent without recoupling).
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        super().__init__(config)
        self.modality = config.modality
        for name in BRANCHES:
            setattr(self, f"head_{name}", ClassHead(config, num_classes))

    def __call__(
        self, inputs: Tree, schedule: ScheduleValues, rngs: ClipRngs | None, intermediates: Intermediates
    ) -> Output:
        """Returns the logits of each branch, divided by the temperature, and their maximum as "logits"."""
        frame_features = self.spatial(inputs[self.modality], intermediates)  # b t c
        features, student = self.temporal(frame_features, rngs, intermediates)
        with jax.named_scope("heads"):
            logits = {name: getattr(self, f"head_{name}")(features[name]) / schedule.temperature for name in BRANCHES}
        teacher = jnp.mean(jnp.stack(list(features.values())), axis=0)  # b c
        intermediates.sow("class_feature", teacher)
        return Output(
            heads={"logits": jnp.max(jnp.stack(list(logits.values())), axis=0), **logits},
            features={"teacher": teacher} if student is None else {"teacher": teacher, "student": student},
            intermediates=intermediates.collected(),
        )
