"""The plan of a training: products, memory and messages against formulas, and against what XLA makes of the step."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.models.attention import TransformerStack
from rgbd_jax.models.layers import BatchStatistics, ConvUnit, Linear, max_pool
from rgbd_jax.parallel.mesh import make_mesh
from rgbd_jax.parallel.sharded_step import parallel_train_step, spread_over
from rgbd_jax.step import ScheduleValues, Stream
from rgbd_jax.tools.planning import table
from rgbd_jax.tools.planning.device_kinds import GIB, KINDS, device_kind
from rgbd_jax.tools.planning.plan import ALLOWANCE, FORWARD_CLIPS, TracedStep, batch_shapes, plan, plan_of
from rgbd_jax.tools.planning.traced import Program
from rgbd_jax.tools.planning.traced_memory import Storage
from tests.conftest import ROOT
from tests.tiny import tiny_config

CLASSES = 12
TYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def traced(function, *shapes):
    """The program of a function of float32 arrays."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jaxpr = jax.make_jaxpr(function)(*arrays).jaxpr
    return Program((jaxpr, jaxpr))


def of_module(module, *inputs, **options):
    """The program of a module with shapes of inputs, called with options."""
    graph, state = nnx.split(module)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    jaxpr = jax.make_jaxpr(lambda state, *x: nnx.merge(graph, state, copy=True)(*x, **options))(state, *arrays).jaxpr
    return Program((jaxpr, jaxpr))


def tiny(**fields):
    """The tiny config with fields set, a point written as two underscores."""
    config = tiny_config("nowhere").copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.fixture(scope="module")
def step():
    """The tiny config's step on 8 devices, 2 clips each."""
    return TracedStep(tiny(), CLASSES, 8)


# Products


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_flops_of_a_matrix_product_are_two_for_each_of_its_terms(lengths):
    batch, rows, inner, columns = lengths
    program = traced(jnp.matmul, (batch, rows, inner), (batch, inner, columns))
    assert program.flops() == 2 * batch * rows * inner * columns


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from([((1, 1, 1), 1), ((1, 3, 3), 1), ((1, 7, 7), 2), ((3, 1, 1), 1)]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_flops_of_a_convolution_unit(kernel, size, channels):
    (kernel_shape, stride), (b, t, h, w), (inputs, outputs) = kernel, size, channels
    unit = ConvUnit(inputs, outputs, kernel_shape, stride, statistics=BatchStatistics(0.1), **TYPES)
    windows = b * t * -(-h // stride) * -(-w // stride)
    terms = windows * inputs * kernel_shape[0] * kernel_shape[1] * kernel_shape[2]
    assert of_module(unit, (*size, inputs), train=True).flops() == 2 * terms * outputs


def test_flops_of_a_linear_layer_and_of_its_gradient():
    graph, state = nnx.split(Linear(5, 7, **TYPES))
    jaxpr = jax.make_jaxpr(jax.grad(lambda state, x: nnx.merge(graph, state, copy=True)(x).sum(), argnums=(0, 1)))(
        state, jnp.zeros((3, 4, 5))
    ).jaxpr
    # The sum needs no product itself: those of the gradients by the kernel and by x are left.
    assert Program((jaxpr, jaxpr)).flops() == 2 * 2 * 3 * 4 * 5 * 7
    assert of_module(Linear(5, 7, **TYPES), (3, 4, 5)).flops() == 2 * 3 * 4 * 5 * 7


def test_flops_of_scanned_transformer_layers():
    depth, b, n, c, heads, d, hidden = 3, 2, 5, 8, 4, 6, 16
    stack = TransformerStack(depth, c, heads, d, hidden, 0.7, 0.1, **TYPES)
    linear = b * n * (c * 3 * heads * d + heads * d * c + 2 * c * hidden)
    attention = 2 * b * heads * n * n * d
    assert of_module(stack, (b, n, c)).flops() == 2 * depth * (linear + attention)


def test_flops_of_a_choice_are_those_of_the_larger_branch():
    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert traced(choose, (4, 4)).flops() == 2 * 2 * 4**3


# Memory


def test_what_is_cheap_takes_no_memory_until_something_reads_it():
    values = 6 * 6 * 4
    assert traced(lambda x: jnp.sin(x) * 2 + 1, (6, 6)).operations
    assert Storage(traced(lambda x: (jnp.sin(x) * 2 + 1).sum(), (6, 6))).peak() == 0
    # The sine has to be there for the product; the product's own result is the function's.
    assert Storage(traced(lambda x: jnp.sin(x) @ x, (6, 6))).peak() == values
    # Of a chain of products, each one and the one that it is computed from.
    assert Storage(traced(lambda x: x @ x @ x @ x @ x, (6, 6))).peak() == 2 * values


def test_memory_of_any_number_of_clips_follows_from_two():
    def network(params, x):
        for kernel in params:
            x = max_pool(jax.nn.relu(x @ kernel), (1, 3, 3), (1, 2, 2))
        return x.mean()

    params = [jax.ShapeDtypeStruct((4, 4), jnp.float32)] * 3

    def gradient(clips):
        x = jax.ShapeDtypeStruct((clips, 2, 8, 8, 4), jnp.float32)
        return jax.make_jaxpr(jax.value_and_grad(network))(params, x).jaxpr

    affine = Program((gradient(2), gradient(3)), (2, 3))
    for clips in (2, 5, 9):
        direct = Program((gradient(clips), gradient(clips)))
        assert Storage(affine).peak(clips) == Storage(direct).peak()
        assert Storage(affine).traffic(clips) == Storage(direct).traffic()
        assert affine.flops(clips) == direct.flops()


def test_calculated_memory_of_pooled_convolutions_is_near_what_xla_takes():
    def network(kernels, x):
        for kernel in kernels:
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = max_pool(jax.nn.relu(y - y.mean((0, 1, 2)))[None], (1, 3, 3), (1, 2, 2))[0]
        return jnp.square(x).mean()

    kernels = [jnp.zeros((3, 3, 8, 8))] * 3
    x = jnp.zeros((8, 64, 64, 8))
    gradient = jax.grad(network)
    jaxpr = jax.make_jaxpr(gradient)(kernels, x).jaxpr
    taken = jax.jit(gradient).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes
    assert 0.7 < taken / Storage(Program((jaxpr, jaxpr))).peak() < 1.6


@pytest.mark.slow
def test_calculated_memory_of_a_step_is_near_what_xla_takes():
    config = tiny()
    step = TracedStep(config, CLASSES, 1)
    memory = step.memory(config.train.batch_size)
    mesh, number = make_mesh(1, jax.devices()[:1]), jax.ShapeDtypeStruct((), jnp.float32)
    stream = Stream(config, CLASSES, spread_over(mesh))
    shapes = stream.shapes(), batch_shapes(config, config.train.batch_size), ScheduleValues(number, number, number)
    lowered = parallel_train_step(stream, mesh).lower(*shapes)
    # How well the machine code is optimised does not matter, and takes half of the time.
    taken = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).memory_analysis()
    given = sum(memory[name] for name in ("parameters", "optimizer_state", "batch_statistics", "batch"))
    assert taken.argument_size_in_bytes == pytest.approx(given, rel=0.01)
    calculated = sum(memory[name] for name in ("kept", "gradient", "transient"))
    assert 1 < taken.temp_size_in_bytes / calculated <= ALLOWANCE  # measured: 1.7


def test_kept_memory_by_type_and_by_what_is_computed_again(step):
    def kept(**fields):
        return TracedStep(tiny(**fields), CLASSES, 8).kept

    again = {what: kept(remat__stem=what, remat__inception=what, remat__transformer=what) for what in ("cheap", "all")}
    assert again["all"] < again["cheap"] < step.kept
    # Half, but for heat maps and what is normalised: those are most of what so narrow a network keeps.
    assert 0.5 < kept(model__dtype="bfloat16") / step.kept < 0.8


def test_memory_grows_with_the_clips(step):
    small, middle, large = (step.memory(clips) for clips in (8, 16, 24))
    assert middle["kept"] == 2 * small["kept"] == 8 * 2 // FORWARD_CLIPS * step.kept
    assert large["total"] - middle["total"] == pytest.approx(middle["total"] - small["total"], rel=1e-2)
    held = ("parameters", "optimizer_state", "batch_statistics", "gradient")
    assert {name: small[name] for name in held} == {name: large[name] for name in held}


def test_padding_of_lanes():
    jaxpr = jax.make_jaxpr(lambda x, y: ((x @ x).sum(), (y @ y).sum()))(jnp.zeros((40, 40)), jnp.zeros((3, 3))).jaxpr
    stored = Program((jaxpr, jaxpr), lanes=128).operations
    sizes = Program((jaxpr, jaxpr), lanes=128).sizes
    products = [sizes[operation.outputs[0]].fixed for operation in stored if operation.name == "dot_general"]
    assert products == [4 * 40 * 128, 4 * 128 * 3]  # a short last axis is not the one that is padded


# The plan


def test_parameters_are_those_of_the_stream(step):
    found = plan_of(step, device_kind("v5e"))["parameters"]
    leaves = jax.tree.leaves(Stream(tiny(), CLASSES).shapes().params)
    assert found["count"] == sum(leaf.size for leaf in leaves) == sum(part["count"] for part in found["parts"].values())
    assert found["bytes"] == 4 * found["count"]
    assert set(found["parts"]) == {"spatial", "temporal", "heads"}


def test_training_takes_three_times_the_forward_pass_but_for_the_gradient_by_the_frames(step):
    flops = plan_of(step, device_kind("v5e"))["flops"]
    clip, channels = tiny().clip, step.shapes.params["spatial"]["conv_1a_7x7"]["kernel"].shape[-1]
    by_frames = 2 * clip.frames * (clip.size // 2) ** 2 * 7 * 7 * 3 * channels
    assert flops["training_per_clip"] == 3 * flops["forward_per_clip"] - by_frames
    assert flops["step_per_device"] == 2 * flops["training_per_clip"]


def test_two_reductions_a_batch_norm_layer_one_of_the_gradient_and_one_of_the_figures(step):
    sent = {row["purpose"]: row for row in plan_of(step, device_kind("v5e"))["sent"]}
    statistics = jax.tree.leaves(step.shapes.batch_stats)  # a mean and a variance for each layer
    assert {row["kind"] for row in sent.values()} == {"all-reduce"}
    assert sent["BatchNorm"]["number"] == 2 * len(statistics) // 2
    assert sent["BatchNorm"]["bytes"] == 2 * 4 * sum(leaf.size for leaf in statistics)
    gradient = 4 * sum(leaf.size for leaf in jax.tree.leaves(step.shapes.params))
    assert (sent["gradient"]["number"], sent["gradient"]["bytes"]) == (1, gradient)
    assert sent["figures"]["number"] == 1


def test_parameters_split_over_devices(step):
    split = TracedStep(tiny(sharding__parameter_shards=4), CLASSES, 8)
    split.forward = step.forward  # is the same, and takes seconds to trace
    whole, parts = step.memory(2), split.memory(2)
    for name in ("parameters", "optimizer_state"):
        assert whole[name] / 4 <= parts[name] < whole[name] / 2  # small tensors stay whole
    assert parts["gradient"] == whole["gradient"]
    sent = {(row["kind"], row["purpose"]): row for row in plan_of(split, device_kind("v5e"))["sent"]}
    gathered, scattered = sent["all-gather", "parameters"], sent["reduce-scatter", "gradient"]
    assert (gathered["number"], gathered["bytes"]) == (scattered["number"], scattered["bytes"])
    assert sent["all-reduce", "gradient"]["number"] == 2
    gradient = 4 * sum(leaf.size for leaf in jax.tree.leaves(step.shapes.params))
    assert sent["all-reduce", "gradient"]["bytes"] == gradient - gathered["bytes"] + gathered["bytes"] // 4


@given(memory=st.integers(2**20, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_largest_batch_fits_and_one_more_clip_a_device_does_not(step, memory):
    kind = dataclasses.replace(device_kind("v5e"), memory=memory)
    found = plan_of(step, kind)
    usable, clips = found["device"]["usable"], found["largest_batch"]["clips"]
    assert usable == int(0.9 * memory)
    assert clips % 8 == 0
    assert step.memory(clips // 8 + 1)["total"] > usable
    if clips:
        assert found["largest_batch"]["total"] == step.memory(clips // 8)["total"] <= usable
    fits = step.memory(2)["total"] <= usable
    assert found["memory"]["fits"] == fits == (not found["advice"])


def test_where_nothing_fits_the_plan_says_what_would_help(step):
    found = plan_of(step, dataclasses.replace(device_kind("v5e"), memory=2**20))
    assert (found["largest_batch"]["clips"], found["memory"]["fits"]) == (0, False)
    text = table.table(found)
    assert "0: not even 1 on each device" in text
    for advice in ("remat.stem=all", "model.dtype=bfloat16", "train.microbatches=2", "sharding.parameter_shards"):
        assert f"--config.{advice}" in text
    on_cpu = plan_of(step, dataclasses.replace(device_kind("cpu"), memory=2**20))
    assert not any("remat" in advice for advice in on_cpu["advice"])  # it saves nothing there


def test_the_plan_is_json_and_a_table(step):
    for name in ("v5e", "H100-80GB", "cpu"):
        found = plan_of(step, device_kind(name))
        assert json.loads(json.dumps(found)) == found
        text = table.table(found)
        assert f"rgb on 8 x {name}, 16 clips in float32" in text
        assert max(len(line) for line in text.splitlines()) <= 120
    assert found["seconds_at_least"] == {"arithmetic": None, "memory": None, "links": None}


# Errors and kinds


@pytest.mark.parametrize(
    ("fields", "devices", "message"),
    [
        ({"train__batch_size": 12}, 8, r"config\.train\.batch_size=12 does not divide by the 8 devices"),
        ({"train__microbatches": 3}, 8, r"config\.train\.microbatches=3 does not divide the 2 clips"),
        ({"sharding__parameter_shards": 3}, 8, r"config\.sharding\.parameter_shards=3 does not divide .* devices, 8"),
        ({"model__width": 0.0}, 8, r"config\.model\.width"),
        ({}, -1, r"--device_count=-1"),
    ],
)
def test_what_training_refuses_the_plan_refuses(fields, devices, message):
    with pytest.raises(ValueError, match=message):
        plan(tiny(**fields), CLASSES, "v5e", devices)


def test_the_number_of_classes_has_to_be_known():
    with pytest.raises(ValueError, match=r"config\.model\.num_classes"):
        plan(tiny(), None, "v5e", 8)


def test_an_unknown_kind_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="--device_kind=v9") as error:
        plan(tiny(), CLASSES, "v9", 8)
    assert all(kind.name in str(error.value) for kind in KINDS)


def test_kinds_are_found_by_their_names_and_by_those_of_jax():
    names = [name for kind in KINDS for name in {kind.name, *kind.reported}]
    assert len(names) == len({name.lower() for name in names})
    assert {device_kind(name).name for name in names} == {kind.name for kind in KINDS}
    assert device_kind("TPU v5 lite").name == "v5e"
    assert device_kind().name == "cpu"
    assert device_kind("v3").memory == 16 * GIB  # half a chip
    assert (device_kind("v3").lanes, device_kind("T4").lanes) == (128, 1)
    cpu = device_kind("cpu")
    assert cpu.memory_of_each(4) == pytest.approx(cpu.memory_of_each(1) / 4, abs=1)
    assert cpu.peak("float32") is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_figures_of_kinds_are_plausible(kind):
    if kind.name != "cpu":
        assert 8 * GIB <= kind.memory <= 180 * GIB
        assert 8e12 <= kind.float32 <= kind.bfloat16 <= 2.5e15
        assert 3e11 <= kind.bandwidth <= 8e12
        assert 1.5e10 <= kind.link <= 1e12


# The list of what XLA sends


def test_collectives_are_read_from_the_text_of_a_program():
    spec = importlib.util.spec_from_file_location("list_collectives", ROOT / "scripts" / "list_collectives.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = """
  %psum.1 = f32[2,16]{1,0:T(2,128)S(1)} all-reduce(%a), replica_groups={{0,1}}, to_apply=%sum
  %all-reduce.2 = (f32[1020590]{0:T(1024)}, f64[4]{0}, pred[]) all-reduce(%b, %c, %d), replica_groups={{0,1}}
  ROOT %gather = bf16[8,4]{1,0} all-gather(%all-reduce.2), dimensions={0}
"""
    assert list(script.collectives(text)) == [
        ("all-reduce", [((2, 16), 4)]),
        ("all-reduce", [((1020590,), 4), ((4,), 8), ((), 1)]),
        ("all-gather", [((8, 4), 2)]),
    ]


def test_devices_send_each_other_nothing_in_an_evaluation_but_what_they_found():
    command = [sys.executable, "scripts/list_collectives.py", "--evaluation", "--devices=2", "--json", "--classes=12"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    # Of two clips: 12 logits of four heads, three losses, label, record, and whether it is one.
    expected = {"kind": "all-gather", "purpose": "scores", "tensors": 10, "bytes": 2 * (4 * 12 * 4 + 3 * 4 + 4 + 4 + 1)}
    assert listed["2"]["sent"] == [expected]


@pytest.mark.slow
def test_what_xla_sends_is_what_the_plan_says():
    command = [sys.executable, "scripts/list_collectives.py", "--devices=2", "--json", "--classes=12"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    from rgbd_jax.configs import demo

    found = plan(demo.get_config(), CLASSES, "cpu", 2)["sent"]
    assert {row["purpose"]: (row["tensors"], row["bytes"]) for row in listed["2"]["sent"]} == {
        row["purpose"]: (row["number"], row["bytes"]) for row in found
    }
