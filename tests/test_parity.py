"""The network, its losses and its training against numbers recorded from the PyTorch reference.

Every case (`CASE.npz` with `CASE.manifest.json`) of the folder `RGBD_PARITY_DIR` (default: `tests/parity`) is run with
the settings that it states itself. The weights are rebuilt from a seed under PyTorch's names and go through the table
that converts real checkpoints. The operations of other platforms than this machine's are run as well.
"""

import functools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from rgbd_jax.config import default_config
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.model import FAMILIES, UMDR, Model
from rgbd_jax.models.family import ClipInput, ScheduleValues
from rgbd_jax.models.name_table import COUNTER
from rgbd_jax.models.ops import OPERATIONS
from rgbd_jax.models.temporal import BRANCHES as BRANCH_NAMES
from rgbd_jax.models.umdr.spatial import RECOUPLINGS
from rgbd_jax.step import new_state, train_step
from tests.parity import recipe

FOLDER = Path(os.environ.get("RGBD_PARITY_DIR") or Path(__file__).parent / "parity")
CASES = sorted(path.name.removesuffix(".manifest.json") for path in FOLDER.glob("*.manifest.json"))
FORWARD, TRAJECTORY, FLOAT32 = 1e-10, 1e-7, 1e-3  # largest differences, in units of a tensor's scale
FLOAT32_OTHER_KEYS = 1e-2  # where rounding decides which of two equal keys the attention keeps
# Fusion normalises features over the clips of a batch, three in the recorded cases: moving the input by one unit in the
# last place moves the gradient's norm in the REFERENCE by 2e-11 at its first step and by up to 1.8e-7 at its second.
# Here that norm differs by 1.05e-7 in ntu_fusion_128 (1.2e-8 to 1.1e-6 in others): docs/performance.md, "Parity".
FUSION_GRADIENT_NORM = 2e-6
# Cases, the smallest first, that run with the operations of other platforms too. Their training steps are compared with
# the CPU's in tests/test_devices.py.
RUN_ON_ALL_PLATFORMS = 3
OTHER_PLATFORMS = [platform for platform in OPERATIONS if platform != jax.default_backend()]
LARGEST_TRAINED_FUSION = 96  # pixels: at 128 a training step in float64 would take 23 GB

CLIP = "b t h w c -> b c t h w"
PROBES = {  # recorded name -> (name of the intermediate result, axes here -> axes there)
    "Conv3d_1a_7x7": ("conv_1a_7x7", CLIP),
    "MaxPool3d_2a_3x3": ("max_pool_2a", CLIP),
    "Conv3d_2c_3x3": ("conv_2c_3x3", CLIP),
    "MaxPool3d_3a_3x3": ("max_pool_3a", CLIP),
    **{f"Mixed_{block}": (f"mixed_{block}", CLIP) for block in ("3b", "3c", "4b", "4c", "5b", "5c")},
    "LinearMap": ("frame_features", "b t c -> b t c"),
    "rcm/out": ("recoupled", "b t c -> b c t"),
    "channel_pool": ("channel_pool", CLIP),
    **{f"rcm{number}/out": (f"recoupled_{number}", CLIP) for number in RECOUPLINGS},
    **{f"rcm{number}/spatial": (f"recoupling_{number}_spatial", "b c -> b c") for number in RECOUPLINGS},
    **{f"dtn/pool/{branch[0]}": (f"{branch}_local", "b n c -> b c n 1 1") for branch in BRANCH_NAMES},
    "rcm/spatial": ("recoupling_spatial", "b c -> b c"),
}
UMDR_FUSION_PROBES = {  # recorded name without modality and number -> intermediate result
    "spatial": "frame_features",
    "temporal": "class_feature",
    "scc/enhance": "spatial_fusion_enhanced",
    "scc/block": "spatial_fusion",
    "temporal_enhance": "enhanced_class_feature",
    "tcc/block": "temporal_fusion",
}
UMDR_FUSION_HEADS = {"rgb": "stream_rgb", "depth": "stream_depth", "fusion_rgb": "logits_rgb"}
UMDR_FUSION_HEADS |= {"fusion_depth": "logits_depth"}
BRANCHES = {name[0]: name for name in BRANCH_NAMES}


class RecordedInputs(Model):
    """A model whose batches hold normalised frames and heat maps."""

    def inputs(self, batch, mixture=None):
        return batch["inputs"]


class Case:
    """A recorded case, with the operations for a platform."""

    def __init__(self, name, operations="auto"):
        self.operations = operations
        self.recorded = np.load(FOLDER / f"{name}.npz")
        self.meta = json.loads(str(self.recorded["meta"]))
        self.manifest = json.loads((FOLDER / f"{name}.manifest.json").read_text())

    @property
    def family(self):
        return FAMILIES[self.meta["kind"]]

    @property
    def table(self):
        """The weights' names in PyTorch."""
        return self.family.name_table

    @property
    def trained(self):
        """Whether training steps are recorded that this machine has the memory for."""
        small = self.meta["kind"] != "fusion" or self.meta["size"] <= LARGEST_TRAINED_FUSION
        return bool(self.meta["steps"]) and small

    def config(self, dtype):
        """The experiment's config: what `meta` says; the sizes that it leaves out are read off the weights."""
        meta = self.meta
        config = default_config(self.family.modalities[0])
        config.network = self.family.network
        detected = self.table.detect(self.manifest, {})
        assert detected.family == meta["kind"]
        config.clip.update(frames=detected.frames or 64, size=meta["size"])
        config.model.update(
            dict(detected.model),
            num_classes=meta["num_classes"],
            temporal_blocks=meta["N"],
            knn_attention=meta["knn_attention"],
            random_branch_frames=False,
            dropout=0.0,
            recoupling_dropout=0.0,
            dtype=dtype,
            operations=self.operations,
        )
        config.fusion.update(reference_layout=True, cross_modal_dropout=0.0, modality_dropout=0.0)
        config.fusion.update(detected.fusion)
        config.loss.update(
            label_smoothing=meta["label_smoothing"],
            distillation_temperature=meta["temper"],
            reference_device_batch=meta["batch"],
        )
        if config.network == "decoupled":
            config.model.update(recoupling=meta["recoupling"], recoupling_heads=meta["SEHeads"], frp=meta["frp"])
        if meta["kind"] != "fusion":
            config.loss.update(
                branch_weights=tuple(map(float, meta["loss_lambda"])),
                multi_branch=meta["multi_loss"],
                distillation=meta["distill"],
                sharpness=meta.get("sharpness", True),
                temperature=tuple(meta["temp"]),
            )
        config.optimizer.update(
            momentum=meta["momentum"],
            weight_decay=meta["weight_decay"],
            decay_vectors=meta.get("decay_vectors", True),
            gradient_clip=meta["grad_clip"],
        )
        config.optimizer.arguments.nesterov = meta.get("nesterov", False)
        if meta["kind"] == "umdr_fusion":
            temperatures = [UMDR.schedule(config, meta[f"epoch_{name}"])[1] for name in MODALITIES]
            config.fusion.frozen_temperatures = tuple(temperatures)
        return config

    def build(self, dtype):
        """The model, its state with the recorded weights, the recorded batch and the schedule values."""
        meta, config = self.meta, self.config(dtype)
        model = RecordedInputs(config, meta["num_classes"])
        weights = recipe.state_dict(self.manifest, meta["seed"])
        state = new_state(model, *self.table.from_pytorch(weights, *model.shapes()))
        size, classes = (meta["batch"], config.clip.frames, meta["size"]), meta["num_classes"]
        inputs = recipe.inputs(meta["seed"], *size, classes, model.modalities)

        def array(name):
            return jnp.asarray(rearrange(inputs[name], "b c t h w -> b t h w c"), dtype)

        batch = {
            "inputs": {name: ClipInput(array(f"clip_{name}"), array(f"heat_{name}")) for name in model.modalities},
            "label": jnp.asarray(inputs["label"]),
            "record": jnp.arange(meta["batch"]),
        }
        _, temperature = model.family.schedule(config, meta.get("epoch", 0))
        schedule = ScheduleValues(meta["lr"], config.loss.distillation, temperature)
        return model, jax.tree.map(jnp.asarray, state), batch, schedule

    def probed(self):
        """The keys of everything that was probed."""
        return [key.removesuffix("/probe") for key in self.recorded.files if key.endswith("/probe")]

    def intermediates(self):
        """The names of the intermediate results that are compared."""
        names = (key.removeprefix("eval/") for key in self.probed())
        if self.meta["kind"] == "fusion":
            return ("spatial_fusion", "temporal_fusion")
        if self.meta["kind"] == "umdr_fusion":
            return tuple({self.umdr_fusion_probe(name)[0] for name in names})
        return tuple({f"{BRANCHES[n[-1]]}_tokens" if n.startswith("dtn/block") else PROBES[n][0] for n in names})

    def found(self, key, output):
        """What the network's output has in place of a recorded tensor, in the recorded order of axes."""
        name, values = key.removeprefix("eval/"), output.intermediates
        if self.meta["kind"] == "fusion":
            tensor = {
                "spatial_fusion": values["spatial_fusion"],  # reinterpreted here already, so its memory is the same
                "temporal_fusion": values["temporal_fusion"],
                "en_x": output.logits,
                "de_x": output.features["decoded"],
            }[name]
            return np.asarray(tensor).reshape(self.recorded[f"{key}/shape"])
        if self.meta["kind"] == "umdr_fusion":
            name, block = self.umdr_fusion_probe(name)
            return np.asarray(values[name] if block is None else values[name][block])
        if name.startswith("dtn/block"):
            block, branch = name.removeprefix("dtn/block").split("/")
            return np.asarray(values[f"{BRANCHES[branch]}_tokens"][int(block)])
        return rearrange(np.asarray(values[PROBES[name][0]]), PROBES[name][1])

    @staticmethod
    def umdr_fusion_probe(name):
        """The intermediate result that was recorded under a name such as "scc/block1/rgb", and the block in it."""
        part, block, modality = re.fullmatch(r"(.*?)(\d+)?[/_](rgb|depth)", name).groups()
        return f"{modality}/{UMDR_FUSION_PROBES[part]}", block and int(block)

    @property
    def losses(self):
        """The terms of the loss, in the recorded order."""
        return self.family.loss_names[1:]

    def recorded_name(self, head):
        """The recorded name of a head."""
        if self.meta["kind"] == "umdr_fusion":
            return f"eval/{UMDR_FUSION_HEADS.get(head, head)}"
        return f"eval/logits_{head}" if head in MODALITIES else f"eval/{head}"


def assert_close(found, recorded, tolerance, name):
    """Asserts a largest difference of `tolerance` in units of the recorded tensor's root mean square."""
    found, recorded = np.squeeze(found), np.squeeze(recorded)  # the reference squeezes a batch of one away
    assert found.shape == recorded.shape, name
    scale = np.sqrt(np.mean(np.square(recorded))) or 1
    np.testing.assert_allclose(found, recorded, rtol=0, atol=tolerance * scale, err_msg=name)


@functools.partial(jax.jit, static_argnums=(0, 4))
def evaluate(model, state, batch, schedule, names):
    output, _ = model.apply(state.params, state.batch_stats, model.inputs(batch), schedule, intermediates=names)
    return output, model.losses(output, batch["label"], schedule)


def assert_logits(output, case, tolerance):
    for name, logits in output.heads.items():
        assert_close(logits, case.recorded[case.recorded_name(name)], tolerance, name)


def on_all_platforms(names, count):
    small = sorted(names, key=lambda name: [Case(name).meta[field] for field in ("size", "steps")])[:count]
    others = (pytest.param(name, platform, marks=pytest.mark.slow) for platform in OTHER_PLATFORMS for name in small)
    return pytest.mark.parametrize(("name", "operations"), [*((name, "auto") for name in names), *others])


@on_all_platforms(CASES, RUN_ON_ALL_PLATFORMS)
def test_parity_forward_float64(name, operations):
    case = Case(name, operations)
    with jax.enable_x64(True):
        assert case.probed()
        output, losses = evaluate(*case.build("float64"), case.intermediates())
        for key in case.probed():
            tensor = case.found(key, output)
            assert tensor.shape == tuple(case.recorded[f"{key}/shape"]), key
            probes = tensor.reshape(-1)[recipe.probe_index(key, tensor.size, 64)]
            root = np.sqrt(tensor.size)
            mean, std, norm = case.recorded[f"{key}/stats"]
            expected = [*case.recorded[f"{key}/probe"], mean, std, norm / root]
            found = [*probes, tensor.mean(), tensor.std(), np.linalg.norm(tensor.ravel()) / root]
            np.testing.assert_allclose(found, expected, rtol=0, atol=FORWARD * norm / root, err_msg=key)
        assert_logits(output, case, FORWARD)
        recorded = [case.recorded[name] for name in ("eval/ce", "eval/distill") if name in case.recorded]
        for loss, value in zip(case.losses, recorded or case.recorded["eval/losses"], strict=True):
            assert_close(losses[loss].mean(), value, FORWARD, f"eval/{loss}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if Case(name).trained])
def test_parity_training_float64(name):
    case = Case(name)
    with jax.enable_x64(True):
        model, state, batch, schedule = case.build("float64")
        options = {"xla_cpu_enable_concurrency_optimized_scheduler": False}  # the other scheduler takes more memory
        step = jax.jit(functools.partial(train_step, model), donate_argnums=0, compiler_options=options)
        for number in range(case.meta["steps"]):
            before = case.table.to_pytorch(state.params, {}) if number == 0 else None
            state, measured = step(state, batch, schedule)
            recorded = case.recorded[f"train/step{number}"]
            found = [measured[name] for name in (*case.losses, "loss", "gradient_norm")]
            tolerance = FORWARD if number == 0 else TRAJECTORY
            np.testing.assert_allclose(found[:-1], recorded[:-1], rtol=tolerance)
            ill_conditioned = number > 0 and case.meta["kind"] == "fusion"
            np.testing.assert_allclose(
                found[-1], recorded[-1], rtol=FUSION_GRADIENT_NORM if ill_conditioned else tolerance
            )
            if number == 0:
                gradient = first_gradient(case, state, before, measured["gradient_norm"])
                assert set(gradient) == set(case.recorded["train/grad_names"])
                norms = [np.linalg.norm(gradient[name].ravel()) for name in case.recorded["train/grad_names"]]
                np.testing.assert_allclose(norms, case.recorded["train/grad_norms"], rtol=TRAJECTORY)
        frozen = bool(case.family.frozen)
        if frozen:  # to the last bit
            assert_same_frozen(case, state.batch_stats)
        named = case.table.to_pytorch(state.params, {} if frozen else state.batch_stats)
        recorded = dict(zip(case.recorded["train/final_names"], case.recorded["train/final_norms"], strict=True))
        counters = [name for name in recorded if name.endswith(COUNTER)]
        assert {recorded.pop(name) for name in counters} == (set() if frozen else {int(state.step)})
        assert set(named) == set(recorded)
        norms = [np.linalg.norm(named[name].ravel()) for name in recorded]
        np.testing.assert_allclose(norms, list(recorded.values()), rtol=TRAJECTORY)


def assert_same_frozen(case, batch_stats):
    weights = recipe.state_dict(case.manifest, case.meta["seed"])
    for name, tensor in case.table.to_pytorch(batch_stats, {}).items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


def first_gradient(case, state, before, norm):
    """The gradient by PyTorch's names, from SGD's momentum after one step: clipped gradient plus decayed weights."""
    (momentum,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict)) if part)
    scale = min(1, case.meta["grad_clip"] / (float(norm) + 1e-6))
    decay, decay_vectors = case.meta["weight_decay"], case.meta.get("decay_vectors", True)
    return {
        name: (buffer - decay * before[name] * (decay_vectors or buffer.ndim > 1)) / scale
        for name, buffer in case.table.to_pytorch(momentum, {}).items()
    }


@pytest.mark.parametrize("name", [x if x.endswith("_64") else pytest.param(x, marks=pytest.mark.slow) for x in CASES])
def test_parity_logits_float32(name):
    """A clip differs by more only where two keys' scores are equal but for rounding, and the other one is kept."""
    case = Case(name)
    model, state, batch, schedule = case.build("float32")
    prefixes = [f"{name}/" for name in model.modalities] if len(model.modalities) > 1 else [""]
    names = tuple(f"{prefix}{branch}_attention" for prefix in prefixes for branch in BRANCHES.values())
    output, _ = evaluate(model, state, batch, schedule, names)
    found = {case.recorded_name(name): np.asarray(logits) for name, logits in output.heads.items()}
    for name, logits in found.items():
        assert_close(logits, case.recorded[name], FLOAT32_OTHER_KEYS, name)
    attention = {name: np.asarray(output.intermediates[name]) for name in names}  # depth b heads n n
    if differing := clips_that_differ(found, case.recorded, case.meta["batch"]):
        with jax.enable_x64(True):
            exact, _ = evaluate(*case.build("float64"), names)
        assert differing <= clips_with_other_keys(attention, exact.intermediates)


def clips_that_differ(found, recorded, clips):
    """The clips some of whose logits differ by more than float32 allows, by each tensor's scale."""
    differing = set()
    for name, logits in found.items():
        expected = recorded[name].reshape(clips, -1)
        scale = np.sqrt(np.mean(np.square(expected)))
        differing.update(np.nonzero(np.abs(logits.reshape(clips, -1) - expected).max(-1) > FLOAT32 * scale)[0])
    return differing


def clips_with_other_keys(attention, exact):
    """The clips of which other keys are kept than in float64, whose weights are those of the exact threshold."""
    clips = set()
    for name, weights in attention.items():
        right = np.asarray(exact[name])
        smallest = np.where(right > 0, right, np.inf).min(-1, keepdims=True)  # depth b heads n 1
        at_threshold = np.abs(np.maximum(weights, right) / smallest - 1) < 1e-3
        clips.update(np.nonzero(((weights > 0) != (right > 0)) & at_threshold)[1])
    return clips
