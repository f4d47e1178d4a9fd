"""The train, evaluation and prediction step of a stream, as pure functions of a train state and a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from rgbd_jax import metrics, mixing, optim
from rgbd_jax.data.heatmap import heat_maps
from rgbd_jax.losses import Labels, fusion_losses, unimodal_losses
from rgbd_jax.models.fusion import FusionNetwork, FusionOutput
from rgbd_jax.models.initial import initial_values
from rgbd_jax.models.network import MotionNetwork, NetworkOutput
from rgbd_jax.settings import check_config

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
class Moment:
    """What depends on the progress of the training, not on the batch."""

    learning_rate: Float[Array, ""] | float
    distillation_weight: Float[Array, ""] | float
    temperature: Float[Array, ""] | float


def moment_at(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> Moment:
    """Returns the settings at a moment of the training (see `optim.learning_rate` for the arguments)."""
    return Moment(
        learning_rate=optim.learning_rate(config, epoch, accuracies),
        distillation_weight=optim.distillation_weight(config, epoch),
        temperature=optim.logit_temperature(config, epoch),
    )


def evaluation_moment(config: ConfigDict, epoch: float) -> Moment:
    """Returns the settings with which a state is evaluated that was reached in an epoch, counted from 0."""
    return Moment(0.0, optim.distillation_weight(config, epoch), optim.logit_temperature(config, epoch))


class Stream:
    """The network and optimizer of a stream ("rgb", "depth" or "fusion" of both); holds no arrays.

    Args:
        config: the experiment's config.
        num_classes: number of classes.

    Raises:
        ValueError: the config cannot be used; names every field that is wrong.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        check_config(config)
        self.config = config
        self.num_classes = num_classes
        self.optimizer = optim.make_optimizer(config)
        self.fusion = config.stream == "fusion"
        network_type = FusionNetwork if self.fusion else MotionNetwork
        network = nnx.eval_shape(lambda: network_type(config, num_classes))
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
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, self.optimizer.init(ravel_pytree(params)[0]))

    def inputs(self, batch: Batch, mixture: mixing.Mixture | None = None) -> tuple[Clips, Heats]:
        """Returns normalised frames and their heat maps, both computed on the accelerator.

        Args:
            batch: the batch; only its frames, uint8 b t h w 3, are read.
            mixture: how its clips are mixed, None if they are not.
        """
        model = self.config.model
        clip, heat = {}, {}
        for modality, frames in batch["frames"].items():  # uint8, b t h w 3
            seen = frames if mixture is None else mixture.blend(frames, mixing.partners(frames))
            clip[modality] = normalise(seen, jnp.dtype(model.dtype))
            heat[modality] = heat_maps(frames, model.frp_window, mixture) if model.frp else None  # b t h w 1
        return (clip, heat) if self.fusion else (clip[self.config.stream], heat[self.config.stream])

    def forward(
        self, params: Tree, batch_stats: Tree, clip: Clips, heat: Heats, temperature: Array | float, *,
        train: bool = False, key: Array | None = None, intermediates: tuple[str, ...] = (),
    ) -> tuple[Output, Tree]:  # fmt: skip
        """Returns what the network says of the clips, and the batch statistics afterwards.

        Args:
            params: the network's parameters.
            batch_stats: its running statistics.
            clip: normalised frames.
            heat: their heat maps.
            temperature: divides the logits of one stream; the fusion network has none.
            train: whether dropout, random branch frames and batch statistics are on.
            key: what dropout is drawn from, needed in training.
            intermediates: names of intermediate results to return.
        """
        rngs = None if key is None else nnx.Rngs(dropout=key)
        network = nnx.merge(self.graph, params, batch_stats, copy=True)
        sharpness = {} if self.fusion else {"temperature": temperature}
        output = network(clip, heat, **sharpness, train=train, rngs=rngs, intermediates=intermediates)
        return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def losses(self, output: Output, labels: Labels, moment: Moment) -> Mapping[str, Float[Array, "b"]]:
        """Returns the losses of each clip: `loss`, which is minimised, and its parts."""
        weight = moment.distillation_weight
        if isinstance(output, FusionOutput):
            return fusion_losses(output, labels, self.config, distillation_weight=weight)
        return unimodal_losses(output, labels, self.config, distillation_weight=weight)

    def gradients(
        self, params: Tree, batch_stats: Tree, clip: Clips, heat: Heats, labels: Labels, moment: Moment, key: Array
    ) -> tuple[Tree, Tree, Output, Mapping[str, Float[Array, ""]]]:
        """Returns the gradient, the new batch statistics, the output and the losses averaged over the clips."""

        def mean_loss(params):
            output, stats = self.forward(params, batch_stats, clip, heat, moment.temperature, train=True, key=key)
            means = {name: values.mean() for name, values in self.losses(output, labels, moment).items()}
            return means["loss"], (stats, output, means)

        gradient, (stats, output, means) = jax.grad(mean_loss, has_aux=True)(params)
        return gradient, stats, output, means

    def update(
        self, state: TrainState, clip: Clips, heat: Heats, labels: Labels, moment: Moment, seed: Array | int
    ) -> tuple[TrainState, Mapping[str, Float[Array, ""]]]:
        """Takes one optimizer step; returns the new state and the step's metrics.

        The metric `top1` of mixed clips counts those whose class of the largest share is recognised.
        Randomness is a function of the seed, the step and the clip's place in the global batch.
        """
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient, stats, output, means = self.gradients(
            state.params, state.batch_stats, clip, heat, labels, moment, key
        )
        # The optimizer sees one flat vector: hundreds of small tensors would each cost time to compile and to launch.
        flat_params, unravel = ravel_pytree(state.params)
        flat_gradient, _ = ravel_pytree(gradient)
        updates, optimizer_state = self.optimizer.update(flat_gradient, state.optimizer_state, flat_params)
        params = unravel(flat_params + moment.learning_rate * updates)
        classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
        measured = {
            **means,
            "top1": jnp.mean(metrics.rank_of_label(output.logits, classes) < 1),
            "gradient_norm": jnp.linalg.norm(flat_gradient),
        }
        return TrainState(state.step + 1, params, stats, optimizer_state), measured

    def train_step(
        self, state: TrainState, batch: Batch, moment: Moment
    ) -> tuple[TrainState, Mapping[str, Float[Array, ""]]]:
        """Trains on one batch, mixed as `config.mixing` says; returns the new state and the step's metrics."""
        config, labels, mixture = self.config, batch["label"], None
        if mixing.enabled(config.mixing):
            mixture = mixing.draw(config.mixing, config.clip.frames, config.seed, state.step)
            labels = mixture.labels(labels, self.num_classes)
        clip, heat = self.inputs(batch, mixture)
        return self.update(state, clip, heat, labels, moment, config.seed)

    def evaluation_step(self, params: Tree, batch_stats: Tree, batch: Batch, moment: Moment) -> Mapping[str, Any]:
        """Returns, clip by clip, the logits of every head (`heads`) and the losses (`losses`)."""
        output, _ = self.forward(params, batch_stats, *self.inputs(batch), moment.temperature)
        return {"heads": dict(output.heads), "losses": dict(self.losses(output, batch["label"], moment))}

    def predict_step(
        self, params: Tree, batch_stats: Tree, batch: Batch, intermediates: tuple[str, ...] = ()
    ) -> Output:
        """Returns the network's output at temperature 1, with intermediate results by name."""
        return self.forward(params, batch_stats, *self.inputs(batch), 1.0, intermediates=intermediates)[0]


def normalise(
    frames: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"], dtype: jnp.dtype
) -> Float[Array, "b t h w 3"]:
    """Returns (x - 127.5) / 128, for whole x exact in every floating type that the network computes in."""
    return ((frames.astype(jnp.float32) - 127.5) / 128).astype(dtype)
