"""The network, its losses and its training against numbers recorded from the PyTorch reference.

Every case (`CASE.npz` with `CASE.manifest.json`) of the folder `RGBD_PARITY_DIR` (default: `tests/parity`) is run with
the settings that it states itself. The weights are rebuilt from a seed under PyTorch's names and go through the table
that converts real checkpoints.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from configs import common
from rgbd_jax import optim
from rgbd_jax.convert import detect, name_table
from rgbd_jax.losses import unimodal_losses
from rgbd_jax.steps import Moment, Stream
from tests.parity import recipe

FOLDER = Path(os.environ.get("RGBD_PARITY_DIR") or Path(__file__).parent / "parity")
CASES = sorted(path.name.removesuffix(".manifest.json") for path in FOLDER.glob("*.manifest.json"))
FORWARD, TRAJECTORY, FLOAT32 = 1e-10, 1e-7, 1e-3  # largest differences, in units of a tensor's scale

CLIP = "b t h w c -> b c t h w"
PROBES = {  # recorded name -> (name of the intermediate result, axes here -> axes there)
    "Conv3d_1a_7x7": ("conv_1a_7x7", CLIP),
    "MaxPool3d_2a_3x3": ("max_pool_2a", CLIP),
    "Conv3d_2c_3x3": ("conv_2c_3x3", CLIP),
    "MaxPool3d_3a_3x3": ("max_pool_3a", CLIP),
    **{f"Mixed_{block}": (f"mixed_{block}", CLIP) for block in ("3b", "3c", "4b", "4c", "5b", "5c")},
    "LinearMap": ("frame_features", "b t c -> b t c"),
    "rcm/out": ("recoupled", "b t c -> b c t"),
    "rcm/spatial": ("recoupling_spatial", "b c -> b c"),
}
BRANCHES = {"s": "small", "m": "medium", "l": "large"}


@pytest.fixture(params=CASES)
def case(request):
    """The recorded arrays, settings and manifest of a case of one stream."""
    recorded = np.load(FOLDER / f"{request.param}.npz")
    meta = json.loads(str(recorded["meta"]))
    if meta["kind"] != "unimodal":
        pytest.skip(f"{request.param}: cases of kind {meta['kind']} are not built yet")
    return Case(recorded, meta, json.loads((FOLDER / f"{request.param}.manifest.json").read_text()))


class Case:
    """A recorded case and what it takes to run it."""

    def __init__(self, recorded, meta, manifest):
        self.recorded, self.meta, self.manifest = recorded, meta, manifest

    def config(self, dtype):
        """The experiment's config: what `meta` says; the sizes that it leaves out are read off the weights."""
        config, meta = common.get_config(), self.meta
        settings = detect.model_settings(self.manifest)
        config.clip.frames = settings.pop("frames", 64)
        config.clip.size = meta["size"]
        for name, value in settings.items():
            setattr(config.model, name, value)
        config.model.update(
            num_classes=meta["num_classes"], temporal_blocks=meta["N"], knn_attention=meta["knn_attention"],
            recoupling=meta["recoupling"], recoupling_heads=meta["SEHeads"], frp=meta["frp"], frp_window=meta["w"],
            random_branch_frames=False, dropout=0.0, recoupling_dropout=0.0, dtype=dtype,
        )  # fmt: skip
        config.loss.update(
            label_smoothing=meta["label_smoothing"], branch_weights=tuple(map(float, meta["loss_lambda"])),
            multi_branch=meta["multi_loss"], distillation=meta["distill"], distillation_temperature=meta["temper"],
            reference_device_batch=meta["batch"], sharpness=meta["sharpness"], temperature=tuple(meta["temp"]),
        )  # fmt: skip
        config.optimizer.update(
            momentum=meta["momentum"], weight_decay=meta["weight_decay"], gradient_clip=meta["grad_clip"]
        )
        return config

    def build(self, dtype):
        """The stream, its state with the recorded weights, clip, heat map, labels and settings of the moment."""
        meta, config = self.meta, self.config(dtype)
        stream = Stream(config, meta["num_classes"])
        shapes = stream.shapes()
        weights = recipe.state_dict(self.manifest, meta["seed"])
        state = stream.state_of(*name_table.from_pytorch(weights, shapes.params, shapes.batch_stats))
        inputs = recipe.inputs(meta["seed"], meta["batch"], config.clip.frames, meta["size"], meta["num_classes"])
        clip = jnp.asarray(rearrange(inputs["clip_rgb"], "b c t h w -> b t h w c"), dtype)
        heat = jnp.asarray(rearrange(inputs["heat_rgb"], "b c t h w -> b t h w c"), dtype)
        moment = Moment(meta["lr"], meta["distill"], optim.logit_temperature(config, meta["epoch"]))
        return stream, jax.tree.map(jnp.asarray, state), clip, heat, jnp.asarray(inputs["label"]), moment

    def probes(self):
        """Recorded key, name of the intermediate result, its slice, axes -> axes for everything probed."""
        for key in self.recorded.files:
            if not (key.startswith("eval/") and key.endswith("/probe")):
                continue
            name = key.removeprefix("eval/").removesuffix("/probe")
            if name.startswith("dtn/block"):
                block, branch = name.removeprefix("dtn/block").split("/")
                yield key.removesuffix("/probe"), f"{BRANCHES[branch]}_tokens", int(block), "b n c -> b n c"
            else:
                yield key.removesuffix("/probe"), PROBES[name][0], None, PROBES[name][1]


def assert_close(found, recorded, tolerance, name):
    """Asserts a largest difference of `tolerance` in units of the recorded tensor's root mean square."""
    found, recorded = np.squeeze(found), np.squeeze(recorded)  # the reference squeezes a batch of one away
    assert found.shape == recorded.shape, name
    scale = np.sqrt(np.mean(np.square(recorded)))
    difference = np.abs(found - recorded).max() / scale if scale else np.abs(found).max()
    assert difference <= tolerance, f"{name}: differs by {difference:.2e} of its scale, allowed {tolerance:.0e}"


@functools.partial(jax.jit, static_argnums=(0, 6))
def evaluate(stream, state, clip, heat, labels, moment, names):
    output, _ = stream.forward(state.params, state.batch_stats, clip, heat, moment.temperature, intermediates=names)
    return output, unimodal_losses(output, labels, stream.config, distillation_weight=moment.distillation_weight)


def assert_logits(output, case, tolerance):
    for name, logits in {"logits": output.logits, **output.branch_logits}.items():
        assert_close(logits, case.recorded[f"eval/{name}"], tolerance, f"eval/{name}")


def test_parity_forward_float64(case):
    with jax.enable_x64(True):
        stream, state, clip, heat, labels, moment = case.build("float64")
        probes = list(case.probes())
        assert probes
        names = tuple(sorted({name for _, name, _, _ in probes}))
        output, losses = evaluate(stream, state, clip, heat, labels, moment, names)
        for key, name, block, axes in probes:
            tensor = output.intermediates[name] if block is None else output.intermediates[name][block]
            tensor = rearrange(np.asarray(tensor), axes)
            mean, std, norm = case.recorded[f"{key}/stats"]
            scale = norm / np.sqrt(tensor.size)
            assert tensor.shape == tuple(case.recorded[f"{key}/shape"]), key
            probe = tensor.reshape(-1)[recipe.probe_index(key, tensor.size, 64)]
            difference = np.abs(probe - case.recorded[f"{key}/probe"]).max() / scale
            assert difference <= FORWARD, f"{key}: probes differ by {difference:.2e} of the tensor's scale"
            found = np.array([tensor.mean(), tensor.std(), np.linalg.norm(tensor.ravel()) / np.sqrt(tensor.size)])
            error = np.abs(found - [mean, std, scale]).max() / scale
            assert error <= FORWARD, f"{key}: statistics differ by {error:.2e} of the tensor's scale"
        assert_logits(output, case, FORWARD)
        assert_close(losses["cross_entropy"].mean(), case.recorded["eval/ce"], FORWARD, "eval/ce")
        assert_close(losses["distillation"].mean(), case.recorded["eval/distill"], FORWARD, "eval/distill")


def test_parity_training_float64(case, monkeypatch):
    if not case.meta["steps"]:
        pytest.skip("the case records no training step")
    with jax.enable_x64(True):
        stream, state, clip, heat, labels, moment = case.build("float64")
        gradients, seen = stream.gradients, []
        # The step's own gradient and output, kept as it is traced: computing them beside it would compile all twice.
        monkeypatch.setattr(stream, "gradients", lambda *arguments: seen.append(gradients(*arguments)) or seen[-1])

        @jax.jit
        def step(state):
            state, measured = stream.update(state, clip, heat, labels, moment, 0)
            gradient, _, output, _ = seen.pop()
            return state, gradient, output.logits, measured

        for number in range(case.meta["steps"]):
            state, gradient, logits, measured = step(state)
            recorded = case.recorded[f"train/step{number}"]
            found = [measured[name] for name in ("cross_entropy", "distillation", "loss", "gradient_norm")]
            tolerance = FORWARD if number == 0 else TRAJECTORY
            np.testing.assert_allclose(found, recorded, rtol=tolerance)
            assert_close(logits, case.recorded[f"train/step{number}/logits"], tolerance, f"train/step{number}/logits")
            if number == 0:
                named = name_table.to_pytorch(gradient, {}, batches_tracked=0)
                assert set(named) == set(case.recorded["train/grad_names"])
                norms = [np.linalg.norm(named[name].ravel()) for name in case.recorded["train/grad_names"]]
                np.testing.assert_allclose(norms, case.recorded["train/grad_norms"], rtol=TRAJECTORY)
        named = name_table.to_pytorch(state.params, state.batch_stats, batches_tracked=int(state.step))
        assert set(named) == set(case.recorded["train/final_names"])
        norms = [np.linalg.norm(named[name].ravel()) for name in case.recorded["train/final_names"]]
        np.testing.assert_allclose(norms, case.recorded["train/final_norms"], rtol=TRAJECTORY)


def test_parity_logits_float32(case):
    stream, state, clip, heat, labels, moment = case.build("float32")
    output, _ = evaluate(stream, state, clip, heat, labels, moment, ())
    assert_logits(output, case, FLOAT32)
