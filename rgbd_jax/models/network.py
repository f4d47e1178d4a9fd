"""The whole unimodal network: spatial network, recoupling, three temporal branches and their class heads."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.rngs import ClipRngs
from rgbd_jax.models.temporal import BRANCHES
from rgbd_jax.models.trunk import ClassHead, Trunk


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

    @property
    def heads(self) -> Mapping[str, Float[Array, "b k"]]:
        """Everything that names a class: "logits", which decides, and the branches."""
        return {"logits": self.logits, **self.branch_logits}


class MotionNetwork(Trunk):
    """Recognises the motion in clips of one modality (the paper's Fig. 2).

    Args:
        config: the experiment's config; `config.model`, `config.remat` and `config.clip.frames` are read.
        num_classes: number of classes.
        axes: mesh axes over which BatchNorm's statistics are taken together, inside `jax.shard_map`.
    """

    def __init__(self, config: ConfigDict, num_classes: int, axes: tuple[str, ...] = ()):
        super().__init__(config, axes)
        for name in BRANCHES:
            setattr(self, f"head_{name}", ClassHead(config, num_classes))

    def __call__(
        self,
        clip: Float[Array, "b t h w 3"],
        heat: Float[Array, "b t h w 1"] | None,
        *,
        temperature: Float[Array, ""] | float,
        train: bool,
        draws: ClipRngs | None = None,
        intermediates: tuple[str, ...] = (),
        offsets: Mapping[str, Array] | None = None,
    ) -> NetworkOutput:
        """Returns logits, features and what is asked for by name.

        Args:
            clip: normalised frames, (x - 127.5) / 128.
            heat: motion heat maps; None only for a network without FRP.
            temperature: divides the logits of every branch.
            train: whether batch statistics are on.
            draws: turn dropout and random branch frames on.
            intermediates: names of intermediate results to return.
            offsets: name -> what is added to an intermediate result (see `Intermediates`).
        """
        record = Intermediates(intermediates, offsets)
        frame_features = self.spatial(clip, heat, train=train, intermediates=record)  # b t c
        features, spatial = self.temporal(frame_features, train=train, draws=draws, intermediates=record)
        with jax.named_scope("heads"):
            branch_logits = {name: getattr(self, f"head_{name}")(features[name]) / temperature for name in BRANCHES}
        return NetworkOutput(
            logits=jnp.max(jnp.stack(list(branch_logits.values())), axis=0),
            branch_logits=branch_logits,
            class_feature=jnp.mean(jnp.stack(list(features.values())), axis=0),
            spatial=spatial,
            intermediates=record.collected(),
        )
