"""The fusion network beyond the recorded cases: both layouts, losses, randomness, intermediate values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rgbd_jax.config import default_config
from rgbd_jax.losses import fusion_losses
from rgbd_jax.model import Model, evaluation_schedule
from rgbd_jax.models.family import Output, ScheduleValues
from rgbd_jax.models.fusion import CrossModalFusion
from tests.tiny import tiny_config

CLIPS, FRAMES, FEATURES = 3, 4, 6


@pytest.fixture(scope="module")
def cross_modal():
    """A cross-modal fusion module with random weights and statistics, its two inputs, and the weights by name."""
    rng = np.random.default_rng(0)
    module = CrossModalFusion(FEATURES, default_config("fusion"))
    graph, state = nnx.split(module)
    weights = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, weights)
    rgb, depth = rng.standard_normal((2, CLIPS, FRAMES, FEATURES), np.float32)
    return nnx.merge(graph, state), rgb, depth, weights


def added_by_hand(rgb, depth, weights, to_channels, back):
    """The module written out: `to_channels` makes (2c, t) of a clip's frames, `back` makes frames of (c, t)."""
    hidden, norm = weights["hidden"]["linear"]["kernel"], weights["hidden"]["norm"]
    result = []
    for clip in np.concatenate([rgb, depth], axis=-1):  # t 2c
        clip = clip / np.linalg.norm(clip, axis=-1, keepdims=True)
        columns = to_channels(clip)  # 2c t
        x = np.stack([column @ hidden for column in columns.T])  # t c
        x = (x - norm["mean"]) / np.sqrt(norm["variance"] + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0) @ weights["output"]["kernel"]  # t c
        result.append(back(x.T))
    return np.stack(result)


def test_aligned_fusion_treats_every_frame_alone(cross_modal):
    module, rgb, depth, weights = cross_modal
    found = module(rgb, depth, train=False)
    expected = added_by_hand(rgb, depth, weights, lambda clip: clip.T, lambda x: x.T)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for frame in range(FRAMES):
        alone = module(rgb[:, frame : frame + 1], depth[:, frame : frame + 1], train=False)
        np.testing.assert_allclose(found[:, frame : frame + 1], alone, rtol=1e-5)


def test_reference_layout_reads_the_memory_of_frames_as_channels(cross_modal):
    module, rgb, depth, weights = cross_modal
    found = module(rgb, depth, reference_layout=True, train=False)
    expected = added_by_hand(
        rgb,
        depth,
        weights,
        lambda clip: clip.reshape(2 * FEATURES, FRAMES),
        lambda x: np.ascontiguousarray(x).reshape(FRAMES, FEATURES),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(found - module(rgb, depth, train=False)).max() > 0.1


@pytest.fixture(scope="module")
def fusion():
    """A small fusion model, its weights and two clips."""
    config = tiny_config("unused", "fusion")
    model = Model(config, 12)
    rng = np.random.default_rng(0)
    shape = (2, config.clip.frames, config.clip.size, config.clip.size, 3)
    batch = {"frames": {name: jnp.asarray(rng.integers(0, 256, shape, np.uint8)) for name in ("rgb", "depth")}}
    return model, jax.tree.map(jnp.asarray, model.init(0)), batch


def predict(model, weights, batch, names=()):
    @jax.jit
    def output(weights, batch):
        schedule = evaluation_schedule(model.config, 0)
        return model.apply(*weights, model.inputs(batch), schedule, intermediates=names)[0]

    return output(weights, batch)


def test_intermediate_values_of_both_modalities_are_returned_by_name(fusion):
    model, weights, batch = fusion
    names = (
        "rgb/frame_features",
        "depth/frame_features",
        "spatial_fusion",
        "temporal_fusion",
        "depth/small_tokens",
    )
    output = predict(model, weights, batch, names)
    assert set(output.intermediates) == set(names)
    assert output.intermediates["spatial_fusion"].shape == (2, 8, 64)
    assert output.intermediates["temporal_fusion"].shape == (2, 64)
    assert np.abs(output.intermediates["rgb/frame_features"] - output.intermediates["depth/frame_features"]).max() > 0
    assert set(output.heads) == {"logits", "rgb", "depth"}
    assert all(logits.shape == (2, 12) for logits in output.heads.values())


def test_each_network_sees_its_own_modality(fusion):
    model, weights, batch = fusion
    names = ("rgb/frame_features", "depth/frame_features")
    whole = predict(model, weights, batch, names).intermediates
    black = {"frames": {**batch["frames"], "depth": jnp.zeros_like(batch["frames"]["depth"])}}
    without_depth = predict(model, weights, black, names).intermediates
    np.testing.assert_array_equal(whole["rgb/frame_features"], without_depth["rgb/frame_features"])
    assert np.abs(whole["depth/frame_features"] - without_depth["depth/frame_features"]).max() > 0


def test_dropout_is_drawn_anew_with_every_key_and_off_at_evaluation(fusion):
    model, weights, batch = fusion

    @jax.jit
    def logits(keys):
        schedule = evaluation_schedule(model.config, 0)
        return model.apply(*weights, model.inputs(batch), schedule, train=keys is not None, keys=keys)[0].logits

    first, again, other = (logits(jax.random.split(jax.random.key(seed), 2)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    np.testing.assert_array_equal(logits(None), logits(None))


def test_losses_against_a_computation_by_hand():
    config = tiny_config("unused", "fusion")
    config.loss.label_smoothing = 0.1
    config.loss.distillation_temperature = 0.5
    config.loss.reference_device_batch = 6
    rng = np.random.default_rng(0)
    clips, classes, features = 5, 4, 7

    def pair(*shape):
        return {name: rng.standard_normal(shape) for name in ("rgb", "depth")}

    features = {
        f"{kind}_{name}": values
        for kind, shape in (
            ("feature", (clips, features)),
            ("modality_logit", (clips,)),
            ("teacher", (clips, features)),
            ("student", (clips, features)),
        )
        for name, values in pair(*shape).items()
    } | {"decoded": rng.standard_normal((clips, features))}
    output = Output({"logits": rng.standard_normal((clips, classes)), **pair(clips, classes)}, features, {})
    labels = rng.integers(0, classes, clips)
    with jax.enable_x64(True):
        found = fusion_losses(output, jnp.asarray(labels), config, ScheduleValues(0.0, 0.7, 1.0))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    for clip in range(clips):
        target = np.full(classes, 0.1 / classes)
        target[labels[clip]] += 0.9
        cross_entropy = sum(-(target * np.log(softmax(head[clip]))).sum() for head in output.heads.values())
        is_rgb = {name: 1 / (1 + np.exp(-features[f"modality_logit_{name}"][clip])) for name in ("rgb", "depth")}
        modality = -np.log(is_rgb["rgb"]) - np.log(1 - is_rgb["depth"])
        reconstruction = sum(
            ((features["decoded"][clip] - features[f"feature_{name}"][clip]) ** 2).mean() for name in ("rgb", "depth")
        )
        distillation = 0.0
        for name in ("rgb", "depth"):
            teacher = softmax(features[f"teacher_{name}"][clip] / 0.5)
            student = softmax(features[f"student_{name}"][clip] / 0.5)
            distillation += 6 * (teacher * (np.log(teacher) - np.log(student))).sum()
        assert found["cross_entropy"][clip] == pytest.approx(cross_entropy, rel=1e-9)
        assert found["modality"][clip] == pytest.approx(modality, rel=1e-9)
        assert found["reconstruction"][clip] == pytest.approx(reconstruction, rel=1e-9)
        assert found["distillation"][clip] == pytest.approx(distillation, rel=1e-9)
        total = cross_entropy + modality + reconstruction + 0.7 * distillation
        assert found["loss"][clip] == pytest.approx(total, rel=1e-9)
