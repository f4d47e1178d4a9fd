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

from rgbd_jax import optim
from rgbd_jax.config import default_config
from rgbd_jax.modalities import STREAMS
from rgbd_jax.pytorch.decoupled_names import DECOUPLED
from rgbd_jax.pytorch.names import COUNTER
from rgbd_jax.pytorch.weights import detect_network
from rgbd_jax.step import ScheduleValues, Stream
from tests.parity import recipe

FOLDER = Path(os.environ.get("RGBD_PARITY_DIR") or Path(__file__).parent / "parity")
CASES = sorted(path.name.removesuffix(".manifest.json") for path in FOLDER.glob("*.manifest.json"))
FORWARD, TRAJECTORY, FLOAT32 = 1e-10, 1e-7, 1e-3  # largest differences, in units of a tensor's scale
FLOAT32_OTHER_KEYS = 1e-2  # where rounding decides which of two equal keys the attention keeps
# Fusion normalises features over the clips of a batch, three in the recorded cases: moving the input by one unit in the
# last place moves the gradient's norm in the REFERENCE by 2e-11 at its first step and by up to 1.8e-7 at its second.
# Here that norm differs by 1.05e-7 in ntu_fusion_128 (1.2e-8 to 1.1e-6 in others): docs/performance.md, "Parity".
FUSION_GRADIENT_NORM = 2e-6
FUSION_MEMORY = 23.5e9  # bytes that the training of ntu_fusion_128 takes, and some to spare

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
FUSION_LOSSES = ("cross_entropy", "modality", "reconstruction", "distillation")
BRANCHES = {"s": "small", "m": "medium", "l": "large"}


@pytest.fixture(params=CASES)
def case(request):
    """The recorded arrays, settings and manifest of a case."""
    recorded = np.load(FOLDER / f"{request.param}.npz")
    meta = json.loads(str(recorded["meta"]))
    return Case(recorded, meta, json.loads((FOLDER / f"{request.param}.manifest.json").read_text()))


class Case:
    """A recorded case and what it takes to run it."""

    def __init__(self, recorded, meta, manifest):
        self.recorded, self.meta, self.manifest = recorded, meta, manifest

    def config(self, dtype):
        """The experiment's config: what `meta` says; the sizes that it leaves out are read off the weights."""
        meta = self.meta
        config = default_config("rgb" if meta["kind"] == "unimodal" else meta["kind"])
        detected = detect_network(self.manifest)
        assert detected.fusion == (meta["kind"] == "fusion")
        config.clip.frames = detected.frames or 64
        config.clip.size = meta["size"]
        for name, value in detected.model.items():
            setattr(config.model, name, value)
        config.model.update(
            num_classes=meta["num_classes"], temporal_blocks=meta["N"], knn_attention=meta["knn_attention"],
            recoupling=meta["recoupling"], recoupling_heads=meta["SEHeads"], frp=meta["frp"],
            random_branch_frames=False, dropout=0.0, recoupling_dropout=0.0, dtype=dtype,
        )  # fmt: skip
        config.fusion.update(reference_layout=True, cross_modal_dropout=0.0, modality_dropout=0.0)
        config.loss.update(
            label_smoothing=meta["label_smoothing"], distillation_temperature=meta["temper"],
            reference_device_batch=meta["batch"],
        )  # fmt: skip
        if meta["kind"] == "unimodal":
            config.loss.update(
                branch_weights=tuple(map(float, meta["loss_lambda"])), multi_branch=meta["multi_loss"],
                distillation=meta["distill"], sharpness=meta["sharpness"], temperature=tuple(meta["temp"]),
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
        state = stream.state_of(*DECOUPLED.from_pytorch(weights, shapes.params, shapes.batch_stats))
        names = STREAMS[config.modality]
        inputs = recipe.inputs(
            meta["seed"], meta["batch"], config.clip.frames, meta["size"], meta["num_classes"], names
        )

        def input_of(kind):
            arrays = {
                name: jnp.asarray(rearrange(inputs[f"{kind}_{name}"], "b c t h w -> b t h w c"), dtype)
                for name in names
            }
            return arrays if stream.fusion else arrays[config.modality]

        moment = ScheduleValues(meta["lr"], config.loss.distillation, optim.logit_temperature(config, meta["epoch"]))
        labels = jnp.asarray(inputs["label"])
        return stream, jax.tree.map(jnp.asarray, state), input_of("clip"), input_of("heat"), labels, moment

    def probed(self):
        """The keys of everything that was probed."""
        return [
            key.removesuffix("/probe") for key in self.recorded.files if key.startswith("eval/") and "/probe" in key
        ]

    def intermediates(self):
        """The names of the intermediate results that are compared."""
        names = (key.removeprefix("eval/") for key in self.probed())
        if self.meta["kind"] == "fusion":
            return ("spatial_fusion", "temporal_fusion")
        return tuple({f"{BRANCHES[n[-1]]}_tokens" if n.startswith("dtn/block") else PROBES[n][0] for n in names})

    def found(self, key, output):
        """What the network's output has in place of a recorded tensor, in the recorded order of axes."""
        name, values = key.removeprefix("eval/"), output.intermediates
        if self.meta["kind"] == "fusion":
            tensor = {
                "spatial_fusion": values["spatial_fusion"],  # reinterpreted here already, so its memory is the same
                "temporal_fusion": values["temporal_fusion"],
                "en_x": output.logits,
                "de_x": output.decoded,
            }[name]
            return np.asarray(tensor).reshape(self.recorded[f"{key}/shape"])
        if name.startswith("dtn/block"):
            block, branch = name.removeprefix("dtn/block").split("/")
            return np.asarray(values[f"{BRANCHES[branch]}_tokens"][int(block)])
        return rearrange(np.asarray(values[PROBES[name][0]]), PROBES[name][1])


def assert_close(found, recorded, tolerance, name):
    """Asserts a largest difference of `tolerance` in units of the recorded tensor's root mean square."""
    found, recorded = np.squeeze(found), np.squeeze(recorded)  # the reference squeezes a batch of one away
    assert found.shape == recorded.shape, name
    scale = np.sqrt(np.mean(np.square(recorded)))
    difference = np.abs(found - recorded).max() / scale if scale else np.abs(found).max()
    assert difference <= tolerance, f"{name}: differs by {difference:.2e} of its scale, allowed {tolerance:.0e}"


def available_memory():
    """Bytes that this machine has left; without limit where it does not tell."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return float("inf")
    fields = dict(line.split(":") for line in file.read_text().splitlines())
    return int(fields["MemAvailable"].removesuffix("kB")) * 1024


@functools.partial(jax.jit, static_argnums=(0, 6))
def evaluate(stream, state, clip, heat, labels, moment, names):
    output, _ = stream.forward(state.params, state.batch_stats, clip, heat, moment.temperature, intermediates=names)
    return output, stream.losses(output, labels, moment)


def assert_logits(output, case, tolerance):
    for name, logits in output.heads.items():
        assert_close(logits, case.recorded[recorded_name(name)], tolerance, recorded_name(name))


def test_parity_forward_float64(case):
    with jax.enable_x64(True):
        stream, state, clip, heat, labels, moment = case.build("float64")
        assert case.probed()
        output, losses = evaluate(stream, state, clip, heat, labels, moment, case.intermediates())
        for key in case.probed():
            tensor = case.found(key, output)
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
        if case.meta["kind"] == "fusion":
            recorded = dict(zip(FUSION_LOSSES, case.recorded["eval/losses"], strict=True))
        else:
            recorded = {"cross_entropy": case.recorded["eval/ce"], "distillation": case.recorded["eval/distill"]}
        for name, value in recorded.items():
            assert_close(losses[name].mean(), value, FORWARD, f"eval/{name}")


@pytest.mark.slow
def test_parity_training_float64(case):
    if not case.meta["steps"]:
        pytest.skip("the case records no training step")
    if case.meta["kind"] == "fusion" and case.meta["size"] >= 128 and available_memory() < FUSION_MEMORY:
        pytest.skip(
            f"training both streams in float64 at {case.meta['size']} pixels needs {FUSION_MEMORY / 1e9:.1f} GB of "
            f"memory, {available_memory() / 1e9:.1f} GB are available: run this test alone"
        )
    with jax.enable_x64(True):
        stream, state, clip, heat, labels, moment = case.build("float64")
        keys = jax.random.split(jax.random.key(0), len(labels))

        # XLA's other scheduler would need 6 GB more for ntu_fusion_128.
        @functools.partial(
            jax.jit, donate_argnums=0, compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False}
        )
        def step(state):
            gradient, stats, output, measured = stream.gradients(
                state.params, state.batch_stats, clip, heat, labels, moment, keys
            )
            state, norm = stream.descend(state, gradient, stats, moment)
            return state, gradient, output.logits, {**measured, "gradient_norm": norm}

        for number in range(case.meta["steps"]):
            state, gradient, logits, measured = step(state)
            recorded = case.recorded[f"train/step{number}"]
            parts = FUSION_LOSSES if case.meta["kind"] == "fusion" else ("cross_entropy", "distillation")
            found = [measured[name] for name in (*parts, "loss", "gradient_norm")]
            tolerance = FORWARD if number == 0 else TRAJECTORY
            np.testing.assert_allclose(found[:-1], recorded[:-1], rtol=tolerance)
            ill_conditioned = number > 0 and case.meta["kind"] == "fusion"
            np.testing.assert_allclose(
                found[-1], recorded[-1], rtol=FUSION_GRADIENT_NORM if ill_conditioned else tolerance
            )
            if (name := f"train/step{number}/logits") in case.recorded:
                assert_close(logits, case.recorded[name], tolerance, name)
            if number == 0:
                named = DECOUPLED.to_pytorch(gradient, {})
                assert set(named) == set(case.recorded["train/grad_names"])
                norms = [np.linalg.norm(named[name].ravel()) for name in case.recorded["train/grad_names"]]
                np.testing.assert_allclose(norms, case.recorded["train/grad_norms"], rtol=TRAJECTORY)
            named = gradient = None  # their memory is needed
        named = DECOUPLED.to_pytorch(state.params, state.batch_stats)
        recorded = dict(zip(case.recorded["train/final_names"], case.recorded["train/final_norms"], strict=True))
        counters = [name for name in recorded if name.endswith(COUNTER)]
        assert {recorded.pop(name) for name in counters} == {int(state.step)}
        assert set(named) == set(recorded)
        norms = [np.linalg.norm(named[name].ravel()) for name in recorded]
        np.testing.assert_allclose(norms, list(recorded.values()), rtol=TRAJECTORY)


def test_parity_logits_float32(case):
    """A clip differs by more only where two keys' scores are equal but for rounding, and the other one is kept."""
    stream, state, clip, heat, labels, moment = case.build("float32")
    names = attention_names(stream)
    output, _ = evaluate(stream, state, clip, heat, labels, moment, names)
    found = {recorded_name(name): np.asarray(logits) for name, logits in output.heads.items()}
    for name, logits in found.items():
        assert_close(logits, case.recorded[name], FLOAT32_OTHER_KEYS, name)
    attention = {name: np.asarray(output.intermediates[name]) for name in names}  # depth b heads n n
    clips = [number for number in range(len(labels)) if not within(found, case.recorded, number, len(labels))]
    if not clips:
        return
    with jax.enable_x64(True):
        exact, _ = evaluate(*case.build("float64"), names)
    for number in clips:
        assert number in clips_with_other_keys(attention, exact.intermediates), f"clip {number} differs"


def attention_names(stream):
    modalities = [f"{name}/" for name in ("rgb", "depth")] if stream.fusion else [""]
    return tuple(f"{modality}{branch}_attention" for modality in modalities for branch in BRANCHES.values())


def recorded_name(name):
    return f"eval/logits_{name}" if name in ("rgb", "depth") else f"eval/{name}"


def within(found, recorded, number, clips):
    """Whether one clip's logits are as near as float32 allows, by each tensor's scale."""
    for name, logits in found.items():
        expected = recorded[name].reshape(clips, -1)
        scale = np.sqrt(np.mean(np.square(expected)))
        if np.abs(logits.reshape(clips, -1) - expected)[number].max() > FLOAT32 * scale:
            return False
    return True


def clips_with_other_keys(attention, exact):
    """The clips of which other keys are kept than in float64, whose weights are those of the exact threshold."""
    other = set()
    for name, weights in attention.items():
        right = np.asarray(exact[name])
        smallest = np.where(right > 0, right, np.inf).min(-1)  # depth b heads n
        for layer, clip, head, query, key in np.argwhere((weights > 0) != (right > 0)):
            weight = max(weights[layer, clip, head, query, key], right[layer, clip, head, query, key])
            if abs(weight / smallest[layer, clip, head, query] - 1) < 1e-3:
                other.add(clip)
    return other
