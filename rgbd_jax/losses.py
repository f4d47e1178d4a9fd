"""Losses: label-smoothed cross entropies, the recoupling distillation, and those that tie two modalities together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.family import Labels, Output, ScheduleValues
from rgbd_jax.models.layers import at_least_float32
from rgbd_jax.models.temporal import BRANCHES

# Of each clip: `loss`, which is averaged over the clips and minimised, and its terms.
Losses = Mapping[str, Float[Array, "b"]]


def smoothed_cross_entropy(logits: Float[Array, "b k"], labels: Labels, smoothing: float) -> Float[Array, "b"]:
    """Returns the cross entropy of each clip, with a fraction `smoothing` of its label spread over all classes."""
    soft = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1])  # b k
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(soft.astype(logits.dtype), smoothing))


def recoupling_distillation(
    teacher: Float[Array, "b c"], student: Float[Array, "b c"], config: ConfigDict
) -> Float[Array, "b"]:
    """Returns, for each clip, n KL(softmax(teacher / temperature) || softmax(student / temperature)).

    No gradient flows into the teacher. The reference adds the distillation summed over the clips of a device to the
    mean cross entropy, so the distillation of a clip is weighted by the number of clips on a device. Here that number
    n is `config.loss.reference_device_batch`, whatever the number of devices.
    """
    temperature = config.loss.distillation_temperature
    log_teacher = jax.nn.log_softmax(at_least_float32(jax.lax.stop_gradient(teacher)) / temperature)  # b c
    log_student = jax.nn.log_softmax(at_least_float32(student) / temperature)  # b c
    return config.loss.reference_device_batch * optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)


def _distillation(output: Output, config: ConfigDict) -> Float[Array, "b"]:
    """Returns the distillation of each clip, summed over the modalities; 0 for a network without recoupling."""
    features, total = output.features, jnp.zeros_like(output.logits[:, 0])
    for suffix in ("", *(f"_{name}" for name in MODALITIES)):
        if f"student{suffix}" in features:
            total += recoupling_distillation(features[f"teacher{suffix}"], features[f"student{suffix}"], config)
    return total


def unimodal_losses(output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues) -> Losses:
    """Returns the weighted cross entropies of all heads, and the distillation."""
    return _with_distillation(_branches(output, labels, config), _distillation(output, config), schedule)


def umdr_losses(output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues) -> Losses:
    """Returns the weighted cross entropies of all heads, and the distillation.

    That is the cross entropy of each recoupling module's spatial feature, averaged over the modules. As in the
    reference, its gradient flows into the teachers too.
    """
    temperature = config.loss.distillation_temperature
    teachers, students = (at_least_float32(output.features[x]) / temperature for x in ("teachers", "students"))
    distillation = optax.softmax_cross_entropy(students, jax.nn.softmax(teachers)).mean(0)  # of modules b c
    return _with_distillation(_branches(output, labels, config), distillation, schedule)


def umdr_fusion_losses(output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues) -> Losses:
    """Returns the cross entropies of both heads of the fusion, and their sum."""
    del schedule
    terms = {
        f"cross_entropy_{name}": smoothed_cross_entropy(
            output.heads[f"fusion_{name}"], labels, config.loss.label_smoothing
        )
        for name in MODALITIES
    }
    return {"loss": sum(terms.values(), start=jnp.zeros_like(output.logits[:, 0])), **terms}


def _branches(output: Output, labels: Labels, config: ConfigDict) -> Float[Array, "b"]:
    """Returns the weighted cross entropies of the prediction and of the branches."""
    weights = config.loss.branch_weights if config.loss.multi_branch else (1.0, 0.0, 0.0, 0.0)
    terms = [
        weight * smoothed_cross_entropy(output.heads[name], labels, config.loss.label_smoothing)
        for name, weight in zip(("logits", *BRANCHES), weights, strict=True)
        if weight
    ]
    return sum(terms, start=jnp.zeros_like(output.logits[:, 0]))


def _with_distillation(
    cross_entropy: Float[Array, "b"], distillation: Float[Array, "b"], schedule: ScheduleValues
) -> Losses:
    loss = cross_entropy + schedule.distillation_weight * distillation
    return {"loss": loss, "cross_entropy": cross_entropy, "distillation": distillation}


def fusion_losses(output: Output, labels: Labels, config: ConfigDict, schedule: ScheduleValues) -> Losses:
    """Returns the losses of the paper's fusion.

    Cross entropy of the fused logits and of those of both modalities; `modality`, the binary cross entropy of which
    modality a feature is of; `reconstruction`, the mean squared distance of the decoded feature to that of either
    modality; and the distillation of both.
    """
    features, smoothing = output.features, config.loss.label_smoothing
    cross_entropy = sum(smoothed_cross_entropy(logits, labels, smoothing) for logits in output.heads.values())
    clips = jnp.ones(len(labels))
    modality = optax.sigmoid_binary_cross_entropy(features["modality_logit_rgb"], clips)
    modality += optax.sigmoid_binary_cross_entropy(features["modality_logit_depth"], 0 * clips)
    reconstruction = jnp.zeros_like(modality)
    for name in MODALITIES:
        error = at_least_float32(features["decoded"]) - at_least_float32(features[f"feature_{name}"])
        reconstruction += jnp.mean(jnp.square(error), axis=-1)
    terms = {"cross_entropy": cross_entropy, "modality": modality, "reconstruction": reconstruction}
    distillation = _distillation(output, config)
    loss = cross_entropy + modality + reconstruction + schedule.distillation_weight * distillation
    return {"loss": loss, **terms, "distillation": distillation}
