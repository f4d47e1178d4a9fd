"""Optimizers, gradient clipping, and what changes from epoch to epoch: learning rate, temperature, distillation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

PLATEAU_THRESHOLD = 1e-4  # relative gain of the accuracy that counts as better, PyTorch's default
SCHEDULES = ("cosine", "reference_cosine", "plateau")


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optimizer` for a learning rate of 1; the train step scales its updates.

    Raises:
        ValueError: the optimizer is not known.
    """
    settings = config.optimizer
    clip = [clip_by_global_norm(settings.gradient_clip)] if settings.gradient_clip else []
    decay = optax.add_decayed_weights(settings.weight_decay)
    chains = {
        "sgd": [decay, optax.trace(settings.momentum)],
        "adam": [decay, optax.scale_by_adam()],
        "adamw": [optax.scale_by_adam(), decay],
    }
    if settings.name not in chains:
        raise ValueError(f"config.optimizer.name={settings.name!r} is not one of {', '.join(chains)}")
    return optax.with_extra_args_support(optax.chain(*clip, *chains[settings.name], optax.scale(-1.0)))


def initial_state(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """Returns what `optimizer.init` returns, for the optimizers of `make_optimizer`: zeros, as NumPy arrays.

    JAX would compile a program for every shape of a parameter, two seconds in all before a training starts.
    """
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, params))


def clip_by_global_norm(largest: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm of `largest`, by PyTorch's rule: times largest / (norm + 1e-6).

    The norm is given with each update (`norm=`): devices may hold parts of the gradient only.
    """

    def update(updates, state, params=None, *, norm):
        del params
        factor = jnp.minimum(1.0, largest / (norm + 1e-6))
        return optax.tree.scale(factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def map_trees(function: Callable[[Any], Any], optimizer_state: optax.OptState) -> optax.OptState:
    """Applies a function to those parts of an optimizer state that lie like the parameters (nested dicts)."""
    return jax.tree.map(
        lambda part: function(part) if isinstance(part, dict) else part,
        optimizer_state,
        is_leaf=lambda part: isinstance(part, dict),
    )


def learning_rate(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> float:
    """Returns the learning rate at a moment of the training.

    Args:
        config: `config.schedule` and `config.train.epochs` are read.
        epoch: epochs done so far; the fraction counts in the clean schedules only.
        accuracies: validation accuracy of every finished epoch ("plateau" only); not a number where it is not known.

    Raises:
        ValueError: the schedule is not known.
    """
    schedule = config.schedule
    if schedule.name == "cosine":
        return warm_up_cosine(schedule, config.train.epochs, epoch)
    if schedule.name == "reference_cosine":
        return reference_warm_up_cosine(schedule, config.train.epochs, int(epoch))
    if schedule.name == "plateau":
        return reference_warm_up_plateau(schedule, int(epoch), accuracies)
    raise ValueError(f"config.schedule.name={schedule.name!r} is not one of {', '.join(SCHEDULES)}")


def warm_up_cosine(schedule: ConfigDict, epochs: int, epoch: float) -> float:
    """Rises linearly from 0 over `warm_up_epochs`, then falls along a cosine to `minimum` at the end."""
    if epoch < schedule.warm_up_epochs:
        return schedule.learning_rate * epoch / schedule.warm_up_epochs
    progress = (epoch - schedule.warm_up_epochs) / max(epochs - schedule.warm_up_epochs, 1)
    return _cosine(schedule.learning_rate, schedule.minimum, progress)


def reference_warm_up_cosine(schedule: ConfigDict, epochs: int, epoch: int) -> float:
    """The reference's rate, constant within an epoch; kept because published accuracies were reached with it.

    Epoch 0 has a rate of 1e-8, and the warm-up of one stream stops one epoch before its peak
    (see `_reference_warm_up`); the cosine starts from where it stopped.
    """
    warming, peak = _reference_warm_up(schedule, epoch)
    if epoch <= warming:
        return peak
    progress = max(epoch - schedule.warm_up_epochs, 0) / (epochs - schedule.warm_up_epochs)
    return _cosine(peak, schedule.minimum, progress)


def reference_warm_up_plateau(schedule: ConfigDict, epoch: int, accuracies: Sequence[float]) -> float:
    """The reference's warm-up, then times `factor` whenever the accuracy stops rising (PyTorch's ReduceLROnPlateau).

    Raises:
        ValueError: fewer accuracies than finished epochs.
    """
    if len(accuracies) < epoch:
        raise ValueError(f"epoch {epoch} needs the validation accuracy of {epoch} epochs, found {len(accuracies)}")
    _, rate = _reference_warm_up(schedule, epoch)
    best, bad_epochs, cooldown = -np.inf, 0, 0
    for accuracy in accuracies[schedule.warm_up_epochs : epoch]:
        if np.isnan(accuracy):
            continue  # an epoch before this training was taken over
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


def _reference_warm_up(schedule: ConfigDict, epoch: int) -> tuple[int, float]:
    """Returns the last epoch of the warm-up and the rate that it has reached by `epoch`.

    One stream stops at the last but one of the `warm_up_epochs` rates (so the peak is half the learning rate for
    three of them); fusion, `reference_warm_up_to_peak`, goes through to the last.
    """
    rates = np.linspace(1e-8, schedule.learning_rate, schedule.warm_up_epochs)
    last = schedule.warm_up_epochs - (1 if schedule.reference_warm_up_to_peak else 2)
    if last < 0:
        return -1, schedule.learning_rate
    return last, float(rates[min(epoch, last)])


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + float(np.cos(np.pi * min(progress, 1.0)))) / 2


def distillation_weight(config: ConfigDict, epoch: float) -> float:
    """Returns the weight of the distillation, as the reference has it.

    One stream has none in the warm-up but its last epoch; fusion has it from the start.
    """
    if config.modality == "fusion":
        return config.loss.distillation
    return config.loss.distillation if int(epoch) >= config.schedule.warm_up_epochs - 1 else 0.0


def logit_temperature(config: ConfigDict, epoch: float) -> float:
    """Returns what logits are divided by: linear over the first epochs, then constant; 1 without sharpness."""
    if not config.loss.sharpness:
        return 1.0
    first, last = config.loss.temperature
    rates = np.linspace(first, last, config.loss.temperature_epochs)
    return float(rates[min(int(epoch), len(rates) - 1)])
