"""One step on 8 simulated devices equals one device on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
from rgbd_jax.sharding import clip_mesh, global_batch, replicated
from rgbd_jax.steps import Stream, moment_at
from tests.tiny import tiny_config

assert jax.device_count() == 8
config = tiny_config("unused")
config.model.recoupling_heads = 2
rng = np.random.default_rng(0)
batch = {
    "frames": {"rgb": rng.integers(0, 256, (16, 8, 32, 32, 3), np.uint8)},
    "label": rng.integers(0, 12, 16).astype(np.int32),
    "mask": np.ones(16, bool),
}
stream = Stream(config, 12)
moment = moment_at(config, 2.0)

def measure(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient, stats, output, losses = stream.gradients(
        state.params, state.batch_stats, *stream.inputs(batch), batch["label"], moment, key)
    return {"gradient": gradient, "stats": stats, "losses": losses, "logits": output.logits,
            "state": stream.train_step(state, batch, moment)[0].params}

results = {}
for name, mesh in {"one": Mesh(np.asarray(jax.devices()[:1]), ("clips",)), "eight": clip_mesh()}.items():
    state = jax.device_put(stream.init(0), replicated(mesh))
    measured = jax.jit(measure, out_shardings=replicated(mesh))(state, global_batch(batch, mesh))
    for path, leaf in jax.tree_util.tree_leaves_with_path(measured):
        results[name + jax.tree_util.keystr(path)] = np.asarray(leaf)
np.savez(sys.argv[1], **results)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("devices") / "results.npz"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], check=True, env=environment, cwd=Path(__file__).parents[1]
    )
    return np.load(file)


@pytest.mark.parametrize("kind", ["gradient", "stats", "losses", "logits", "state"])
def test_eight_devices_equal_one(results, kind):
    names = [name for name in results.files if name.startswith(f"one['{kind}']")]
    assert names
    for name in names:
        one, eight = results[name], results[name.replace("one", "eight", 1)]
        scale = max(np.abs(one).max(), 1e-6 if kind != "gradient" else gradient_floor(results))
        assert np.abs(one - eight).max() <= 1e-5 * scale, name


def gradient_floor(results):
    """A thousandth of the typical gradient: tensors whose gradient cancels to nothing have no scale of their own."""
    norms = [np.abs(results[name]).max() for name in results.files if name.startswith("one['gradient']")]
    return 1e-3 * float(np.median(norms))
