"""Losses of one stream: label-smoothed cross entropy of every branch, and the recoupling distillation."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rgbd_jax.models.network import NetworkOutput
from rgbd_jax.models.temporal import BRANCHES


def smoothed_cross_entropy(logits: Float[Array, "b k"], labels: Int[Array, "b"], smoothing: float) -> Float[Array, "b"]:
    """Returns the cross entropy of each clip against its label, a share `smoothing` of it spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)  # b k
    return optax.softmax_cross_entropy(logits, targets)


def recoupling_distillation(
    class_feature: Float[Array, "b c"], spatial: Float[Array, "b c"], temperature: float
) -> Float[Array, "b"]:
    """Returns, clip by clip, KL(softmax(class feature / temperature) || softmax(spatial / temperature)).

    The class feature teaches: no gradient flows into it.
    """
    wide = jnp.promote_types(spatial.dtype, jnp.float32)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(class_feature).astype(wide) / temperature)  # b c
    pupil = jax.nn.log_softmax(spatial.astype(wide) / temperature)  # b c
    return jnp.sum(jnp.exp(teacher) * (teacher - pupil), axis=-1)


def unimodal_losses(
    output: NetworkOutput, labels: Int[Array, "b"], config: ConfigDict, *, distillation_weight: Float[Array, ""] | float
) -> Mapping[str, Float[Array, "b"]]:
    """Returns the losses of each clip: `loss` (to be averaged over clips and minimised) and its parts.

    Args:
        output: what the network says of the clips.
        labels: true classes.
        config: `config.loss` is read.
        distillation_weight: weight of the distillation in this epoch (see `optim.distillation_weight`).

    The reference adds the distillation of the clips of one device (a sum) to their mean cross entropy, so a clip's
    distillation counts as often as there are clips on a device. Here that number is
    `config.loss.reference_device_batch`, whatever the number of devices.
    """
    loss = config.loss
    heads = [output.logits, *(output.branch_logits[name] for name in BRANCHES)]
    weights = loss.branch_weights if loss.multi_branch else (1.0, 0.0, 0.0, 0.0)
    cross_entropy = sum(
        weight * smoothed_cross_entropy(logits, labels, loss.label_smoothing)
        for weight, logits in zip(weights, heads, strict=True)
        if weight
    )
    if output.spatial is None:
        distillation = jnp.zeros_like(cross_entropy)
    else:
        distillation = loss.reference_device_batch * recoupling_distillation(
            output.class_feature, output.spatial, loss.distillation_temperature
        )
    return {
        "loss": cross_entropy + distillation_weight * distillation,
        "cross_entropy": cross_entropy,
        "distillation": distillation,
    }
