"""The fusion network beyond what the recorded cases fix: both layouts, its losses, its randomness, its names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rgbd_jax.losses import fusion_losses
from rgbd_jax.models.fusion import CrossModalFusion, FusionOutput
from rgbd_jax.step import Stream
from tests.tiny import tiny_config

CLIPS, FRAMES, FEATURES = 3, 4, 6


@pytest.fixture(scope="module")
def exchange():
    """An exchange with random weights and statistics, its two inputs, and the weights by name."""
    rng = np.random.default_rng(0)
    module = CrossModalFusion(FEATURES, 0.0, {"dtype": jnp.float32, "param_dtype": jnp.float32})
    graph, state = nnx.split(module)
    weights = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, weights)
    rgb, depth = rng.standard_normal((2, CLIPS, FRAMES, FEATURES), np.float32)
    return nnx.merge(graph, state), rgb, depth, weights


def added_by_hand(rgb, depth, weights, to_channels, back):
    """The exchange written out: `to_channels` makes (2c, t) of a clip's frames, `back` makes frames of (c, t)."""
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


def test_aligned_exchange_treats_every_frame_alone(exchange):
    module, rgb, depth, weights = exchange
    found = module(rgb, depth, train=False)
    expected = added_by_hand(rgb, depth, weights, lambda clip: clip.T, lambda x: x.T)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for frame in range(FRAMES):
        alone = module(rgb[:, frame : frame + 1], depth[:, frame : frame + 1], train=False)
        np.testing.assert_allclose(found[:, frame : frame + 1], alone, rtol=1e-5)


def test_reference_layout_reads_the_memory_of_frames_as_channels(exchange):
    module, rgb, depth, weights = exchange
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
    """A small fusion stream, its state and two clips."""
    config = tiny_config("unused", "fusion")
    stream = Stream(config, 12)
    rng = np.random.default_rng(0)
    shape = (2, config.clip.frames, config.clip.size, config.clip.size, 3)
    batch = {"frames": {name: jnp.asarray(rng.integers(0, 256, shape, np.uint8)) for name in ("rgb", "depth")}}
    return stream, jax.tree.map(jnp.asarray, stream.init(0)), batch


def test_intermediate_results_of_both_streams_come_back_by_name(fusion):
    stream, state, batch = fusion
    names = (
        "rgb/frame_features",
        "depth/frame_features",
        "spatial_fusion",
        "temporal_fusion",
        "depth/small_tokens",
    )
    output = jax.jit(stream.predict_step, static_argnums=3)(state.params, state.batch_stats, batch, names)
    assert set(output.intermediates) == set(names)
    assert output.intermediates["spatial_fusion"].shape == (2, 8, 64)
    assert output.intermediates["temporal_fusion"].shape == (2, 64)
    assert np.abs(output.intermediates["rgb/frame_features"] - output.intermediates["depth/frame_features"]).max() > 0
    assert set(output.heads) == {"logits", "rgb", "depth"}
    assert all(logits.shape == (2, 12) for logits in output.heads.values())


def test_each_stream_sees_its_own_modality(fusion):
    stream, state, batch = fusion
    names = ("rgb/frame_features", "depth/frame_features")
    predict = jax.jit(stream.predict_step, static_argnums=3)
    whole = predict(state.params, state.batch_stats, batch, names).intermediates
    black = {"frames": {**batch["frames"], "depth": jnp.zeros_like(batch["frames"]["depth"])}}
    without_depth = predict(state.params, state.batch_stats, black, names).intermediates
    np.testing.assert_array_equal(whole["rgb/frame_features"], without_depth["rgb/frame_features"])
    assert np.abs(whole["depth/frame_features"] - without_depth["depth/frame_features"]).max() > 0


def test_dropout_is_drawn_anew_with_every_key_and_off_at_evaluation(fusion):
    stream, state, batch = fusion

    @jax.jit
    def logits(keys):
        output, _ = stream.forward(
            state.params, state.batch_stats, *stream.inputs(batch), 1.0, train=keys is not None, keys=keys
        )
        return output.logits

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

    output = FusionOutput(
        logits=rng.standard_normal((clips, classes)),
        modality_logits=pair(clips, classes),
        features=pair(clips, features),
        decoded=rng.standard_normal((clips, features)),
        modality_logit=pair(clips),
        class_feature=pair(clips, features),
        spatial=pair(clips, features),
        intermediates={},
    )
    labels = rng.integers(0, classes, clips)
    with jax.enable_x64(True):
        found = fusion_losses(output, jnp.asarray(labels), config, distillation_weight=0.7)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    for clip in range(clips):
        target = np.full(classes, 0.1 / classes)
        target[labels[clip]] += 0.9
        heads = (output.logits, *output.modality_logits.values())
        cross_entropy = sum(-(target * np.log(softmax(head[clip]))).sum() for head in heads)
        guess = {name: 1 / (1 + np.exp(-values[clip])) for name, values in output.modality_logit.items()}
        modality = -np.log(guess["rgb"]) - np.log(1 - guess["depth"])
        reconstruction = sum(((output.decoded[clip] - f[clip]) ** 2).mean() for f in output.features.values())
        distillation = 0.0
        for name in ("rgb", "depth"):
            teacher = softmax(output.class_feature[name][clip] / 0.5)
            pupil = softmax(output.spatial[name][clip] / 0.5)
            distillation += 6 * (teacher * (np.log(teacher) - np.log(pupil))).sum()
        assert found["cross_entropy"][clip] == pytest.approx(cross_entropy, rel=1e-9)
        assert found["modality"][clip] == pytest.approx(modality, rel=1e-9)
        assert found["reconstruction"][clip] == pytest.approx(reconstruction, rel=1e-9)
        assert found["distillation"][clip] == pytest.approx(distillation, rel=1e-9)
        total = cross_entropy + modality + reconstruction + 0.7 * distillation
        assert found["loss"][clip] == pytest.approx(total, rel=1e-9)
