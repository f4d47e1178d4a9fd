"""Optimizers, gradient clipping and learning rate schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

PLATEAU_THRESHOLD = 1e-4  # relative gain in accuracy that counts as an improvement, PyTorch's default
SCHEDULES = ("cosine", "reference_cosine", "plateau")


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optimizer` for a learning rate of 1; the train step scales its updates.

    Raises:
        ValueError: the optimizer is unknown.
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


def learning_rate(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> float:
    """Returns the learning rate after `epoch` epochs.

    Args:
        config: `config.schedule` and `config.train.epochs` are read.
        epoch: number of epochs done; the "cosine" schedule alone uses the fraction.
        accuracies: validation accuracy of every finished epoch ("plateau" only); NaN where it is unknown.

    Raises:
        ValueError: the schedule is unknown.
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
    """Linear warm-up from 0 over `warm_up_epochs`, then cosine decay to `minimum`."""
    if epoch < schedule.warm_up_epochs:
        return schedule.learning_rate * epoch / schedule.warm_up_epochs
    progress = (epoch - schedule.warm_up_epochs) / max(epochs - schedule.warm_up_epochs, 1)
    return _cosine(schedule.learning_rate, schedule.minimum, progress)


def reference_warm_up_cosine(schedule: ConfigDict, epochs: int, epoch: int) -> float:
    """The reference's schedule, constant within an epoch; kept because published accuracies were reached with it.

    Epoch 0 has a rate of 1e-8, and the warm-up of a unimodal network stops one epoch before its peak (see
    `_reference_warm_up`); the cosine starts from there.
    """
    last, peak = _reference_warm_up(schedule, epoch)
    if epoch <= last:
        return peak
    progress = max(epoch - schedule.warm_up_epochs, 0) / (epochs - schedule.warm_up_epochs)
    return _cosine(peak, schedule.minimum, progress)


def reference_warm_up_plateau(schedule: ConfigDict, epoch: int, accuracies: Sequence[float]) -> float:
    """The reference's warm-up, then times `factor` whenever accuracy stops improving (PyTorch's ReduceLROnPlateau).

    Raises:
        ValueError: fewer accuracies than finished epochs.
    """
    if len(accuracies) < epoch:
        raise ValueError(f"epoch {epoch} needs the validation accuracy of {epoch} epochs, found {len(accuracies)}")
    _, rate = _reference_warm_up(schedule, epoch)
    best, bad_epochs, cooldown = -np.inf, 0, 0
    for accuracy in accuracies[schedule.warm_up_epochs : epoch]:
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


def _reference_warm_up(schedule: ConfigDict, epoch: int) -> tuple[int, float]:
    """Returns the last epoch of the warm-up and the rate that it has reached by `epoch`.

    A unimodal network stops at the second last of the `warm_up_epochs` rates (so the peak is half the learning rate for
    three of them); fusion (`reference_warm_up_to_peak`) continues to the last.
    """
    rates = np.linspace(1e-8, schedule.learning_rate, schedule.warm_up_epochs)
    last = schedule.warm_up_epochs - (1 if schedule.reference_warm_up_to_peak else 2)
    if last < 0:
        return -1, schedule.learning_rate
    return last, float(rates[min(epoch, last)])


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + float(np.cos(np.pi * min(progress, 1.0)))) / 2
