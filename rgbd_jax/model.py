"""The networks that exist, and one of them under a config: inputs, forward pass and losses as pure functions."""

import dataclasses
import math
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
from rgbd_jax.models.dynamic_images import dynamic_images
from rgbd_jax.models.family import ClipInput, Family, Frozen, Intermediates, Labels, Output, ScheduleValues, Tree
from rgbd_jax.models.fusion import FusionNetwork
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.models.initializers import initial_values
from rgbd_jax.models.layers import ClipRngs
from rgbd_jax.models.mixing import Mixture, mixup_limit
from rgbd_jax.models.ops import operations
from rgbd_jax.models.pytorch_names import DECOUPLED
from rgbd_jax.models.spatial import explained_block
from rgbd_jax.models.temporal import BRANCHES
from rgbd_jax.models.umdr.fusion import UMDRFusionNetwork
from rgbd_jax.models.umdr.names import UMDR_FUSION_NAMES, UMDR_NAMES
from rgbd_jax.models.umdr.network import UMDRNetwork
from rgbd_jax.models.umdr.spatial import RECOUPLINGS
from rgbd_jax.models.unimodal import UnimodalNetwork

FEATURES = ("frame_features", "class_feature")
ATTENTION = {f"{branch} branch": f"{branch}_attention" for branch in BRANCHES}


def _frame_weights(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    return {"recoupling weights": f"{prefix}recoupling_weights"} if config.model.recoupling else {}


def _umdr_frame_weights(prefix: str = "") -> dict[str, str]:
    return {f"recoupling weights {number}": f"{prefix}recoupling_{number}_weights" for number in RECOUPLINGS}


def unimodal_schedule(config: ConfigDict, epoch: float) -> tuple[float, float]:
    """Returns distillation weight and logit temperature, as in the reference.

    No distillation during warm-up but for its last epoch. The temperature is linear over the first epochs, then
    constant; 1 without `config.loss.sharpness`.
    """
    weight = config.loss.distillation if int(epoch) >= config.schedule.warm_up_epochs - 1 else 0.0
    return weight, _temperature(config, epoch)


def umdr_schedule(config: ConfigDict, epoch: float) -> tuple[float, float]:
    """Returns distillation weight and logit temperature, as in the reference: no distillation until after warm-up."""
    weight = config.loss.distillation if int(epoch) > config.schedule.warm_up_epochs else 0.0
    return weight, _temperature(config, epoch)


def _temperature(config: ConfigDict, epoch: float) -> float:
    if not config.loss.sharpness:
        return 1.0
    first, last = config.loss.temperature
    temperatures = np.linspace(first, last, config.loss.temperature_epochs)
    return float(temperatures[min(int(epoch), len(temperatures) - 1)])


def fusion_schedule(config: ConfigDict, epoch: float) -> tuple[float, float]:
    """Returns distillation weight and logit temperature; both are constant.

    UMDR's fusion has no distillation, and `config.fusion.frozen_temperatures` of its own.
    """
    del epoch
    return config.loss.distillation, 1.0


UNIMODAL = Family(
    name="unimodal",
    network="decoupled",
    modalities=MODALITIES,
    module=UnimodalNetwork,
    losses=losses.unimodal_losses,
    schedule=unimodal_schedule,
    loss_names=("loss", "cross_entropy", "distillation"),
    heads={"logits": "all branches (maximum)", **{name: f"{name} branch" for name in BRANCHES}},
    head_sums={},
    # The reference unpacks the network's four outputs shifted by one: these are branch `large` and three sums.
    reference_protocol=(("large",), ("logits", "small"), ("logits", "medium"), ("medium", "small")),
    init_fields={"init_from": ""},
    explained=lambda config, modality: explained_block(config.clip.size),
    features=lambda modality: FEATURES,
    name_table=DECOUPLED,
    attention=lambda modality: ATTENTION,
    frame_weights=lambda config, modality: _frame_weights(config),
)
FUSION = Family(
    name="fusion",
    network="decoupled",
    modalities=("fusion",),
    module=FusionNetwork,
    losses=losses.fusion_losses,
    schedule=fusion_schedule,
    loss_names=("loss", "cross_entropy", "modality", "reconstruction", "distillation"),
    heads={"logits": "RGB and depth, fused", "rgb": "RGB", "depth": "depth"},
    head_sums={"top1_rgb_depth": ("rgb", "depth"), "top1_all": ("rgb", "depth", "logits")},
    reference_protocol=(("logits",), ("rgb", "depth"), ("rgb", "depth", "logits")),
    init_fields={"init_from": "", **{f"fusion.init_{name}_from": name for name in MODALITIES}},
    explained=lambda config, modality: f"{modality}/{explained_block(config.clip.size)}",
    features=lambda modality: (f"{modality}/{FEATURES[0]}", f"{modality}/{FEATURES[1]}"),
    name_table=DECOUPLED,
    attention=lambda modality: {title: f"{modality}/{name}" for title, name in ATTENTION.items()},
    frame_weights=lambda config, modality: _frame_weights(config, f"{modality}/"),
)
UMDR = dataclasses.replace(
    UNIMODAL,
    name="umdr",
    network="umdr",
    module=UMDRNetwork,
    losses=losses.umdr_losses,
    schedule=umdr_schedule,
    reference_protocol=(("logits",), BRANCHES, ("small", "medium"), ("small", "large"), ("large", "medium")),
    name_table=UMDR_NAMES,
    frame_weights=lambda config, modality: _umdr_frame_weights(),
)
UMDR_FUSION = dataclasses.replace(
    FUSION,
    name="umdr_fusion",
    network="umdr",
    module=UMDRFusionNetwork,
    losses=losses.umdr_fusion_losses,
    loss_names=("loss", *(f"cross_entropy_{name}" for name in MODALITIES)),
    heads={**FUSION.heads, "fusion_rgb": "RGB after the fusion", "fusion_depth": "depth after the fusion"},
    head_sums={"top1_rgb_depth": MODALITIES},
    reference_protocol=(("logits",), MODALITIES),
    features=lambda modality: (f"{modality}/{FEATURES[0]}", f"{modality}/fused_feature"),
    name_table=UMDR_FUSION_NAMES,
    frame_weights=lambda config, modality: _umdr_frame_weights(f"{modality}/"),
    frozen=MODALITIES,
)
FAMILIES = {family.name: family for family in (UNIMODAL, FUSION, UMDR, UMDR_FUSION)}


def family_of(network: str, modality: str) -> Family:
    """Returns the family of networks for `config.network` and `config.modality`."""
    return next(each for each in FAMILIES.values() if each.network == network and modality in each.modalities)


def schedule_at(config: ConfigDict, epoch: float, accuracies: Sequence[float] = ()) -> ScheduleValues:
    """Returns the schedule values after `epoch` epochs (see `optim.learning_rate` for the arguments)."""
    rate, limit = optim.learning_rate(config, epoch, accuracies), mixup_limit(config.mixing, epoch, config.train.epochs)
    return ScheduleValues(rate, *family_of(config.network, config.modality).schedule(config, epoch), limit)


def evaluation_schedule(config: ConfigDict, epoch: float) -> ScheduleValues:
    """Returns the schedule values for evaluating a state reached in an epoch, counted from 0."""
    return ScheduleValues(0.0, *family_of(config.network, config.modality).schedule(config, epoch))


class Model:
    """A network under a config; holds no arrays.

    `num_parameters` is how many numbers its parameters have, frozen ones included.

    Raises:
        ValueError: `config.checkpoint.best_metric` is not a metric of the network.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        self.config = config
        self.num_classes = num_classes
        self.family = family_of(config.network, config.modality)
        self.modalities = STREAMS[config.modality]
        metric, known = config.checkpoint.best_metric, self.family.metric_names
        if metric not in known:
            raise ValueError(f"config.checkpoint.best_metric={metric!r}: expected one of {', '.join(known)}")
        network = nnx.eval_shape(lambda: self.family.module(config, num_classes))
        self._graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
        params, batch_stats = states
        self._shapes = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
        weights = jax.tree.leaves((params, nnx.state(network, Frozen)))
        self.num_parameters = sum(math.prod(each.shape) for each in weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.config, self.num_classes)

    def shapes(self) -> tuple[Tree, Tree]:
        """Returns the shapes and dtypes of parameters and batch statistics (with frozen weights), as nested dicts."""
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
        model, inputs, max_pool = self.config.model, {}, operations(self.config).max_pool
        for modality, frames in batch["frames"].items():
            window, partner = model.dynamic_images, None
            seen = dynamic_images(frames, window) if window else frames
            if mixture is not None:
                partner = batch["partner"]["frames"][modality]
                seen = mixture.blend(seen, dynamic_images(partner, window) if window else partner)
            heat = heat_maps(frames, model.frp_window, mixture, partner, max_pool) if model.frp else None  # b t h w 1
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
        with jax.default_matmul_precision(self.config.model.matmul_precision):
            output = network(inputs, schedule, rngs, Intermediates(intermediates, perturbations))
        return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def losses(self, output: Output, labels: Labels, schedule: ScheduleValues) -> Mapping[str, Float[Array, "b"]]:
        """Returns the losses of each clip: `loss`, which is minimised, and its terms."""
        with jax.named_scope("losses"):
            return self.family.losses(output, labels, self.config, schedule)

    def teacher_loss(
        self, averages: tuple[Tree, Tree], inputs: Mapping[str, ClipInput], output: Output, schedule: ScheduleValues
    ) -> Float[Array, "b"]:
        """Returns the cross entropy of each clip to the class that its other modality has by the averaged weights.

        This co-training is that of UMDR's reference: the teacher is the network itself, not one of the other modality.
        """
        (other,) = set(MODALITIES) - {self.config.modality}
        with jax.named_scope("teacher"):
            teacher, _ = self.apply(*averages, {self.config.modality: inputs[other]}, schedule)
            return losses.smoothed_cross_entropy(output.logits, jnp.argmax(teacher.logits, axis=-1), 0.0)


def normalise(
    frames: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"], dtype: jnp.dtype
) -> Float[Array, "b t h w 3"]:
    """Returns (x - 127.5) / 128: for integers exact in every dtype that the network computes in."""
    return ((frames.astype(jnp.float32) - 127.5) / 128).astype(dtype)
