"""The train, evaluation and prediction step of a stream, as pure functions of a train state and a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from rgbd_jax import metrics, optim
from rgbd_jax.config import check_config
from rgbd_jax.losses import Labels, fusion_losses, unimodal_losses
from rgbd_jax.models import mixing
from rgbd_jax.models.fusion import FusionNetwork, FusionOutput
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.models.initializers import initial_values
from rgbd_jax.models.network import MotionNetwork, NetworkOutput
from rgbd_jax.models.rngs import ClipRngs
from rgbd_jax.parallel.collectives import ALONE, Spread

Tree = Mapping[str, Any]
Batch = Mapping[str, Any]
Output = NetworkOutput | FusionOutput
Clips = Any  # normalised frames, b t h w 3; for fusion "rgb" and "depth" -> frames
Heats = Any  # their heat maps, b t h w 1, or None without FRP; for fusion "rgb" and "depth" -> heat maps


@struct.dataclass
class TrainState:
    """Everything that a training step changes: plain nested dicts of arrays."""

    step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    optimizer_state: optax.OptState


@struct.dataclass
class ScheduleValues:
    """What depends on the progress of the training, not on the batch."""

    learning_rate: Float[Array, ""] | float
    distillation_weight: Float[Array, ""] | float
    temperature: Float[Array, ""] | float


def schedule_at(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> ScheduleValues:
    """Returns the settings at a moment of the training (see `optim.learning_rate` for the arguments)."""
    return ScheduleValues(
        learning_rate=optim.learning_rate(config, epoch, accuracies),
        distillation_weight=optim.distillation_weight(config, epoch),
        temperature=optim.logit_temperature(config, epoch),
    )


def evaluation_schedule(config: ConfigDict, epoch: float) -> ScheduleValues:
    """Returns the settings with which a state is evaluated that was reached in an epoch, counted from 0."""
    return ScheduleValues(0.0, optim.distillation_weight(config, epoch), optim.logit_temperature(config, epoch))


class Stream:
    """The network and optimizer of a stream ("rgb", "depth" or "fusion" of both); holds no arrays.

    Args:
        config: the experiment's config.
        num_classes: number of classes.
        spread: how `train_step` is spread over devices inside `jax.shard_map`.

    Raises:
        ValueError: the config cannot be used; names every field that is wrong.
    """

    def __init__(self, config: ConfigDict, num_classes: int, spread: Spread = ALONE):
        check_config(config)
        self.spread = spread
        self.config = config
        self.num_classes = num_classes
        self.optimizer = optim.make_optimizer(config)
        self.fusion = config.modality == "fusion"
        network_type = FusionNetwork if self.fusion else MotionNetwork
        axes = spread.axes if config.model.sync_batch_norm else ()
        network = nnx.eval_shape(lambda: network_type(config, num_classes, axes))
        self.graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
        params, batch_stats = states
        self._shapes = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def init(self, seed: int) -> TrainState:
        """Returns the state that a training from scratch starts from: a function of the seed on every machine."""
        return self.state_of(*initial_values(*self._shapes, seed))

    def shapes(self) -> TrainState:
        """Returns shapes and types of the state."""
        return jax.eval_shape(self.state_of, *self._shapes)

    def state_of(self, params: Tree, batch_stats: Tree) -> TrainState:
        """Returns the state that a training from given weights starts from."""
        step = jnp.asarray(np.zeros((), np.int32))
        return TrainState(step, params, batch_stats, optim.initial_state(self.optimizer, params))

    def inputs(self, batch: Batch, mixture: mixing.Mixture | None = None) -> tuple[Clips, Heats]:
        """Returns normalised frames and their heat maps, both computed on the accelerator.

        Args:
            batch: the batch; only its frames, uint8 b t h w 3, and those of its partners are read.
            mixture: how its clips are mixed with their partners, None if they are not.
        """
        model = self.config.model
        clip, heat = {}, {}
        for modality, frames in batch["frames"].items():  # uint8, b t h w 3
            seen, partner = frames, None
            if mixture is not None:
                partner = batch["partner"]["frames"][modality]
                seen = mixture.blend(frames, partner)
            clip[modality] = normalise(seen, jnp.dtype(model.dtype))
            heat[modality] = heat_maps(frames, model.frp_window, mixture, partner) if model.frp else None  # b t h w 1
        return (clip, heat) if self.fusion else (clip[self.config.modality], heat[self.config.modality])

    def forward(
        self, params: Tree, batch_stats: Tree, clip: Clips, heat: Heats, temperature: Array | float, *,
        train: bool = False, keys: Key[Array, "b"] | None = None, intermediates: tuple[str, ...] = (),
        offsets: Mapping[str, Array] | None = None,
    ) -> tuple[Output, Tree]:  # fmt: skip
        """Returns what the network says of the clips, and the batch statistics afterwards.

        Args:
            params: the network's parameters.
            batch_stats: its running statistics.
            clip: normalised frames.
            heat: their heat maps.
            temperature: divides the logits of one stream; the fusion network has none.
            train: whether batch statistics are on.
            keys: a key for each clip; they turn dropout and random branch frames on.
            intermediates: names of intermediate results to return.
            offsets: name -> what is added to an intermediate result (see `Intermediates`).
        """
        draws = None if keys is None else ClipRngs(keys)
        network = nnx.merge(self.graph, params, batch_stats, copy=True)
        sharpness = {} if self.fusion else {"temperature": temperature}
        output = network(
            clip, heat, **sharpness, train=train, draws=draws, intermediates=intermediates, offsets=offsets
        )
        return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def losses(self, output: Output, labels: Labels, moment: ScheduleValues) -> Mapping[str, Float[Array, "b"]]:
        """Returns the losses of each clip: `loss`, which is minimised, and its parts."""
        weight = moment.distillation_weight
        with jax.named_scope("losses"):
            if isinstance(output, FusionOutput):
                return fusion_losses(output, labels, self.config, distillation_weight=weight)
            return unimodal_losses(output, labels, self.config, distillation_weight=weight)

    def gradients(
        self, params: Tree, batch_stats: Tree, clip: Clips, heat: Heats, labels: Labels, moment: ScheduleValues,
        keys: Key[Array, "b"],
    ) -> tuple[Tree, Tree, Output, Mapping[str, Float[Array, ""]]]:  # fmt: skip
        """Returns the gradient, the new batch statistics, the output and the losses averaged over the clips.

        Args:
            params: whole parameters.
            batch_stats: running statistics.
            clip: normalised frames of the clips at hand.
            heat: their heat maps.
            labels: true classes, or the share of every class.
            moment: the moment of the training.
            keys: of each clip, what its dropout and branch frames are drawn from.
        """

        def mean_loss(params):
            output, stats = self.forward(params, batch_stats, clip, heat, moment.temperature, train=True, keys=keys)
            means = {name: values.mean() for name, values in self.losses(output, labels, moment).items()}
            return means["loss"], (stats, output, means)

        gradient, (stats, output, means) = jax.grad(mean_loss, has_aux=True)(params)
        return gradient, stats, output, means

    def descend(
        self, state: TrainState, gradient: Tree, batch_stats: Tree, moment: ScheduleValues
    ) -> tuple[TrainState, Float[Array, ""]]:
        """Takes one optimizer step; returns the new state and the norm of the gradient before it was clipped.

        Args:
            state: the train state before the step.
            gradient: averaged over all clips.
            batch_stats: the new running statistics.
            moment: the moment of the training.
        """
        norm = self.spread.norm(gradient, self._shapes[0])
        updates, optimizer_state = self.optimizer.update(gradient, state.optimizer_state, state.params, norm=norm)
        params = jax.tree.map(lambda leaf, update: leaf + moment.learning_rate * update, state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, optimizer_state), norm

    def train_step(
        self, state: TrainState, batch: Batch, moment: ScheduleValues
    ) -> tuple[TrainState, Mapping[str, Float[Array, ""]]]:
        """Trains on the clips at hand, together with those of the other devices that the step is spread over.

        The clips go through the network in `config.train.microbatches` parts: the gradient is the mean of theirs.
        BatchNorm normalises each part by its own statistics, and the running ones move once, by the parts' mean.
        Randomness is a function of the seed, the step and the clip.

        Args:
            state: the train state.
            batch: the clips, and with mixing their `partner`s (see `with_partners`).
            moment: the moment of the training.

        Returns:
            The new state and the step's figures, averaged over all clips. `top1` of mixed clips counts those whose
            class of the largest share is recognised.
        """
        config = self.config
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        mixture = None
        if mixing.enabled(config.mixing):
            mixture = mixing.draw(config.mixing, config.clip.frames, config.seed, state.step)
        params = self.spread.gather(state.params, self._shapes[0])

        def measure(part: Batch) -> tuple[Tree, tuple[Tree, Mapping[str, Float[Array, ""]]]]:
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, part["record"])
            labels = part["label"]
            if mixture is not None:
                labels = mixture.labels(labels, part["partner"]["label"], self.num_classes)
            with jax.named_scope("inputs"):
                clip, heat = self.inputs(part, mixture)
            gradient, stats, output, means = self.gradients(params, state.batch_stats, clip, heat, labels, moment, keys)
            classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
            top1 = jnp.mean(metrics.rank_of_label(output.logits, classes) < 1)
            return gradient, (stats, {**means, "top1": top1})

        zeros = self.spread.zeros_like(self._shapes[0])
        gradient, (stats, measured) = mean_over_parts(measure, batch, config.train.microbatches, zeros)
        gradient = self.spread.mean_gradient(gradient, self._shapes[0])
        if not config.model.sync_batch_norm:
            stats = self.spread.mean(stats)
        with jax.named_scope("optimizer"):
            state, norm = self.descend(state, gradient, stats, moment)
        return state, {**self.spread.mean(measured), "gradient_norm": norm}

    def evaluation_step(
        self, params: Tree, batch_stats: Tree, batch: Batch, moment: ScheduleValues
    ) -> Mapping[str, Any]:
        """Returns, clip by clip, the logits of every head (`heads`) and the losses (`losses`)."""
        output, _ = self.forward(params, batch_stats, *self.inputs(batch), moment.temperature)
        return {"heads": dict(output.heads), "losses": dict(self.losses(output, batch["label"], moment))}

    def predict_step(
        self, params: Tree, batch_stats: Tree, batch: Batch, intermediates: tuple[str, ...] = (),
        temperature: Array | float = 1.0,
    ) -> Output:  # fmt: skip
        """Returns the network's output, with intermediate results by name; only the batch's frames are read."""
        return self.forward(params, batch_stats, *self.inputs(batch), temperature, intermediates=intermediates)[0]


def normalise(
    frames: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"], dtype: jnp.dtype
) -> Float[Array, "b t h w 3"]:
    """Returns (x - 127.5) / 128, for whole x exact in every floating type that the network computes in."""
    return ((frames.astype(jnp.float32) - 127.5) / 128).astype(dtype)


def with_partners(batch: Batch, config: ConfigDict) -> Batch:
    """Returns a whole batch with the frames and labels of the clips that its clips are mixed with, if they are."""
    if not mixing.enabled(config.mixing):
        return batch
    partner = jax.tree.map(mixing.partners, {"frames": batch["frames"], "label": batch["label"]})
    return {**batch, "partner": partner}


def mean_over_parts(
    measure: Callable[[Batch], tuple[Tree, Any]], batch: Batch, count: int, zeros: Tree
) -> tuple[Tree, Any]:
    """Returns the means of a gradient and of figures over equal parts of a batch, one after the other.

    Clip i is in part i modulo `count`: the parts hold the same clips on any number of devices.

    Args:
        measure: returns the gradient and a tree of figures of a part.
        batch: arrays whose first axis is the clip, divisible by `count`.
        count: number of parts.
        zeros: a gradient of zeros.
    """
    if count == 1:
        return measure(batch)
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)  # count b/count ...

    def add(total: Tree, part: Batch) -> tuple[Tree, Any]:
        gradient, figures = measure(part)
        return jax.tree.map(jnp.add, total, gradient), figures

    total, figures = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total), jax.tree.map(lambda x: x.mean(0), figures)
