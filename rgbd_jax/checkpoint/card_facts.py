"""What a model card tells of weights, as far as it is known."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rgbd_jax.checkpoint.checkpoints import RetentionPolicy

INIT_FIELDS = ("continue_from", "init_from", "fusion.init_rgb_from", "fusion.init_depth_from")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of weights; what is left out is told as not recorded.

    Attributes:
        classes: number of classes.
        parameters: number of parameters.
        config: the experiment's config, or those of its fields that are known.
        history: step, epoch and metrics of every evaluated epoch; of converted weights up to their own.
        provenance: what produced them (see `provenance.provenance`).
        class_names: names of the classes, by label.
        converted_from: the checkpoint that they were converted from; empty for a run's own card.
        epoch: epochs of training, where there is no history.
        best_accuracy: best accuracy as the training counted it, from 0 to 1, where there is no history.
        optimizer: settings of the optimizer by PyTorch's names, where there is no config.
    """

    classes: int
    parameters: int
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] = ()
    converted_from: str = ""
    epoch: int | None = None
    best_accuracy: float | None = None
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def field(self, name: str) -> Any:
        """Returns a field of the config ("train.batch_size"), None if it is not known."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def data(self, kind: str) -> Mapping[str, Any]:
        """Returns the fingerprint of the "training" or "evaluation" clips, empty if it is not known."""
        return self.provenance.get("data", {}).get(kind, {})

    @property
    def measured(self) -> Mapping[str, Any] | None:
        """The evaluation that the weights are told by: of a run its best, of converted weights their own."""
        return self.history[-1] if self.history and self.converted_from else self.best

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best of the evaluated epochs, by the config's metric; None if none is known."""
        if not self.history:
            return None
        known = {field.name for field in dataclasses.fields(RetentionPolicy)}
        chosen_by = {name: value for name, value in (self.field("checkpoint") or {}).items() if name in known}
        return RetentionPolicy(**chosen_by).best(self.history)


def started_from(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a training of a config starts from, by config field; empty if from scratch."""
    facts = Facts(0, 0, config)
    fields = INIT_FIELDS if facts.field("modality") == "fusion" else INIT_FIELDS[:2]
    return {name: str(facts.field(name)) for name in fields if facts.field(name)}
