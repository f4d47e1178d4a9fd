"""The interface of a network family: what training, evaluation and tools know about a network."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax import nnx, struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rgbd_jax.models.name_table import NameTable

Tree = Mapping[str, Any]
Labels = Int[Array, "b"] | Float[Array, "b k"]  # true classes, or a distribution over the classes for mixed clips


class Frozen(nnx.BatchStat):
    """A weight of a part that is not trained: it is among the batch statistics, without gradient or optimizer state."""


@struct.dataclass
class ClipInput:
    """What a network sees of the clips in one modality.

    Attributes:
        clip: normalised frames, (x - 127.5) / 128.
        heat: motion heat maps in [0, 2]; None for a network without FRP.
    """

    clip: Float[Array, "b t h w 3"]
    heat: Float[Array, "b t h w 1"] | None


@struct.dataclass
class Output:
    """The outputs of a network for a batch of clips.

    Attributes:
        heads: name -> logits, float32 or wider; "logits" is the prediction.
        features: name -> what the losses need besides.
        intermediates: name -> requested intermediate values.
    """

    heads: Mapping[str, Float[Array, "b k"]]
    features: Mapping[str, Array]
    intermediates: Mapping[str, Array]

    @property
    def logits(self) -> Float[Array, "b k"]:
        """The logits of the prediction."""
        return self.heads["logits"]


class Intermediates:
    """Collects named intermediate values of one forward pass; under `jax.jit` those not requested cost nothing.

    Args:
        names: the intermediate values that `collected` returns.
        perturbations: name -> what is added to an intermediate value before the network continues with it; the
            gradient with respect to zeros is the gradient with respect to that value, as in Grad-CAM.
    """

    def __init__(self, names: Collection[str] = (), perturbations: Mapping[str, Array] | None = None):
        self.names, self.perturbations = names, perturbations or {}
        self._values: dict[str, Array] = {}
        self._prefix = ""

    def of(self, modality: str) -> "Intermediates":
        """Returns a collector for one modality of several: it collects here, under "modality/name"."""
        part = copy.copy(self)
        part._prefix = f"{modality}/"
        return part

    def sow(self, name: str, value: Array) -> Array:
        """Collects a value and returns it, plus its perturbation if there is one."""
        name = self._prefix + name
        if name in self.perturbations:
            value = value + self.perturbations[name].astype(value.dtype)
        self._values[name] = value
        return value

    def collected(self) -> dict[str, Array]:
        """Returns the requested values.

        Raises:
            ValueError: the network has no intermediate value of a requested name.
        """
        if unknown := [name for name in self.names if name not in self._values]:
            raise ValueError(f"no intermediate value named {', '.join(unknown)}; available: {', '.join(self._values)}")
        return {name: self._values[name] for name in self.names}


@struct.dataclass
class ScheduleValues:
    """What depends on the progress of the training, not on the batch."""

    learning_rate: Float[Array, ""] | float
    distillation_weight: Float[Array, ""] | float
    temperature: Float[Array, ""] | float
    mixup_limit: Float[Array, ""] | float = 0.5  # see `mixing.mixup_limit`


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of network; a new family is a new instance (see `rgbd_jax.model.FAMILIES`).

    A module is called as `module(inputs, schedule, rngs, intermediates)`, with `inputs` a mapping from modality to
    `ClipInput` and with `ClipRngs` in training, after `module.train()`; it returns an `Output`.

    Attributes:
        name: name of the family.
        network: `config.network` of its networks.
        modalities: the values of `config.modality` that it is for.
        module: (config, number of classes) -> the network, holding zeros and ones.
        losses: (output, labels, config, schedule) -> losses of each clip by name; `loss` is minimised.
        schedule: (config, epoch) -> (distillation weight, temperature of the logits).
        loss_names: the names that `losses` returns.
        heads: name of a head -> its title for readers; "logits" comes first.
        head_sums: metric -> the heads whose summed logits it is the top-1 accuracy of.
        reference_protocol: the sums of heads of which the reference reports the highest accuracy.
        init_fields: config field of a checkpoint to start from -> the part of the network it is for, "" for all.
        explained: (config, modality) -> name of the intermediate value, b t h w c, that Grad-CAM is of.
        features: modality -> (features of the frames, b t c, and of the clip, b c), names of intermediate values.
        name_table: the weights' names in PyTorch.
        attention: modality -> title -> name of an intermediate value, layers b heads n+1 n+1, the class token first.
        frame_weights: (config, modality) -> title -> name of an intermediate value, b t c, weights of the features.
        frozen: the parts of the network, of `init_fields`, that are not trained (see `Frozen`); their checkpoints must
            have all of their weights. Such a network has no batch statistics that a step changes.
    """

    name: str
    network: str
    modalities: tuple[str, ...]
    module: Callable[[ConfigDict, int], nnx.Module]
    losses: Callable[[Output, Labels, ConfigDict, ScheduleValues], Mapping[str, Float[Array, "b"]]]
    schedule: Callable[[ConfigDict, float], tuple[float, float]]
    loss_names: tuple[str, ...]
    heads: Mapping[str, str]
    head_sums: Mapping[str, tuple[str, ...]]
    reference_protocol: tuple[tuple[str, ...], ...]
    init_fields: Mapping[str, str]
    explained: Callable[[ConfigDict, str], str]
    features: Callable[[str], tuple[str, str]]
    name_table: NameTable
    attention: Callable[[str], Mapping[str, str]]
    frame_weights: Callable[[ConfigDict, str], Mapping[str, str]]
    frozen: tuple[str, ...] = ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics that an evaluation gives."""
        top1 = (f"top1_{name}" for name in self.heads if name != "logits")
        return (*self.loss_names, "top1", *top1, *self.head_sums, "top5", "mean_per_class", "reference_protocol")
