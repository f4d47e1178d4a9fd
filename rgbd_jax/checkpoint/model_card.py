"""The model card `MODEL_CARD.md` beside weights. Its text is in `model_card.md.jinja`."""

import dataclasses
import datetime
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.checkpoints import best_epoch
from rgbd_jax.modalities import STREAMS

CARD_FILE = "MODEL_CARD.md"
UNKNOWN = "not recorded"

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class ModelCardData:
    """What is known of weights; the card shows "not recorded" for everything else."""

    config: Mapping[str, Any]  # the experiment's, or those of its fields that are known
    history: Sequence[Mapping[str, Any]] = ()  # step, epoch and metrics of evaluated epochs, up to that of the weights
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see `provenance.provenance`
    class_names: Sequence[str] = ()  # by label
    num_classes: int = 0
    num_parameters: int = 0
    converted_from: str = ""  # a checkpoint; empty for the card of a run
    # Where there is no history: epochs of training, and the accuracy that it recorded, from 0 to 1.
    epoch: int | None = None
    best_accuracy: float | None = None
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by PyTorch's names, where no config is


def render_model_card(data: ModelCardData) -> str:
    """Returns a model card in Markdown, with the front matter that model hubs read."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.ChainableUndefined,  # a field that is not known
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,  # filters and macros return Markup, the rest is
        finalize=_escape,
    )
    environment.filters |= {"cell": _cell, "percent": _percent, "code": _code, "command": _command}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return environment.get_template("model_card.md.jinja").render(
        vars(data),
        best=best_epoch(data.history, data.config["checkpoint"]) if data.history else None,
        modalities=STREAMS.get(str(data.config.get("modality")), ()),
        now=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        unknown=UNKNOWN,
    )


def write_model_card(folder: Path, data: ModelCardData) -> None:
    """Writes a model card into a folder; an error is only logged, for the weights are worth more than their card."""
    try:
        with atomic_write(folder / CARD_FILE) as unfinished:
            unfinished.write_text(render_model_card(data), encoding="utf-8")
    except OSError as error:
        log.warning("%s", error)


def _cell(value: Any) -> Any:
    text = "" if value is None else " ".join(str(_escape(value)).split())
    return Markup(text) or UNKNOWN


def _percent(fraction: float | None) -> str:
    return f"{fraction:.2%}" if isinstance(fraction, int | float) else UNKNOWN


def _escape(value: Any) -> Any:
    """Returns text with Markdown's special characters escaped; an underscore within a word is none."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup(re.sub(r"[\\`*\[\]<>&|#~$]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])", r"\\\g<0>", _one_line(value)))


def _code(text: str) -> str:
    """Returns text as a span of code, also within a table."""
    return Markup("`{}`".format(_one_line(text).replace("`", "'").replace("|", "\\|")))


def _one_line(text: str) -> str:
    """Returns text without line breaks, controls, marks of the direction of writing, and what UTF-8 cannot hold."""
    return re.sub(r"\s*[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+\s*", " ", text)


def _command(argv: Sequence[str]) -> str:
    program = "python -m rgbd_jax.main" if argv[0].endswith("rgbd_jax/main.py") else shlex.quote(argv[0])
    return Markup(_one_line(" ".join([program, *map(shlex.quote, argv[1:])])))
