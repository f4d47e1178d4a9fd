"""What the optimised programs of two compilers, which are files, say: cycles, kernels, bytes, collectives."""

import re

import pytest

from rgbd_jax.tools.plan import gpu, hlo, program, tpu
from rgbd_jax.tools.plan.isolated import run_isolated
from rgbd_jax.tools.plan.stages import stage_of
from rgbd_jax.tools.plan.targets import chip_of, installed_version
from tests.tools.small_program import CHANNELS, CLIPS, FOLDER, LAYERS, SIZE, TARGETS, compile_program

STAGES = ("stem", "branch_small")
ARRAYS = """
ENTRY %main (a: f32[2]) -> f32[2] {
  ROOT %a = TYPE parameter(0)
}
"""
COLLECTIVES = """
%asynchronous (g0: bf16[4,4]) -> bf16[8,4] {
  %g0 = bf16[4,4]{1,0} parameter(0)
  ROOT %gathered = bf16[8,4]{1,0} all-gather(%g0), dimensions={0}
}
%body (p: f32[2,16]) -> f32[2,16] {
  %p = f32[2,16]{1,0} parameter(0)
  ROOT %psum.1 = f32[2,16]{1,0:T(2,128)S(1)} all-reduce(%p), replica_groups={{0,1}}, to_apply=%sum
}
%condition (q: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%q, %limit), direction=LT
}
ENTRY %main (a: f32[2,16], b: f32[1020590]) -> f32[2,16] {
  %a = f32[2,16]{1,0} parameter(0)
  %b = f32[1020590]{0} parameter(1)
  %c = (f32[1020590]{0}, f64[4]{0}, /*index=2*/pred[]) all-reduce(%b, %a, %a), replica_groups={{0,1}}
  %start = (f32[2,16]{1,0}, f32[2,16]{1,0}) all-reduce-start(%a), backend_config={"is_sync":true}
  %waited = f32[2,16]{1,0} all-reduce-done(%start)
  %start.1 = f32[8]{0} all-reduce-start(%a), backend_config={"is_sync":false}
  %beside = f32[8]{0} all-reduce-done(%start.1)
  %start.2 = ((bf16[4,4]{1,0}), bf16[8,4]{1,0}) async-start(%a), calls=%asynchronous
  %gathered = bf16[8,4]{1,0} async-done(%start.2)
  ROOT %loop = f32[2,16]{1,0} while(%a), condition=%condition, body=%body
}
"""


def fixture(name: str) -> hlo.Program:
    return hlo.parse((FOLDER / f"{name}.hlo").read_text())


@pytest.mark.parametrize(
    ("text", "shown", "size"),
    [
        ("f32[2,16]{1,0}", "f32[2,16]", 128),
        ("bf16[6,112,100,64]{3,2,1,0:T(8,128)(2,1)}", "bf16[6,112,100,64]", 6 * 112 * 104 * 128 * 2),
        ("bf16[2,64,64,3]{2,1,3,0:T(8,128)(2,1)}", "bf16[2,64,64,3]", 2 * 3 * 64 * 128 * 2),
        ("s32[]{:T(128)}", "s32[]", 4),
        ("pred[10]{0}", "pred[10]", 10),
        ("s4[3]{0:E(4)}", "s4[3]", 2),
    ],
)
def test_sizes_of_arrays_have_the_padding_of_a_tpu(text, shown, size):
    parsed = hlo.parse(ARRAYS.replace("TYPE", text))
    (array,) = parsed.computations["main"]["a"].arrays
    assert (str(array), array.size, array.on_chip) == (shown, size, False)
    assert hlo.array_types("f32[8]{0:T(128)S(1)}")[0].on_chip


def test_collectives_of_a_program():
    assert program.collectives(hlo.parse(COLLECTIVES)) == [
        {
            "kind": "all-reduce",
            "number": 13,
            "tensors": 3 + 1 + 1 + 10,
            "bytes": 4 * 1020590 + 8 * 4 + 1 + 128 + 32 + 10 * 8 * 128,
            "asynchronous": 1,
        },
        {"kind": "all-gather", "number": 1, "tensors": 1, "bytes": 64, "asynchronous": 1},
    ]


def test_program_of_a_gpu():
    parsed, chip = fixture("H100"), chip_of("H100")
    costs = gpu.costs_by_stage(parsed, chip)
    convolution = 2 * (CLIPS * SIZE * SIZE * CHANNELS) * (3 * 3 * 64)
    product = 2 * CLIPS * CHANNELS * CHANNELS
    stem, layers = (sum((costs[f"{name}, {way}"] for way in ("forward", "backward")), gpu.Cost()) for name in STAGES)
    assert stem.flops == 2 * convolution  # forward, and the gradient of the kernel
    assert layers.flops == LAYERS * 3 * product  # forward, and the gradients of both operands
    x, kernel = CLIPS * SIZE * SIZE * CHANNELS * 2, 3 * 3 * 64 * CHANNELS * 2
    assert 2 * (2 * x + kernel) <= stem.size <= 3 * (2 * x + kernel)
    assert layers.kernels > 3 * LAYERS
    assert stem.bound >= stem.size / chip.bandwidth > stem.busy > 0
    (row,) = program.collectives(parsed)
    weights = kernel + LAYERS * CHANNELS * CHANNELS * 2
    assert (row["kind"], row["number"], row["bytes"]) == ("all-reduce", 1, weights)
    assert program.largest_temporaries(parsed)[0]["array"] == f"bf16[{weights // 2}]"  # all gradients, joined


def test_program_of_a_tpu():
    parsed = fixture("v5e")
    cycles = tpu.cycles_by_stage(parsed)
    by_hand = {"once": 0, "in loops": 0}
    for name, computation in parsed.computations.items():
        where = "once" if name == parsed.entry else "in loops" if name.startswith("wide.region") else ""
        for instruction in computation.values() if where else ():
            by_hand[where] += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', instruction.attributes)))
    assert by_hand["in loops"] > 1000
    assert sum(cycles.values()) == by_hand["once"] + LAYERS * by_hand["in loops"]
    assert min(cycles[f"{name}, {way}"] for name in STAGES for way in ("forward", "backward")) > 100
    names = tpu.cycles_by_instruction(parsed)
    assert [count for _, count in names] == sorted((count for _, count in names), reverse=True)
    assert sum(row["number"] for row in program.collectives(parsed)) >= 1


@pytest.mark.optional
@pytest.mark.parametrize("name", TARGETS)
def test_the_programs_are_what_the_compilers_make(name):
    if any(installed_version(package) is None for package in TARGETS[name].packages):
        pytest.skip("the compilers are not installed: ./scripts/setup.sh plan")
    text = run_isolated(f"compiling for {name}", True, compile_program, name)
    assert text == (FOLDER / f"{name}.hlo").read_text(), "write them anew: python -m tests.tools.small_program"


@pytest.mark.parametrize(
    ("scope", "stage"),
    [
        ("jit(train_step)/jvp(stem)/conv_general_dilated", "stem, forward"),
        ("jit(train_step)/transpose(jvp(mixed_3b))/cond/branch_0_fun/while/body/dot_general", "mixed_3b, backward"),
        ("jit(train_step)/optimizer/mul", "optimizer, forward"),
        ("jit(train_step)/jvp()/add", "other, forward"),
    ],
)
def test_an_operation_belongs_to_the_stage_that_its_scope_names(scope, stage):
    assert stage_of(scope) == stage
