"""Losses: label-smoothed cross entropies, the recoupling distillation, and what ties two streams together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rgbd_jax.models.fusion import FusionOutput
from rgbd_jax.models.network import NetworkOutput
from rgbd_jax.models.temporal import BRANCHES

Labels = Int[Array, "b"] | Float[Array, "b k"]  # true classes, or the share of every class in mixed clips


def smoothed_cross_entropy(logits: Float[Array, "b k"], labels: Labels, smoothing: float) -> Float[Array, "b"]:
    """Returns the cross entropy of each clip against its label, a share `smoothing` of it spread over all classes."""
    hard = labels.ndim == 1
    shares = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) if hard else labels.astype(logits.dtype)
    targets = optax.smooth_labels(shares, smoothing)  # b k
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
    output: NetworkOutput, labels: Labels, config: ConfigDict, *, distillation_weight: Float[Array, ""] | float
) -> Mapping[str, Float[Array, "b"]]:
    """Returns the losses of each clip: `loss` (to be averaged over clips and minimised) and its parts.

    Args:
        output: what the network says of the clips.
        labels: true classes, or the share of every class in each clip.
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


def fusion_losses(
    output: FusionOutput, labels: Labels, config: ConfigDict, *, distillation_weight: Float[Array, ""] | float
) -> Mapping[str, Float[Array, "b"]]:
    """Returns the losses of each clip: `loss` (to be averaged over clips and minimised) and its parts.

    Cross entropy of the fused and of both streams' logits; `modality`, whether a feature tells which stream it is
    of; `reconstruction`, the mean squared distance of the decoded feature to either stream's; and the distillation of
    both streams.

    Args:
        output: what the fusion network says of the clips.
        labels: true classes, or the share of every class in each clip.
        config: `config.loss` is read (`branch_weights` and `multi_branch` are of one stream alone).
        distillation_weight: weight of the distillation in this epoch (see `optim.distillation_weight`).
    """
    loss = config.loss
    cross_entropies = [smoothed_cross_entropy(logits, labels, loss.label_smoothing) for logits in output.heads.values()]
    cross_entropy = jnp.sum(jnp.stack(cross_entropies), axis=0)
    modality = optax.sigmoid_binary_cross_entropy(output.modality_logit["rgb"], jnp.ones(len(labels)))
    modality += optax.sigmoid_binary_cross_entropy(output.modality_logit["depth"], jnp.zeros(len(labels)))
    decoded = output.decoded.astype(cross_entropy.dtype)  # b c
    errors = [decoded - feature.astype(cross_entropy.dtype) for feature in output.features.values()]  # b c
    reconstruction = jnp.sum(jnp.mean(jnp.square(jnp.stack(errors)), axis=-1), axis=0)
    distillation = jnp.zeros_like(cross_entropy)
    for name, spatial in output.spatial.items():
        if spatial is not None:
            distillation += loss.reference_device_batch * recoupling_distillation(
                output.class_feature[name], spatial, loss.distillation_temperature
            )
    return {
        "loss": cross_entropy + modality + reconstruction + distillation_weight * distillation,
        "cross_entropy": cross_entropy,
        "modality": modality,
        "reconstruction": reconstruction,
        "distillation": distillation,
    }
