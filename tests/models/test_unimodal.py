"""The network of one modality: intermediate values, dtypes, sizes, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_jax.model import Model, evaluation_schedule, normalise, schedule_at
from rgbd_jax.step import state_shapes, train_step
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
    model = Model(config, 12)

    @jax.jit
    def output(params, batch_stats, batch):
        schedule = evaluation_schedule(config, 0)
        return model.apply(params, batch_stats, model.inputs(batch), schedule, intermediates=intermediates)[0]

    return output(*model.init(0), frames(config))


def step_shapes(model, batch):
    """Shapes of state and metrics after a training step."""
    return jax.eval_shape(
        lambda state, batch: train_step(model, state, batch, schedule_at(model.config, 0.0)), state_shapes(model), batch
    )


def test_intermediate_values_are_returned_by_name_on_request():
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


def test_unknown_intermediate_value_lists_the_available_ones():
    with pytest.raises(
        ValueError, match=r"no intermediate value named mixed_9z; available: conv_1a_7x7, .*small_attention"
    ):
        predict(changed(), ("mixed_9z",))


def test_logits_are_the_maximum_over_the_branches():
    output = predict(changed())
    np.testing.assert_array_equal(
        output.logits, np.max([output.heads[n] for n in ("small", "medium", "large")], axis=0)
    )


def test_bfloat16_computes_near_float32_with_float32_weights_and_logits():
    exact, rounded = predict(changed()), predict(changed(model__dtype="bfloat16"))
    assert rounded.logits.dtype == jnp.float32
    weights = Model(changed(model__dtype="bfloat16"), 12).init(0)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype("float32")}
    scale = np.abs(exact.logits).max()
    assert np.abs(exact.logits - rounded.logits).max() < 0.1 * scale


@pytest.mark.parametrize("modality", ["rgb", "fusion"])
def test_training_in_bfloat16_keeps_state_and_losses_in_float32(modality):
    config = tiny_config("unused", modality)
    config.model.dtype = "bfloat16"
    model = Model(config, 12)
    batch = {
        "frames": dict.fromkeys(model.modalities, frames(config)["frames"]["rgb"]),
        "label": jnp.zeros(2, jnp.int32),
        "record": jnp.arange(2),
    }
    state, metrics = step_shapes(model, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype("float32")}
    assert state == state_shapes(model)


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
    model = Model(config, 12)
    assert np.isfinite(predict(config).logits).all()
    batch = {**frames(config), "label": jnp.zeros(2, jnp.int32), "record": jnp.arange(2)}
    assert step_shapes(model, batch)[0] == state_shapes(model)


def test_no_heat_map_is_computed_without_frp():
    model = Model(changed(model__frp=False), 12)
    assert model.inputs(frames(model.config))["rgb"].heat is None


def test_initial_values_are_a_function_of_the_seed():
    model = Model(changed(), 12)
    first, again, other = (jax.tree.leaves(model.init(seed)[0]) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_normalised_frames_are_exact_in_bfloat16():
    levels = jnp.arange(256, dtype=jnp.uint8)[None, None, None, :, None]
    np.testing.assert_array_equal(normalise(levels, jnp.bfloat16).astype(jnp.float32), normalise(levels, jnp.float32))
