"""Networks by name: of a registry of one's own, fetched from a server, and what cannot be fetched."""

import functools
import hashlib
import http.server
import json
import re
import threading

import jax
import numpy as np
import pytest

import rgbd_jax
from rgbd_jax import registry
from rgbd_jax.cli import main
from rgbd_jax.config import load_config
from rgbd_jax.initial_state import initial_state
from rgbd_jax.model import Model
from rgbd_jax.pytorch.convert import halved, write_weights
from rgbd_jax.pytorch.weights import read_weights
from tests.tiny import save_run, tiny_config


@pytest.fixture(scope="module")
def weights(small_demo, tmp_path_factory):
    """A safetensors file of a run, in float16."""
    folder = tmp_path_factory.mktemp("served")
    workdir = save_run(tiny_config(small_demo), folder / "run")
    write_weights(folder / "tiny.safetensors", halved(read_weights(workdir)))
    return folder / "tiny.safetensors"


@pytest.fixture
def server(weights, tmp_path, monkeypatch):
    """The URL of a server of the file's folder, and the requests that it has had."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=weights.parent)
    ) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", requests
        served.shutdown()


def registered(monkeypatch, registry_file, **fields):
    registry_file.write_text(json.dumps({"mine": {"about": "a test", **fields}}))
    monkeypatch.setenv(registry.REGISTRY_VARIABLE, str(registry_file))


def test_a_registered_network_is_fetched_once_and_checked(weights, server, tmp_path, monkeypatch):
    address, requests = server
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    registered(monkeypatch, tmp_path / "registry.json", url=f"{address}/tiny.safetensors", sha256=sha256)
    clip = rgbd_jax.example("push")
    expected = rgbd_jax.load(weights).predict(rgb=clip["rgb"])
    for source in ("mine", "mine", f"{address}/tiny.safetensors#sha256={sha256.upper()}"):
        found = rgbd_jax.load(source)
        assert found.class_names[0] == "swipe_left"  # the file records its classes and its config
        np.testing.assert_array_equal(found.predict(rgb=clip["rgb"]).logits, expected.logits)
    assert len(requests) == 1
    wrong = "0" * 64
    with pytest.raises(ValueError, match=r"tiny\.safetensors: the file is not the one that was registered"):
        rgbd_jax.load(f"{address}/tiny.safetensors#sha256={wrong}")
    with pytest.raises(ValueError, match="expected a checksum"):
        rgbd_jax.load(f"{address}/tiny.safetensors")
    with pytest.raises(OSError, match="404"):
        rgbd_jax.load(f"{address}/none.safetensors#sha256={wrong}")


def test_files_of_a_registry_lie_beside_it(weights, small_demo, tmp_path, monkeypatch):
    registered(monkeypatch, weights.parent / "registry.json", file=weights.name)
    assert rgbd_jax.load("mine").trained.path == weights
    main(["convert", "mine", str(tmp_path / "mine.pth.tar")])
    expected, found = read_weights(weights).tensors, read_weights(tmp_path / "mine.pth.tar").tensors
    assert {name: tensor.tobytes() for name, tensor in found.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }


def test_a_training_starts_from_a_registered_network(weights, small_demo, monkeypatch):
    registered(monkeypatch, weights.parent / "registry.json", file=weights.name)
    starts = []
    for source in ("mine", str(weights)):
        config = tiny_config(small_demo)
        config.init_from = source
        starts.append(jax.tree.leaves(initial_state(Model(config, 12)).state.params))
    assert all(map(np.array_equal, *starts))
    config.init_from = "mime"
    with pytest.raises(FileNotFoundError, match=r"config\.init_from: mime: no such path, .* such as mine"):
        initial_state(Model(config, 12))


@pytest.mark.parametrize(("name", "base"), [("demo-depth", "demo:depth"), ("demo-umdr-depth", "umdr_demo:depth")])
def test_the_fields_that_fine_tuning_a_bundled_network_needs_are_named(name, base):
    config = load_config(base)
    config.init_from = name
    with pytest.raises(ValueError, match=f"config.init_from={name} is of another width") as raised:
        initial_state(Model(config, 3))
    fields = re.findall(r"config\.model\.(\w+)=\S+, but it has (\S+)", str(raised.value))
    assert [field for field, _ in fields] == ["width", "attention_heads"]
    config.model.update({field: json.loads(value) for field, value in fields})
    initial_state(Model(config, 3))


def test_every_registered_network_has_a_config_and_says_where_it_comes_from():
    known = registry.entries()
    assert {f"motionrgbd-{name}" for name in ("jester-rgb", "ntu-cs-fusion", "isogd-depth")} <= set(known)
    for name, entry in known.items():
        assert not entry.config or load_config(entry.config).modality == name.rsplit("-", 1)[1]
        if entry.page:
            with pytest.raises(ValueError, match=r"without a browser: download it from https://.*--config "):
                rgbd_jax.load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no registry of networks"),
        ('{"a": {"about": ""}}', "a: expected a file, or a url with its sha256, or a page"),
        ('{"a": {"about": "", "url": "http://x"}}', "a: expected a file, or a url with its sha256"),
        ('{"a": {"colour": ""}}', "colour"),
        ('["a"]', "no registry"),
    ],
)
def test_damaged_registries_are_named(tmp_path, monkeypatch, text, message):
    file = tmp_path / "registry.json"
    file.write_text(text)
    monkeypatch.setenv(registry.REGISTRY_VARIABLE, str(file))
    with pytest.raises(ValueError, match=message) as raised:
        registry.resolve("a")
    assert str(file) in str(raised.value)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"no registered network; such as .*motionrgbd-ntu-cs-rgb"):
        rgbd_jax.load("motionrgb-ntu-cs-rgb")
