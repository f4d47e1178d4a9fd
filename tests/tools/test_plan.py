"""The plan of a training: the compilers' estimates, the largest batch, what is advised, and what is refused."""

import json
import logging
import math
import signal

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax import main
from rgbd_jax.model import Model
from rgbd_jax.step import state_shapes
from rgbd_jax.tools import plan as package
from rgbd_jax.tools.plan import Target, cache, compilation, isolated, planning, targets
from rgbd_jax.tools.plan.compilation import Job
from tests.conftest import ROOT
from tests.tiny import run_command, tiny_config
from tests.tools import compilers

CLASSES = 12
THIS_MACHINE = Target()
COMMON = {"parameters": 7, "flops": 2e9, "bytes_accessed": 3e9, "device": "cpu", "platform": "cpu"}


def tiny(fields=()):
    config = tiny_config("nowhere").copy_and_resolve_references()
    config.update_from_flattened_dict(dict(fields))
    return config


def stand_in(memory, **more):
    """Returns what estimates a step that needs 100 bytes and 10 a clip, on one device."""

    def estimated(job):
        known = {**COMMON, "device_count": 1, "device_memory": memory, "clips_per_device": job.batch_size}
        sizes = {"argument_bytes": 100, "temp_bytes": 10 * job.batch_size, "total_bytes": 100 + 10 * job.batch_size}
        sent = [{"kind": "all-reduce", "number": 2, "tensors": 3, "bytes": 2**21, "asynchronous": 1}]
        held = [{"array": "f32[16,8]", "count": 2, "bytes": 2**20, "stage": "stem, forward", "op_name": "x"}]
        return {**known, **sizes, "collectives": sent, "largest_temporaries": held, **more}

    return estimated


def test_estimates_are_those_of_the_compiled_step():
    config = tiny()
    found = compilation.estimate_step(Job(config, CLASSES, Target("", "", 1), 4))
    shapes = state_shapes(Model(config, CLASSES))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    mesh = compilation.make_mesh(1, jax.devices()[:1])
    given = jax.tree.leaves((shapes, compilation.batch_shapes(config, 4, mesh)))
    arguments = sum(leaf.size * leaf.dtype.itemsize for leaf in given)
    assert found["argument_bytes"] == pytest.approx(arguments, rel=0.01)
    assert found["temp_bytes"] > 4 * 8 * 32 * 32 * 3 * 4  # the clips in float32, at the least
    assert found["output_bytes"] < 0.1 * found["argument_bytes"]  # the state's memory is used again
    assert found["total_bytes"] == sum(found[f"{name}_bytes"] for name in ("argument", "temp", "output", "program"))
    assert found["flops"] > 1e7
    assert found["bytes_accessed"] > found["argument_bytes"]
    assert (found["collectives"], found["clips_per_device"], found["device_count"]) == ([], 4, 1)
    held = found["largest_temporaries"]
    assert 0 < held[-1]["bytes"] <= held[0]["bytes"] <= found["temp_bytes"]
    assert "stem, forward" in [row["stage"] for row in held]
    assert json.loads(json.dumps(found)) == found


@given(st.integers(0, 100), st.integers(1, 50), st.integers(1, 20), st.integers(1, 8), st.integers(1, 10_000))
def test_the_largest_batch_fits_and_the_next_does_not(fixed, slope, start, unit, limit):
    for most in (math.inf, 1, start * unit // 2, start * unit, 3 * start * unit):  # the compiler has no number beyond
        needs = {}

        def need(size, most=most, needs=needs):
            return needs.setdefault(size, fixed + slope * size if size <= most else math.inf)

        found, compiled = planning.largest_batch(need, start * unit, unit, limit)
        exact = max((limit - fixed) // slope // unit * unit, 0)
        if most == math.inf and (start > 1 or fixed + slope * unit <= limit):
            assert found == exact
        assert found % unit == 0
        assert found <= exact
        assert not compiled or found == 0 or needs[found] <= limit
        assert len(needs) <= 3


def test_a_step_that_fits_and_one_that_does_not(monkeypatch):
    results = []
    for memory in (500, 250, None):
        monkeypatch.setattr(planning, "estimated", stand_in(memory))
        results.append(package.plan(tiny(), CLASSES, THIS_MACHINE))
    # Five per cent of the memory stays free.
    found = [(result["fits"], result["compiled"]["largest_batch"]) for result in results]
    assert found == [(True, 37), (False, 13), (True, None)]
    fitting, result, _ = results
    assert fitting["advice"] == []
    assert json.loads(json.dumps(fitting)) == fitting
    text = package.table(fitting)
    for part in ("train.batch_size=16", "37 (compiled)", "2.0 GFLOP", "3.0 GB", "all-reduce", "the step fits"):
        assert part in text
    for part in ("2 operations, 1 asynchronous, 3 tensors, 2.0 MiB", "1.0 MiB: 2 x f32[16,8], stem, forward"):
        assert part in text
    for part in ("does not fit", *(f"--config.{x}" for x in ("train.batch_size=13", "train.microbatches=16"))):
        assert part in package.table(result)
    assert "remat" not in "".join(result["advice"])  # it saves nothing on a CPU


OF_A_TPU = {
    "million_cycles_per_clip": 68.94,
    "ms_per_clip": 45.96,
    "utilisation": 0.047,
    "uncounted": [{"kind": "pad", "number": 4, "bytes": 3 * 2**20}],
    "stages": {"stem, backward": 21.4, "optimizer, forward": 2.7},
}
OF_A_GPU = {
    "gigabytes": 63.6,
    "bound_ms_per_clip": 3.3,
    "kernels": 3692,
    "utilisation": 0.13,
    "stages": {"stem, backward": {"gigabytes": 14.7, "bound_ms_per_clip": 0.74, "kernels": 29}},
}


@pytest.mark.parametrize(
    ("target", "platform", "estimates", "shown"),
    [
        (
            Target("v5e", "2x2"),
            "tpu",
            OF_A_TPU,
            (
                "1 x v5e",
                "68.9 million cycles, 45.96 ms a clip",
                "4.7% of the device",
                "21.40 million cycles a clip",
                "4 operations, 3.0 MiB of results: no estimate of cycles",
            ),
        ),
        (
            Target("H100"),
            "gpu",
            OF_A_GPU,
            ("1 x H100", "3.30 ms a clip at least", "3,692", "0.740 ms a clip, 14.70 GB, 29 kernels", "at most 13.0%"),
        ),
    ],
)
def test_estimates_of_accelerators(monkeypatch, target, platform, estimates, shown):
    monkeypatch.setattr(targets, "installed_version", lambda package: "1")
    monkeypatch.setattr(planning, "estimated", stand_in(200, **estimates, platform=platform))
    result = package.plan(tiny(), CLASSES, target)
    assert {**result["compiled"], **estimates} == result["compiled"]
    for part in ("The compiler's estimates", *shown):
        assert part in package.table(result)
    assert "--config.remat.stem=all" in result["advice"]
    assert ("XLA_CLIENT_MEM_FRACTION" in "".join(result["advice"])) == (platform == "gpu")


@pytest.mark.parametrize(
    ("message", "total"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 17.5 * 2**30),
        ("RESOURCE_EXHAUSTED: total memory required for HLO temporaries (2.00T) exceeds available HBM", 2 * 2**40),
        ("RESOURCE_EXHAUSTED: Out of memory", None),
    ],
)
def test_a_step_that_the_compiler_refuses(monkeypatch, message, total):
    def refuse(job, devices):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compilation, "compile_step", refuse)
    monkeypatch.setattr(compilation, "memory_of", lambda target, devices: 15.75 * 2**30)
    monkeypatch.setattr(planning, "estimated", compilation.estimate_step)
    result = package.plan(tiny(), CLASSES, Target("", "", 1))
    assert (result["fits"], result["compiled"]["total_bytes"]) == (False, total)
    assert result["compiled"].keys() & {"temp_bytes", "collectives"} == set()
    assert "does not fit" in package.table(result)


@pytest.mark.parametrize("message", ["INTERNAL: something else", "RESOURCE_EXHAUSTED: memory space vmem"])
def test_what_is_wrong_with_a_compiler_is_not_the_memory(monkeypatch, message):
    def refuse(job, devices):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compilation, "compile_step", refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        compilation.estimate_step(Job(tiny(), CLASSES, Target("", "", 1), 4))


@pytest.mark.parametrize(
    ("fields", "classes", "devices", "message"),
    [
        ({"train.microbatches": 3}, CLASSES, 1, r"config\.train\.microbatches=3 does not divide the 16 clips"),
        ({"model.width": 0.0}, CLASSES, 0, r"config\.model\.width"),
        ({}, CLASSES, 99, r"--device_count=99, but this machine has \d+ cpu devices"),
        ({}, CLASSES, -1, r"--device_count=-1"),
        ({}, None, 0, r"config\.model\.num_classes is not set"),
    ],
)
def test_what_training_refuses_the_plan_refuses(monkeypatch, fields, classes, devices, message):
    jnp.zeros(())  # JAX has started: no other number of devices can be simulated
    monkeypatch.setattr(planning, "estimated", compilation.estimate_step)
    with pytest.raises(ValueError, match=message):
        package.plan(tiny(fields), classes, Target("", "", devices))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v7", "4x4", 0), r"--device_kind=v7: expected one of v4, v5e, v5p, v6e, A100, H100, H200"),
        (("v5e", "", 0), r"--topology=: expected the chips along each axis, such as 4x4"),
        (("v5e", "4x4", 8), r"--device_count is not for TPUs: --topology gives the number of v5e chips"),
        (("H100", "4x4", 0), r"--topology=4x4 is for TPUs: .* --device_count"),
        (("H100", "", -1), r"--device_count=-1: expected"),
    ],
)
def test_devices_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Target(*arguments)


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(targets, "installed_version", lambda package: None)
    for kind, topology, packages in (
        ("v5e", "4x4", r"libtpu.*setup\.sh plan.*libtpu==\d"),
        ("H200", "", rf"jax-cuda12-plugin.*setup\.sh plan.*jax-cuda12-pjrt=={jax.__version__}"),
    ):
        with pytest.raises(ValueError, match=rf"--device_kind={kind}: its compiler is not installed.*{packages}"):
            package.plan(tiny(), CLASSES, Target(kind, topology))


@pytest.mark.parametrize(
    ("device_kind", "kind"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", ""),
        ("cpu", ""),
    ],
)
def test_kinds_of_the_devices_of_this_machine(device_kind, kind):
    class Device:
        pass

    device = Device()
    device.device_kind = device_kind
    assert targets.kind_of(device) == kind


def test_packages_of_the_compilers_have_the_version_of_jax():
    lines = (ROOT / "requirements-plan.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    locked = (ROOT / "requirements.lock").read_text()
    assert wanted.keys() == {*Target("H100").packages, *Target("v5e", "2x2").packages}
    assert f"\njax=={wanted['jax-cuda12-plugin']} \\\n" in locked
    assert wanted["jax-cuda12-pjrt"] == wanted["jax-cuda12-plugin"]
    if jax.__version__ == wanted["jax-cuda12-plugin"]:
        assert targets.of_jax("libtpu").startswith(f"libtpu=={wanted['libtpu']}")


def test_estimates_are_kept_until_something_changes(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(planning, "run_isolated", lambda *a: asked.append(a) or {"total_bytes": len(asked)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = Job(tiny(), CLASSES, Target("H100"), 4)
    same = Job(tiny({"data.data_dir": "elsewhere", "train.batch_size": 3}), CLASSES, Target("H100"), 4)
    others = [
        Job(tiny({"model.dtype": "bfloat16"}), CLASSES, Target("H100"), 4),
        Job(tiny(), CLASSES + 1, Target("H100"), 4),
        Job(tiny(), CLASSES, Target("A100"), 4),
        Job(tiny(), CLASSES, Target("H100"), 5),
        Job(tiny(), CLASSES, Target("H100"), 4, "eval"),
        Job(tiny(), CLASSES, THIS_MACHINE, 4),
    ]
    found = [planning.estimated(job)["total_bytes"] for job in (first, same, *others, first)]
    assert found == [1, 1, 2, 3, 4, 5, 6, 7, 1]
    monkeypatch.setattr(cache, "source_hash", lambda: "another")
    assert planning.estimated(first) == {"total_bytes": 8}
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be written there
    assert [planning.estimated(first)["total_bytes"] for _ in range(2)] == [9, 10]


def test_a_compiler_in_a_process_of_its_own(monkeypatch, caplog):
    monkeypatch.setattr(isolated, "PROGRESS_SECONDS", 0.2)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(logging.getLogger("rgbd_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, "rgbd_jax"):
        found = isolated.run_isolated("compiling", True, compilers.answer, 21)
    assert found == {"twice": 42, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    shown = [record.getMessage() for record in caplog.records]
    assert (shown[0], shown[-1][:18]) == ("compiling ...", "compiling: done in")
    assert "compiling: 0 s" in shown
    assert isolated.run_isolated("compiling", False, compilers.answer, 1)["JAX_PLATFORMS"] == "cuda"
    with pytest.raises(ValueError, match=r"^config\.train\.batch_size=3 is not divisible$"):
        isolated.run_isolated("compiling", False, compilers.refuse)


@pytest.mark.parametrize(
    ("message", "number", "error", "reported"),
    [
        (
            "x",
            signal.SIGKILL,
            MemoryError,
            r"^compiling for v5e: .* out of this machine's memory; it held",
        ),
        ("terminate: std::bad_alloc", signal.SIGABRT, MemoryError, r"lower config\.train\.batch_size"),
        (
            "Check failed",
            signal.SIGABRT,
            ChildProcessError,
            r"failed \(signal SIGABRT\)(?s:.*)\n  noise\n  Check failed$",
        ),
    ],
)
def test_a_compiler_that_dies(message, number, error, reported):
    with pytest.raises(error, match=reported):
        isolated.run_isolated("compiling for v5e", True, compilers.die, message, number)


@pytest.mark.parametrize(("memory", "status"), [(10_000, None), (250, 1)])
def test_command(monkeypatch, capsys, memory, status):
    jobs = []
    monkeypatch.setattr(targets, "installed_version", lambda package: "1")
    estimated = stand_in(memory, **OF_A_GPU, platform="gpu")
    monkeypatch.setattr(planning, "estimated", lambda job: jobs.append(job) or estimated(job))
    arguments = ("--config=configs/demo.py", "--mode=plan", "--device_kind=H100", "--device_count=2")
    monkeypatch.chdir(ROOT)
    if status is None:
        run_command(main, *arguments, overrides=["--config.model.num_classes=12"])
    else:
        with pytest.raises(SystemExit) as ended:
            run_command(main, *arguments, overrides=["--config.model.num_classes=12"])
        assert ended.value.code == status
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert (result["mode"], result["fits"], result["device"]["kind"]) == ("plan", status is None, "H100")
    assert result["compiled"]["kernels"] == 3692
    assert "\n".join(text) == package.table(result)
    assert {job.target for job in jobs} == {Target("H100", device_count=2)}
