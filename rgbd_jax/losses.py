"""Losses: label-smoothed cross entropies, the recoupling distillation, and those that tie two modalities together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.family import Labels, Output, ScheduleValues
from rgbd_jax.models.temporal import BRANCHES


def smoothed_cross_entropy(logits: Float[Array, "b k"], labels: Labels, smoothing: float) -> Float[Array, "b"]:
    """Returns the cross entropy of each clip, with a fraction `smoothing` of its label spread over all classes."""
    soft = (
        labels.astype(logits.dtype)
        if labels.ndim == 2
        else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    )
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(soft, smoothing))


def recoupling_distillation(
    teacher: Float[Array, "b c"], student: Float[Array, "b c"], config: ConfigDict
) -> Float[Array, "b"]:
    """Returns, for each clip, n KL(softmax(teacher / temperature) || softmax(student / temperature)).

    No gradient flows into the teacher. The reference adds the distillation summed over the clips of a device to the
    mean cross entropy, so the distillation of a clip is weighted by the number of clips on a device. Here that number
    n is `config.loss.reference_device_batch`, whatever the number of devices.
    """
    dtype = jnp.promote_types(student.dtype, jnp.float32)
    temperature = config.loss.distillation_temperature
    log_teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(dtype) / temperature)  # b c
    log_student = jax.nn.log_softmax(student.astype(dtype) / temperature)  # b c
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)  # b
    return config.loss.reference_device_batch * divergence


def unimodal_losses(
    output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues
) -> Mapping[str, Float[Array, "b"]]:
    """Returns the losses of each clip: `loss` (averaged over clips and minimised) and its terms.

    Args:
        output: output of `UnimodalNetwork`.
        labels: true classes, or a distribution over the classes for each clip.
        config: `config.loss` is read.
        schedule: its distillation weight is read.
    """
    weights = config.loss.branch_weights if config.loss.multi_branch else (1.0, 0.0, 0.0, 0.0)
    cross_entropy = sum(
        weight * smoothed_cross_entropy(output.heads[name], labels, config.loss.label_smoothing)
        for name, weight in zip(("logits", *BRANCHES), weights, strict=True)
        if weight
    )
    distillation = jnp.zeros_like(cross_entropy)
    if "student" in output.features:
        distillation = recoupling_distillation(output.features["teacher"], output.features["student"], config)
    return {
        "loss": cross_entropy + schedule.distillation_weight * distillation,
        "cross_entropy": cross_entropy,
        "distillation": distillation,
    }


def fusion_losses(
    output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues
) -> Mapping[str, Float[Array, "b"]]:
    """Returns the losses of each clip: `loss` (averaged over clips and minimised) and its terms.

    Cross entropy of the fused logits and of those of both modalities; `modality`, the binary cross entropy of which
    modality a feature is of; `reconstruction`, the mean squared distance of the decoded feature to that of either
    modality; and the distillation of both.

    Args:
        output: output of `FusionNetwork`.
        labels: true classes, or a distribution over the classes for each clip.
        config: `config.loss` is read, but for `branch_weights` and `multi_branch`.
        schedule: its distillation weight is read.
    """
    features = output.features
    smoothing = config.loss.label_smoothing
    cross_entropies = [smoothed_cross_entropy(logits, labels, smoothing) for logits in output.heads.values()]
    cross_entropy = jnp.sum(jnp.stack(cross_entropies), axis=0)
    clips = jnp.ones(len(labels))
    modality = optax.sigmoid_binary_cross_entropy(features["modality_logit_rgb"], clips)
    modality += optax.sigmoid_binary_cross_entropy(features["modality_logit_depth"], 0 * clips)
    dtype = cross_entropy.dtype
    errors = [features["decoded"].astype(dtype) - features[f"feature_{name}"].astype(dtype) for name in MODALITIES]
    reconstruction = jnp.sum(jnp.mean(jnp.square(jnp.stack(errors)), axis=-1), axis=0)
    distillation = jnp.zeros_like(cross_entropy)
    for name in MODALITIES:
        if f"student_{name}" in features:
            distillation += recoupling_distillation(features[f"teacher_{name}"], features[f"student_{name}"], config)
    return {
        "loss": cross_entropy + modality + reconstruction + schedule.distillation_weight * distillation,
        "cross_entropy": cross_entropy,
        "modality": modality,
        "reconstruction": reconstruction,
        "distillation": distillation,
    }
