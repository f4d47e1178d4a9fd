"""Optimizers, gradient clipping and learning rate schedules."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from rgbd_jax.parallel.mesh import SMALLEST_SHARDED

PLATEAU_THRESHOLD = 1e-4  # relative gain in accuracy that counts as an improvement, PyTorch's default
TIMM_WARM_UP_START = 1e-6
SCHEDULES = ("cosine", "reference_cosine", "plateau", "timm_cosine", "timm_step", "timm_multistep")


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optimizer` for a learning rate of 1; the train step scales its updates.

    Optimizers that optax gives no weight decay of their own have it as an L2 penalty, added to the clipped gradient.

    Raises:
        ValueError: the optimizer does not take one of `config.optimizer.arguments`.
    """
    settings = config.optimizer
    function = getattr(optax, settings.name)
    taken = inspect.signature(function).parameters
    arguments = {name: value for name, value in settings.arguments.items() if value is not None}
    for name, value in arguments.items():
        if name not in taken:
            known = ", ".join(each for each in settings.arguments if each in taken)
            raise ValueError(
                f"config.optimizer.arguments.{name}={value!r}: optax.{settings.name} has no such argument; leave it "
                f"None, or use one of {known}"
            )
    mask = None if settings.decay_vectors else _not_vectors
    stages = [clip_by_global_norm(settings.gradient_clip)] if settings.gradient_clip else []
    if "weight_decay" in taken:
        arguments |= {"weight_decay": settings.weight_decay, "mask": mask}
    else:
        stages.append(optax.add_decayed_weights(settings.weight_decay, mask))
    if "momentum" in taken:
        arguments["momentum"] = settings.momentum
    return optax.with_extra_args_support(optax.chain(*stages, function(1.0, **arguments)))


def _not_vectors(params: Any) -> Any:
    """Returns whether each parameter is neither a bias nor the scale of a normalisation."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def zero_state(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """Returns `optimizer.init(params)` as NumPy zeros, without compiling a program for every shape of a parameter."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, params))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm of `max_norm` by PyTorch's rule: times max_norm / (norm + 1e-6).

    The norm is passed with each update (`norm=`), since a device may hold a part of the gradient only.
    """

    def update(updates, state, params=None, *, norm):
        del params
        return optax.tree.scale(jnp.minimum(1.0, max_norm / (norm + 1e-6)), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def map_params_like(function: Callable[[Any], Any], optimizer_state: optax.OptState) -> optax.OptState:
    """Applies a function to the parts of an optimizer state that have the structure of the parameters."""
    return jax.tree.map(
        lambda part: function(part) if isinstance(part, dict) else part,
        optimizer_state,
        is_leaf=lambda part: isinstance(part, dict),
    )


def beside_each_other(tree: Any, shapes: Any) -> Any:
    """Returns a tree like the parameters in which the small tensors are slices of one vector.

    XLA then updates all tensors of a shape in one kernel, not each in its own. Tensors that FSDP splits, by their whole
    `shapes`, stay as they are.
    """
    leaves, structure = jax.tree.flatten(tree)
    small = [i for i, full in enumerate(jax.tree.leaves(shapes)) if full.size < SMALLEST_SHARDED]
    # The barrier keeps XLA from taking the vector apart again.
    vector = jax.lax.optimization_barrier(jnp.concatenate([leaves[i].ravel() for i in small]))
    ends = np.cumsum([leaves[i].size for i in small])[:-1]
    for i, values in zip(small, jnp.split(vector, ends), strict=True):
        leaves[i] = values.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def learning_rate(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> float:
    """Returns the learning rate after `epoch` epochs under `config.schedule`.

    - "cosine": linear warm-up from 0 over `warm_up_epochs`, then cosine decay to `minimum`, updated every step.
    - "reference_cosine": the reference's, constant within an epoch; published accuracies were reached with it.
    - "timm_cosine", "timm_step", "timm_multistep": those of UMDR's reference, constant within an epoch and one epoch
      late: linear warm-up from 1e-6, then cosine decay from the start of the training, or times `factor` every
      `decay_epochs` or at each of the `milestones`.
    - "plateau": the reference's warm-up, then times `factor` whenever accuracy stops improving. `accuracies` are the
      validation accuracies of all finished epochs; NaN where one is unknown.

    Raises:
        ValueError: the schedule is unknown, or there are fewer accuracies than finished epochs.
    """
    schedule, warm_up = config.schedule, config.schedule.warm_up_epochs
    if schedule.name not in SCHEDULES:
        raise ValueError(f"config.schedule.name={schedule.name!r} is not one of {', '.join(SCHEDULES)}")
    if schedule.name.startswith("timm_"):
        return _timm_rate(config, max(int(epoch) - 1, 0))
    peak = schedule.learning_rate
    if schedule.name == "cosine" and epoch < warm_up:
        return peak * epoch / warm_up
    if schedule.name != "cosine":
        epoch = int(epoch)
        peak = _reference_warm_up(schedule, epoch)
    if schedule.name == "plateau":
        if len(accuracies) < epoch:
            raise ValueError(f"epoch {epoch} needs the validation accuracy of {epoch} epochs, found {len(accuracies)}")
        return _reduce_on_plateau(schedule, peak, accuracies[warm_up : int(epoch)])
    progress = min(max(epoch - warm_up, 0) / max(config.train.epochs - warm_up, 1), 1)
    return schedule.minimum + (peak - schedule.minimum) * (1 + float(np.cos(np.pi * progress))) / 2


def _timm_rate(config: ConfigDict, epoch: int) -> float:
    schedule, peak = config.schedule, config.schedule.learning_rate
    if epoch < schedule.warm_up_epochs:
        return TIMM_WARM_UP_START + epoch * (peak - TIMM_WARM_UP_START) / schedule.warm_up_epochs
    if schedule.name == "timm_cosine":
        progress = 1 + float(np.cos(np.pi * epoch / config.train.epochs))
        return schedule.minimum + (peak - schedule.minimum) * progress / 2
    if schedule.name == "timm_step":
        return peak * schedule.factor ** (epoch // schedule.decay_epochs)
    return peak * schedule.factor ** sum(milestone <= epoch + 1 for milestone in schedule.milestones)


def _reference_warm_up(schedule: ConfigDict, epoch: int) -> float:
    """Returns the rate that the reference's warm-up has reached by an epoch; epoch 0 has a rate of 1e-8.

    A unimodal network stops at the second last of the `warm_up_epochs` rates (so the peak is half the learning rate for
    three of them); fusion (`reference_warm_up_to_peak`) continues to the last.
    """
    rates = np.linspace(1e-8, schedule.learning_rate, schedule.warm_up_epochs)
    last = schedule.warm_up_epochs - (1 if schedule.reference_warm_up_to_peak else 2)
    return schedule.learning_rate if last < 0 else float(rates[min(epoch, last)])


def _reduce_on_plateau(schedule: ConfigDict, rate: float, accuracies: Sequence[float]) -> float:
    """Returns what PyTorch's ReduceLROnPlateau makes of a rate after these accuracies."""
    best, bad_epochs, cooldown = -np.inf, 0, 0
    for accuracy in accuracies:
        if np.isnan(accuracy):
            continue  # an epoch before this training took over
        if accuracy > best * (1 + PLATEAU_THRESHOLD):
            best, bad_epochs = accuracy, 0
        else:
            bad_epochs += 1
        if cooldown:
            cooldown, bad_epochs = cooldown - 1, 0
        if bad_epochs > schedule.patience:
            rate = max(rate * schedule.factor, schedule.minimum)
            bad_epochs, cooldown = 0, schedule.cooldown
    return rate
