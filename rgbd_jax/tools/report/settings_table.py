"""Every field of a config beside the default that it departs from."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a config.

    Attributes:
        name: with dots ("clip.frames").
        value: its value, as text.
        default: the default of `configs/common.py` for the stream, as text; "" where that has no such field.
        changed: whether the two differ.
    """

    name: str
    value: str
    default: str
    changed: bool


def settings_table(config: ConfigDict) -> list[Setting]:
    """Returns all fields of a config, by name."""
    from rgbd_jax.config import default_config

    fields = dict(_flat(config.to_dict()))
    defaults = dict(_flat(default_config(fields.get("modality", "rgb")).to_dict()))
    return [
        Setting(name, _text(value), _text(defaults[name]) if name in defaults else "", _differs(value, defaults, name))
        for name, value in sorted(fields.items())
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _differs(value: Any, defaults: Mapping[str, Any], name: str) -> bool:
    return name not in defaults or _text(value) != _text(defaults[name])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return '""' if value == "" else str(value)
