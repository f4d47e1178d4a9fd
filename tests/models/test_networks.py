"""The networks beyond the recorded cases: intermediate values, dtypes, sizes, randomness; fusion in both layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rgbd_jax.config import default_config
from rgbd_jax.losses import fusion_losses
from rgbd_jax.model import Model, evaluation_schedule, normalise, schedule_at
from rgbd_jax.models.family import Output, ScheduleValues
from rgbd_jax.models.fusion import CrossModalFusion
from rgbd_jax.models.ops import OPERATIONS
from rgbd_jax.step import state_shapes, train_step
from tests.tiny import tiny_config

BRANCHES = ("small", "medium", "large")
LONG_SUM = 4096  # values of bfloat16, of which a sum would lose more than half of the digits


def model_of(modality="rgb", **fields):
    config = tiny_config("unused", modality)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return Model(config, 12)


def batch_of(model, clips=2):
    clip, rng = model.config.clip, np.random.default_rng(0)
    shape = (clips, clip.frames, clip.size, clip.size, 3)
    frames = {name: jnp.asarray(rng.integers(0, 256, shape, np.uint8)) for name in model.modalities}
    return {"frames": frames, "label": jnp.zeros(clips, jnp.int32), "record": jnp.arange(clips)}


@functools.partial(jax.jit, static_argnums=(0, 2))
def evaluate(model, frames, names=()):
    inputs, schedule = model.inputs({"frames": frames}), evaluation_schedule(model.config, 0)
    return model.apply(*model.init(0), inputs, schedule, intermediates=names)[0]


def predict(model, names=()):
    return evaluate(model, batch_of(model)["frames"], names)


def shapes_after_a_step(model):
    step = functools.partial(train_step, model)
    return jax.eval_shape(step, state_shapes(model), batch_of(model), schedule_at(model.config, 0.0))


def test_intermediate_values_are_returned_by_name_on_request():
    names = ("mixed_4b", "frame_features", "recoupling_weights", "small_attention", "large_tokens")
    output = predict(model_of(), names)
    assert set(output.intermediates) == set(names)
    shapes = {name: value.shape for name, value in output.intermediates.items()}
    assert shapes["mixed_4b"][:4] == (2, 8, 2, 2)
    assert shapes["frame_features"] == shapes["recoupling_weights"] == (2, 8, 64)
    assert shapes["small_attention"] == (1, 2, 8, 3, 3)  # depth b heads n+1 n+1
    assert shapes["large_tokens"] == (1, 2, 7, 64)
    np.testing.assert_allclose(np.asarray(output.intermediates["small_attention"]).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(output.logits, np.max([output.heads[name] for name in BRANCHES], axis=0))
    with pytest.raises(ValueError, match=r"value named mixed_9z; available: conv_1a_7x7, .*small_attention"):
        predict(model_of(), ("mixed_9z",))


def test_each_network_of_a_fusion_sees_its_own_modality():
    model = model_of("fusion")
    names = ("rgb/frame_features", "depth/frame_features", "spatial_fusion", "temporal_fusion", "depth/small_tokens")
    frames = batch_of(model)["frames"]
    output = evaluate(model, frames, names)
    assert {name: logits.shape for name, logits in output.heads.items()} == dict.fromkeys(
        ("logits", "rgb", "depth"), (2, 12)
    )
    whole = output.intermediates
    assert whole["spatial_fusion"].shape == (2, 8, 64)
    assert whole["temporal_fusion"].shape == (2, 64)
    without_depth = evaluate(model, {**frames, "depth": jnp.zeros_like(frames["depth"])}, names).intermediates
    changed = {name for name in names if np.abs(whole[name] - without_depth[name]).max() > 0}
    assert changed == {*names} - {"rgb/frame_features"}


def test_bfloat16_computes_near_float32_with_float32_weights_and_logits():
    model = model_of(model__dtype="bfloat16")
    exact, rounded = predict(model_of()).logits, predict(model).logits
    assert rounded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(model.init(0))} == {np.dtype("float32")}
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    levels = jnp.arange(256, dtype=jnp.uint8)[None, None, None, :, None]
    np.testing.assert_array_equal(normalise(levels, jnp.bfloat16).astype(jnp.float32), normalise(levels, jnp.float32))


@pytest.mark.parametrize("modality", ["rgb", "fusion"])
def test_training_in_bfloat16_keeps_state_and_losses_in_float32(modality):
    model = model_of(modality, model__dtype="bfloat16")
    state, metrics = shapes_after_a_step(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype("float32")}
    assert state == state_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}


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
    model = model_of(**fields)
    assert np.isfinite(predict(model).logits).all()
    assert shapes_after_a_step(model)[0] == state_shapes(model)
    assert (model.inputs(batch_of(model))["rgb"].heat is None) == (not model.config.model.frp)


def test_initial_values_and_dropout_are_functions_of_the_seed():
    model = model_of("fusion")
    batch, schedule = batch_of(model), schedule_at(model.config, 0.0)

    @jax.jit
    def logits(weights, key):
        keys = jax.random.split(key, 2)
        return model.apply(*weights, model.inputs(batch), schedule, train=True, keys=keys)[0].logits

    weights = model.init(0)
    values = [logits(model.init(seed), jax.random.key(key)) for seed, key in ((0, 0), (0, 0), (1, 0))]
    values.append(logits(weights, jax.random.key(1)))
    np.testing.assert_array_equal(values[0], values[1])
    assert all(np.abs(other - values[0]).max() > 0 for other in values[2:])


@pytest.mark.parametrize("reference_layout", [False, True])
def test_cross_modal_fusion_equals_the_module_written_out(reference_layout):
    frames, features, rng = 4, 6, np.random.default_rng(0)
    module = CrossModalFusion(features, default_config("fusion"), reference_layout=reference_layout)
    graph, state = nnx.split(module)
    weights = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, weights)
    rgb, depth = rng.standard_normal((2, 3, frames, features), np.float32)
    norm, expected = weights["hidden"]["norm"], []
    for clip in np.concatenate([rgb, depth], axis=-1):  # t 2c
        x = clip / np.linalg.norm(clip, axis=-1, keepdims=True)
        if reference_layout:  # the memory of frames is read as channels
            x = x.reshape(2 * features, frames).T
        x = x @ weights["hidden"]["linear"]["kernel"]
        x = (x - norm["mean"]) / np.sqrt(norm["variance"] + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0) @ weights["output"]["kernel"]  # t c
        expected.append(np.ascontiguousarray(x.T).reshape(frames, features) if reference_layout else x)
    np.testing.assert_allclose(nnx.merge(graph, state)(rgb, depth), expected, rtol=1e-5)


def test_losses_of_fusion_against_a_computation_by_hand():
    config = tiny_config("unused", "fusion")
    config.loss.update(label_smoothing=0.1, distillation_temperature=0.5, reference_device_batch=6)
    rng, modalities = np.random.default_rng(0), ("rgb", "depth")
    heads = {name: rng.standard_normal((5, 4)) for name in ("logits", *modalities)}
    sizes = {"feature": (7,), "modality_logit": (), "teacher": (7,), "student": (7,)}
    features = {f"{kind}_{m}": rng.standard_normal((5, *size)) for kind, size in sizes.items() for m in modalities}
    features["decoded"] = rng.standard_normal((5, 7))
    labels = rng.integers(0, 4, 5)
    with jax.enable_x64(True):
        output = Output(heads, features, {})
        found = fusion_losses(output, jnp.asarray(labels), config, ScheduleValues(0.0, 0.7, 1.0))

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    def divergence(teacher, student):
        teacher, student = log_softmax(teacher / 0.5), log_softmax(student / 0.5)
        return (np.exp(teacher) * (teacher - student)).sum(axis=-1)

    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    expected = {
        "cross_entropy": -sum((target * log_softmax(logits)).sum(axis=-1) for logits in heads.values()),
        "modality": np.log1p(np.exp(-features["modality_logit_rgb"]))
        + np.log1p(np.exp(features["modality_logit_depth"])),
        "reconstruction": sum(((features["decoded"] - features[f"feature_{m}"]) ** 2).mean(-1) for m in modalities),
        "distillation": sum(6 * divergence(features[f"teacher_{m}"], features[f"student_{m}"]) for m in modalities),
    }
    expected["loss"] = sum(values for name, values in expected.items() if name != "distillation")
    expected["loss"] = expected["loss"] + 0.7 * expected["distillation"]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9)


@pytest.mark.parametrize("operations", ["gpu", "tpu"])
def test_every_product_of_a_training_step_has_the_precision_of_the_config(operations):
    model = model_of(model__matmul_precision="highest", model__operations=operations)
    arguments = state_shapes(model), batch_of(model), schedule_at(model.config, 0.0)
    program = jax.jit(functools.partial(train_step, model)).lower(*arguments).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line or "convolution(" in line]
    assert len(products) > 50
    assert [line for line in products if line.count("HIGHEST") != 2] == []


@pytest.mark.parametrize(
    ("modality", "operations"),
    [*(("rgb", name) for name in OPERATIONS), pytest.param("fusion", "gpu", marks=pytest.mark.slow)],
)
def test_no_long_sum_of_a_training_step_accumulates_in_bfloat16(modality, operations):
    model = model_of(modality, model__dtype="bfloat16", model__operations=operations)
    clips = 2 * LONG_SUM  # nothing is computed: the sum over clips alone is a long one
    batch = jax.eval_shape(lambda: batch_of(model, 1))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((clips, *x.shape[1:]), x.dtype), batch)
    step = functools.partial(train_step, model)
    sums = list(sums_of(jax.make_jaxpr(step)(state_shapes(model), batch, schedule_at(model.config, 0.0)).jaxpr))
    assert max(length for _, length, _ in sums) > LONG_SUM
    assert [(dtype, length, line) for dtype, length, line in sums if dtype == jnp.bfloat16 and length > LONG_SUM] == []


def sums_of(jaxpr):
    """Yields dtype, number of added values and source of every sum of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("reduce_sum", "cumsum", "reduce_window_sum"):
            (operand,), (result,) = equation.invars, equation.outvars
            yield operand.aval.dtype, operand.aval.size // result.aval.size, str(equation.source_info.name_stack)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sums_of(inner)
