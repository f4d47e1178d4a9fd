"""The whole network: what comes back by name, types, sizes, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_jax.step import Stream, normalise, schedule_at
from tests.tiny import tiny_config

NAMES = ("mixed_4b", "frame_features", "recoupling_weights", "small_attention", "large_tokens")


def frames(config, clips=2, seed=0):
    rng = np.random.default_rng(seed)
    size = config.clip.size
    return {"frames": {"rgb": jnp.asarray(rng.integers(0, 256, (clips, config.clip.frames, size, size, 3), np.uint8))}}


def changed(**fields):
    config = tiny_config("unused")
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def predict(config, intermediates=()):
    stream = Stream(config, 12)
    state = stream.init(0)
    return jax.jit(stream.predict_step, static_argnums=3)(
        state.params, state.batch_stats, frames(config), intermediates
    )


def test_intermediate_results_come_back_by_name_and_only_then():
    config = changed()
    output = predict(config, NAMES)
    assert set(output.intermediates) == set(NAMES)
    shapes = {name: value.shape for name, value in output.intermediates.items()}
    assert shapes["mixed_4b"][:4] == (2, 8, 2, 2)
    assert shapes["frame_features"] == shapes["recoupling_weights"] == (2, 8, 64)
    assert shapes["small_attention"] == (1, 2, 8, 3, 3)  # depth b heads n+1 n+1
    assert shapes["large_tokens"] == (1, 2, 7, 64)
    np.testing.assert_allclose(np.asarray(output.intermediates["small_attention"]).sum(-1), 1, rtol=1e-5)
    assert predict(config).intermediates == {}


def test_unknown_intermediate_result_lists_those_there_are():
    with pytest.raises(
        ValueError, match=r"no intermediate result named mixed_9z; there are: conv_1a_7x7, .*small_attention"
    ):
        predict(changed(), ("mixed_9z",))


def test_logits_are_the_maximum_over_the_branches():
    output = predict(changed())
    np.testing.assert_array_equal(
        output.logits, np.max([output.branch_logits[n] for n in ("small", "medium", "large")], axis=0)
    )


def test_bfloat16_computes_near_float32_with_float32_weights_and_logits():
    exact, rounded = predict(changed()), predict(changed(model__dtype="bfloat16"))
    assert rounded.logits.dtype == jnp.float32
    state = Stream(changed(model__dtype="bfloat16"), 12).init(0)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    scale = np.abs(exact.logits).max()
    assert np.abs(exact.logits - rounded.logits).max() < 0.1 * scale


@pytest.mark.parametrize("stream_name", ["rgb", "fusion"])
def test_training_in_bfloat16_keeps_state_and_losses_in_float32(stream_name):
    config = tiny_config("unused", stream_name)
    config.model.dtype = "bfloat16"
    stream = Stream(config, 12)
    names = ("rgb", "depth") if stream.fusion else ("rgb",)
    batch = {
        "frames": dict.fromkeys(names, frames(config)["frames"]["rgb"]),
        "label": jnp.zeros(2, jnp.int32),
        "record": jnp.arange(2),
    }
    state, figures = jax.eval_shape(stream.train_step, stream.shapes(), batch, schedule_at(config, 0.0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(figures)} == {np.dtype("float32")}
    assert state == stream.shapes()


@pytest.mark.parametrize(
    "fields",
    [
        {"clip__size": 37},
        {"model__recoupling": False},
        {"model__frp": False},
        {"model__recoupling_heads": 2, "model__knn_attention": 0.0},
        {"clip__frames": 5, "model__width": 0.3},
    ],
)
def test_other_settings_run_and_train(fields):
    config = changed(**fields)
    stream = Stream(config, 12)
    assert np.isfinite(predict(config).logits).all()
    shapes = jax.eval_shape(
        stream.train_step,
        stream.shapes(),
        {**frames(config), "label": jnp.zeros(2, jnp.int32), "record": jnp.arange(2)},
        schedule_at(config, 0.0),
    )[0]
    assert jax.tree.structure(shapes) == jax.tree.structure(stream.shapes())


def test_no_heat_map_is_computed_without_frp():
    stream = Stream(changed(model__frp=False), 12)
    assert stream.inputs(frames(stream.config))[1] is None


def test_initial_values_are_a_function_of_the_seed():
    stream = Stream(changed(), 12)
    first, again, other = (jax.tree.leaves(stream.init(seed).params) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_normalised_frames_are_exact_in_bfloat16():
    levels = jnp.arange(256, dtype=jnp.uint8)[None, None, None, :, None]
    np.testing.assert_array_equal(normalise(levels, jnp.bfloat16).astype(jnp.float32), normalise(levels, jnp.float32))
