"""The networks that exist, and one of them under a config: inputs, forward pass and losses as pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from rgbd_jax import losses, optim
from rgbd_jax.modalities import MODALITIES, STREAMS
from rgbd_jax.models.family import ClipInput, Family, Intermediates, Labels, Output, ScheduleValues, Tree
from rgbd_jax.models.fusion import FusionNetwork
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.models.initializers import initial_values
from rgbd_jax.models.layers import ClipRngs
from rgbd_jax.models.mixing import Mixture
from rgbd_jax.models.pytorch_names import DECOUPLED
from rgbd_jax.models.temporal import BRANCHES
from rgbd_jax.models.unimodal import UnimodalNetwork

# The last spatial features, and their mean over positions, through which alone the network depends on them.
EXPLAINED = ("mixed_5c", "pooled_features")
ATTENTION = {f"{branch} branch": f"{branch}_attention" for branch in BRANCHES}


def _frame_weights(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    return {"recoupling weights": f"{prefix}recoupling_weights"} if config.model.recoupling else {}


def unimodal_schedule(config: ConfigDict, epoch: float) -> tuple[float, float]:
    """Returns distillation weight and logit temperature, as in the reference.

    No distillation during warm-up but for its last epoch. The temperature is linear over the first epochs, then
    constant; 1 without `config.loss.sharpness`.
    """
    loss = config.loss
    weight = loss.distillation if int(epoch) >= config.schedule.warm_up_epochs - 1 else 0.0
    if not loss.sharpness:
        return weight, 1.0
    first, last = loss.temperature
    temperatures = np.linspace(first, last, loss.temperature_epochs)
    return weight, float(temperatures[min(int(epoch), len(temperatures) - 1)])


def fusion_schedule(config: ConfigDict, epoch: float) -> tuple[float, float]:
    """Returns distillation weight and logit temperature; both are constant."""
    del epoch
    return config.loss.distillation, 1.0


UNIMODAL = Family(
    name="unimodal",
    module=UnimodalNetwork,
    losses=losses.unimodal_losses,
    schedule=unimodal_schedule,
    loss_names=("loss", "cross_entropy", "distillation"),
    heads={
        "logits": "all branches (maximum)",
        "small": "small branch",
        "medium": "medium branch",
        "large": "large branch",
    },
    head_sums={},
    # The reference unpacks the network's four outputs shifted by one: these are branch `large` and three sums.
    reference_protocol=(("large",), ("logits", "small"), ("logits", "medium"), ("medium", "small")),
    init_fields={"init_from": ""},
    explained=lambda modality: EXPLAINED,
    name_table=DECOUPLED,
    attention=lambda modality: ATTENTION,
    frame_weights=lambda config, modality: _frame_weights(config),
)
FUSION = Family(
    name="fusion",
    module=FusionNetwork,
    losses=losses.fusion_losses,
    schedule=fusion_schedule,
    loss_names=("loss", "cross_entropy", "modality", "reconstruction", "distillation"),
    heads={"logits": "RGB and depth, fused", "rgb": "RGB", "depth": "depth"},
    head_sums={"top1_rgb_depth": ("rgb", "depth"), "top1_all": ("rgb", "depth", "logits")},
    reference_protocol=(("logits",), ("rgb", "depth"), ("rgb", "depth", "logits")),
    init_fields={"init_from": "", **{f"fusion.init_{name}_from": name for name in MODALITIES}},
    explained=lambda modality: (f"{modality}/{EXPLAINED[0]}", f"{modality}/{EXPLAINED[1]}"),
    name_table=DECOUPLED,
    attention=lambda modality: {title: f"{modality}/{name}" for title, name in ATTENTION.items()},
    frame_weights=lambda config, modality: _frame_weights(config, f"{modality}/"),
)
FAMILIES = {family.name: family for family in (UNIMODAL, FUSION)}


def family_of(modality: str) -> Family:
    """Returns the family of networks for `config.modality`."""
    return FUSION if len(STREAMS[modality]) > 1 else UNIMODAL


def schedule_at(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> ScheduleValues:
    """Returns the schedule values after `epoch` epochs (see `optim.learning_rate` for the arguments)."""
    rate = optim.learning_rate(config, epoch, accuracies)
    return ScheduleValues(rate, *family_of(config.modality).schedule(config, epoch))


def evaluation_schedule(config: ConfigDict, epoch: float) -> ScheduleValues:
    """Returns the schedule values for evaluating a state reached in an epoch, counted from 0."""
    return ScheduleValues(0.0, *family_of(config.modality).schedule(config, epoch))


class Model:
    """A network under a config; holds no arrays.

    Args:
        config: the experiment's config.
        num_classes: number of classes.

    Raises:
        ValueError: `config.checkpoint.best_metric` is not a metric of the network.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        self.config = config
        self.num_classes = num_classes
        self.family = family_of(config.modality)
        self.modalities = STREAMS[config.modality]
        metric, known = config.checkpoint.best_metric, self.family.metric_names
        if metric not in known:
            raise ValueError(f"config.checkpoint.best_metric={metric!r}: expected one of {', '.join(known)}")
        network = nnx.eval_shape(lambda: self.family.module(config, num_classes))
        self._graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
        params, batch_stats = states
        self._shapes = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def shapes(self) -> tuple[Tree, Tree]:
        """Returns the shapes and dtypes of parameters and batch statistics, as nested dicts."""
        return self._shapes

    def init(self, seed: int) -> tuple[Tree, Tree]:
        """Returns initial parameters and batch statistics: a function of the seed on every machine."""
        return initial_values(*self._shapes, seed)

    def inputs(self, batch: Mapping[str, Any], mixture: Mixture | None = None) -> dict[str, ClipInput]:
        """Returns the network's inputs in each modality; normalisation and heat maps run on the accelerator.

        Args:
            batch: `frames` (modality -> uint8 b t h w 3), and with a mixture those of the clips' `partner`s.
            mixture: how clips are mixed with their partners.
        """
        model, inputs = self.config.model, {}
        for modality, frames in batch["frames"].items():
            seen, partner = frames, None
            if mixture is not None:
                partner = batch["partner"]["frames"][modality]
                seen = mixture.blend(frames, partner)
            heat = heat_maps(frames, model.frp_window, mixture, partner) if model.frp else None  # b t h w 1
            inputs[modality] = ClipInput(normalise(seen, jnp.dtype(model.dtype)), heat)
        return inputs

    def apply(
        self,
        params: Tree,
        batch_stats: Tree,
        inputs: Mapping[str, ClipInput],
        schedule: ScheduleValues,
        *,
        train: bool = False,
        keys: Key[Array, "b"] | None = None,
        intermediates: Sequence[str] = (),
        perturbations: Mapping[str, Array] | None = None,
    ) -> tuple[Output, Tree]:
        """Returns the network's outputs and the updated batch statistics.

        Args:
            params: the parameters.
            batch_stats: the running statistics.
            inputs: modality -> frames and heat maps.
            schedule: its temperature divides the logits of a unimodal network.
            train: whether BatchNorm uses the statistics of the batch.
            keys: a key for each clip; turns dropout and random branch frames on.
            intermediates: names of intermediate values to return.
            perturbations: name -> what is added to an intermediate value (see `Intermediates`).
        """
        network = nnx.merge(self._graph, params, batch_stats, copy=True)
        if train:
            network.train()
        rngs = None if keys is None else ClipRngs(keys)
        output = network(inputs, schedule, rngs, Intermediates(intermediates, perturbations))
        return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def losses(self, output: Output, labels: Labels, schedule: ScheduleValues) -> Mapping[str, Float[Array, "b"]]:
        """Returns the losses of each clip: `loss`, which is minimised, and its terms."""
        with jax.named_scope("losses"):
            return self.family.losses(output, labels, self.config, schedule)


def normalise(
    frames: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"], dtype: jnp.dtype
) -> Float[Array, "b t h w 3"]:
    """Returns (x - 127.5) / 128: for integers exact in every dtype that the network computes in."""
    return ((frames.astype(jnp.float32) - 127.5) / 128).astype(dtype)
