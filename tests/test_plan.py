"""The plan of a training: the compiler's numbers for the step, the largest batch, and what it advises."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.model import Model
from rgbd_jax.step import state_shapes
from rgbd_jax.tools import plan
from tests.conftest import ROOT
from tests.test_main import TINY
from tests.tiny import tiny_config

CLASSES = 12


def tiny(fields=()):
    config = tiny_config("nowhere").copy_and_resolve_references()
    config.update_from_flattened_dict(dict(fields))
    return config


def test_numbers_are_those_of_the_compiled_step():
    config = tiny()
    found, shapes = plan.compile_step(config, CLASSES, jax.devices()[:1], 4), state_shapes(Model(config, CLASSES))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    given, memory = jax.tree.leaves((shapes, plan.batch_shapes(config, 4))), found["memory"]
    assert memory["arguments"] == pytest.approx(sum(leaf.size * leaf.dtype.itemsize for leaf in given), rel=0.01)
    assert memory["temporaries"] > 4 * 8 * 32 * 32 * 3 * 4  # the clips in float32, at the least
    assert memory["outputs"] < 0.1 * memory["arguments"]  # the state's memory is used again
    assert memory["total"] == sum(memory.values()) - memory["total"]
    assert found["flops"] > 1e7
    assert found["bytes_accessed"] > memory["arguments"]
    assert found["collectives"] == []


@given(st.integers(0, 100), st.integers(1, 50), st.integers(1, 20), st.integers(1, 8), st.integers(1, 10_000))
def test_the_largest_batch_fits_and_the_next_does_not(fixed, slope, start, unit, limit):
    for most in (math.inf, 1, start * unit // 2, start * unit, 3 * start * unit):  # the compiler has no number beyond
        needs = {}

        def need(size, most=most, needs=needs):
            return needs.setdefault(size, fixed + slope * size if size <= most else math.inf)

        found = plan.largest_batch(need, start * unit, unit, limit)
        if most == math.inf:
            assert found == max((limit - fixed) // slope // unit * unit, 0)
        assert found % unit == 0
        assert found == 0 or needs[found] <= limit
        assert len(needs) <= (3 if most == math.inf else 6)


def test_a_step_that_fits_and_one_that_does_not(monkeypatch):
    def compile_step(config, num_classes, devices, batch_size):
        memory = {"arguments": 100, "temporaries": 10 * batch_size, "total": 100 + 10 * batch_size}
        sent = [{"kind": "all-reduce", "operations": 2, "tensors": 3, "bytes": 2**21}]
        return {"parameters": 7, "memory": memory, "flops": 2e9, "bytes_accessed": 2**30, "collectives": sent}

    monkeypatch.setattr(plan, "compile_step", compile_step)
    results = []
    for limit in (500, 200, None):
        monkeypatch.setattr(plan, "_memory_of_each", lambda devices, limit=limit: limit)
        results.append(plan.plan(tiny(), CLASSES))
    assert [(result["fits"], result["largest_batch"]) for result in results] == [(True, 40), (False, 10), (True, None)]
    fitting, result, _ = results
    assert fitting["advice"] == []
    assert json.loads(json.dumps(fitting)) == fitting
    text = plan.table(fitting)
    for part in ("train.batch_size=16", "40\n", "2.0 GFLOP", "1,024.0 MiB", "all-reduce", "the step fits"):
        assert part in text
    for part in ("does not fit", *(f"--config.{x}" for x in ("train.batch_size=10", "train.microbatches=16"))):
        assert part in plan.table(result)
    assert "remat" not in "".join(result["advice"])  # it saves nothing on a CPU


def test_a_step_that_the_compiler_refuses(monkeypatch):
    class OutOfMemory:
        def lower(self, *arguments):
            return self

        def compile(self, **options):
            raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(plan, "compile_train_step", lambda model, mesh: OutOfMemory())
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"
    result = plan.plan(tiny(), CLASSES)
    assert (result["fits"], result["largest_batch"], result["memory"]) == (False, 0, {})
    assert "does not fit" in plan.table(result)
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan.plan(tiny(), CLASSES)


def test_collectives_of_a_program():
    text = """
  %psum.1 = f32[2,16]{1,0:T(2,128)S(1)} all-reduce(%a), replica_groups={{0,1}}, to_apply=%sum
  %all-reduce.2 = (f32[1020590]{0:T(1024)}, f64[4]{0}, pred[]) all-reduce(%b, %c, %d), replica_groups={{0,1}}
  %start = (bf16[4,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%all-reduce.2), dimensions={0}
  ROOT %gather = bf16[8,4]{1,0} all-gather-done(%start)
"""
    assert plan.collectives(text) == [
        {"kind": "all-reduce", "operations": 2, "tensors": 4, "bytes": 4 * (32 + 1020590) + 8 * 4 + 1},
        {"kind": "all-gather", "operations": 1, "tensors": 1, "bytes": 64},
    ]


@pytest.mark.parametrize(
    ("fields", "classes", "devices", "message"),
    [
        ({"train.microbatches": 3}, CLASSES, 0, r"config\.train\.microbatches=3 does not divide the 16 clips"),
        ({"model.width": 0.0}, CLASSES, 0, r"config\.model\.width"),
        ({}, CLASSES, 99, r"--device_count=99, but this machine has \d+ cpu devices"),
        ({}, CLASSES, -1, r"--device_count=-1"),
        ({}, None, 0, r"config\.model\.num_classes is not set"),
    ],
)
def test_what_training_refuses_the_plan_refuses(fields, classes, devices, message):
    jnp.zeros(())  # JAX has started: no other number of devices can be simulated
    with pytest.raises(ValueError, match=message):
        plan.plan(tiny(fields), classes, devices)


@pytest.mark.slow
def test_command_for_simulated_devices():
    fields = [f"--config.{field}" for field in (*TINY, f"model.num_classes={CLASSES}")]
    command = [sys.executable, "-m", "rgbd_jax.main", "--config=configs/demo.py", "--mode=plan", "--device_count=2"]
    done = subprocess.run([*command, *fields], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["device"]["count"], result["fits"], result["largest_batch"] % 2) == (2, True, 0)
    assert result["largest_batch"] > 1000
    assert "all-reduce" in [row["kind"] for row in result["collectives"]]
    assert "compiling the training step for a batch of 16" in done.stderr
