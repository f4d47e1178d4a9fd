"""The files of a run and the registry under random damage: a result, or an error that names the file."""

import copy
import json
import math
import os

import numpy as np
import pytest
from hypothesis import strategies as st
from rgbd_jax.configs import demo, umdr_demo

from rgbd_jax import registry
from rgbd_jax.checkpoint.metric_writers import JSONL_FILE, read_metrics
from rgbd_jax.checkpoint.workdir import CLASSES_FILE, CONFIG_FILE, read_class_names, read_config
from rgbd_jax.modalities import STREAMS
from rgbd_jax.scores import Scores
from tests.fuzz import damaged, error_of, examples, fuzz

# Drawn from a list: recursive strategies take longer than the readers.
NUMBERS = (0, -1, 7, 10**30, 0.5, -1e300, math.nan, math.inf)
CONTAINERS = ([], [1], ["a", "b"], [None, 2], [[]], {}, {"a": 1}, {"": [0]}, [{}])
VALUES = st.sampled_from([None, True, "", "\0", "text", "9" * 400, *NUMBERS, *CONTAINERS]) | st.text(max_size=5)


def read_or_error(file, read):
    """Returns what is read, or None if it is refused with the name of the file."""
    results = []
    error = error_of(lambda: results.append(read()))
    assert error is None or str(error).startswith(str(file))
    return results[0] if results else None


def places(content, path=()):
    """Yields the path of every value in nested dicts."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield (*path, name)
            yield from places(value, (*path, name))


def test_a_named_pipe_is_not_waited_for(tmp_path):
    readers = {JSONL_FILE: lambda _: read_metrics(tmp_path), "scores.npz": Scores.load}
    for name, read in readers.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is a named pipe; expected a file"):
            read(tmp_path / name)


@st.composite
def changed(draw, original: dict) -> bytes:
    """JSON of which some values, or fields, were replaced."""
    content = json.loads(json.dumps(original))
    for path in draw(st.lists(st.sampled_from(list(places(original))), min_size=1, max_size=3)):
        parent = content
        for name in path[:-1]:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            name = draw(st.just(path[-1]) | st.text(max_size=4))
            parent[name] = copy.deepcopy(draw(VALUES))  # the same object is drawn again, and could come into itself
    return json.dumps(content).encode()


@examples
def test_config_json(tmp_path, examples):
    originals = [module.get_config("rgb").to_dict() for module in (demo, umdr_demo)]
    file = tmp_path / CONFIG_FILE

    def check(content):
        file.write_bytes(content)
        config = read_or_error(file, lambda: read_config(tmp_path))
        assert config is None or config.modality in STREAMS

    whole = [json.dumps(original).encode() for original in originals]
    fuzz(check, st.one_of(*map(changed, originals), damaged(whole)), examples)


@examples
def test_class_names(tmp_path, examples):
    file = tmp_path / CLASSES_FILE

    def check(content):
        file.write_bytes(content)
        names = read_or_error(file, lambda: read_class_names(tmp_path)) or ()
        assert all(isinstance(name, str) for name in names)

    fuzz(check, VALUES.map(lambda value: json.dumps(value).encode()) | damaged([b'["wave", "clap"]']), examples)


@examples
def test_metrics(tmp_path, examples):
    row = {"step": 3, "kind": "train", "loss": 0.5}
    text = "".join(json.dumps({**row, "step": step}) + "\n" for step in range(3)).encode()
    file = tmp_path / JSONL_FILE

    def check(content):
        file.write_bytes(content)
        rows = read_or_error(file, lambda: read_metrics(tmp_path)) or ()
        assert all(isinstance(row["step"], int) and isinstance(row["kind"], str) for row in rows)

    fuzz(check, changed(row).map(lambda line: text + line + b"\n") | damaged([text]), examples)


@examples
def test_scores(tmp_path, examples):
    file = tmp_path / "scores.npz"
    heads = {name: np.ones((3, 4), np.float32) for name in ("logits", "small")}
    Scores(("a", "b", "c"), np.array([0, 1, 3]), heads, "rgb", "rgbd_demo", "validation", 9).save(file)
    original = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        if (scores := read_or_error(file, lambda: Scores.load(file))) is not None:
            assert scores.heads["logits"].shape[0] == len(scores.names) == len(scores.labels)

    fuzz(check, damaged([original]), examples)


@examples
def test_registries(tmp_path, examples, monkeypatch):
    entry = {"about": "motions", "url": "https://example.org/a", "sha256": "0" * 64, "config": "demo"}
    original = {"own": entry, "other": {"about": "motions", "file": "a.safetensors"}}
    file = tmp_path / "registry.json"
    monkeypatch.setenv(registry.REGISTRY_VARIABLE, str(file))

    def check(content):
        file.write_bytes(content)
        entries = read_or_error(file, registry.entries) or {}
        assert all(isinstance(value, str) for entry in entries.values() for value in vars(entry).values())

    fuzz(check, changed(original) | damaged([json.dumps(original).encode()]), examples)
