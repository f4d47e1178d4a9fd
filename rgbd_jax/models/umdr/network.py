"""UMDR for one modality: spatial network with recoupling, three temporal branches and their class heads."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.family import ClipInput, Intermediates, Output, ScheduleValues, Tree
from rgbd_jax.models.layers import ClipRngs
from rgbd_jax.models.temporal import BRANCHES, Branches, TemporalBranch
from rgbd_jax.models.umdr.spatial import RECOUPLINGS, UMDRSpatialNetwork
from rgbd_jax.models.unimodal import ClassHead, feature_count


class UMDRBranch(TemporalBranch):
    """A branch that adds class token and positions after its local part, whose kernel is the root of its frames."""

    def __init__(self, frames: int, features: int, config: ConfigDict):
        super().__init__(frames, features, config, kernel=math.isqrt(frames))

    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Float[Array, "b n+1 c"], Float[Array, "b n c"]]:
        """Returns the transformer's tokens, the class token first, for the frames that the branch sees, and `local`."""
        local = self.local(x)  # b n c
        return self.with_class_token(local), local


class UMDRNetwork(nnx.Module):
    """Recognises the motion in clips of one modality.

    The features of its output are `students`, the spatial features of the recoupling modules, and `teachers`, the sums
    over the branches of the class tokens after as many last transformer layers.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        features = feature_count(config)
        self.modality = config.modality
        self.spatial = UMDRSpatialNetwork(features, config)
        self.temporal = Branches(features, config, UMDRBranch)
        for name in BRANCHES:
            setattr(self, f"head_{name}", ClassHead(config, num_classes))

    def __call__(
        self, inputs: Tree, schedule: ScheduleValues, rngs: ClipRngs | None, intermediates: Intermediates
    ) -> Output:
        """Returns the logits of each branch, divided by the temperature, and their maximum as "logits"."""
        outputs = self.encode(inputs[self.modality], schedule.temperature, rngs, intermediates)
        features = {"teachers": outputs.teachers, "students": outputs.students}
        return Output(outputs.heads, features, intermediates.collected())

    def encode(
        self, x: ClipInput, temperature: Array | float, rngs: ClipRngs | None, intermediates: Intermediates
    ) -> "Encoding":
        frame_features, students = self.spatial(x, intermediates)  # b t c, of each module b c
        encoded = self.temporal.encode(frame_features, rngs, intermediates)
        with jax.named_scope("heads"):
            logits = {
                name: getattr(self, f"head_{name}")(encoded[name].tokens[:, 0]) / temperature for name in BRANCHES
            }
        heads = {"logits": jnp.max(jnp.stack(list(logits.values())), axis=0), **logits}
        tokens = jnp.stack([each.all_tokens[:, :, 0] for each in encoded.values()])  # branches depth b c
        class_feature = intermediates.sow("class_feature", jnp.mean(tokens[:, -1], axis=0))  # b c
        teachers = jnp.sum(tokens[:, -len(RECOUPLINGS) :], axis=0)  # modules b c
        return Encoding(heads, teachers, jnp.stack(students), frame_features, class_feature)


class Encoding(NamedTuple):
    """The logits of each head, both sides of the distillation, and the features that a fusion reads."""

    heads: dict[str, Float[Array, "b k"]]
    teachers: Float[Array, "modules b c"]
    students: Float[Array, "modules b c"]
    frame_features: Float[Array, "b t c"]
    class_feature: Float[Array, "b c"]
