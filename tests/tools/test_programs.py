"""What optimised programs say: cycles, kernels, bytes, collectives, temporaries. Those of two compilers are files."""

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
# A loop that notes its trip count and one that does not, a branch, and fusions that read and write slices.
LOOPS = """
%body (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %sine = f32[8,4]{1,0} sine(%p), metadata={op_name="jit(f)/jvp(stem)/sin"}
}
%noted (q: f32[8,4]) -> pred[] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %more = pred[] fusion(%q), kind=kLoop, calls=%compared
}
%compared (q2: f32[8,4]) -> pred[] {
  ROOT %q2 = f32[8,4]{1,0} parameter(0)
}
%counted (r: s32[]) -> pred[] {
  %r = s32[] parameter(0)
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%r, %limit), direction=LT
}
%sliced (s0: f32[8,4], s1: f32[1,4], s2: s32[]) -> f32[8,4] {
  %s0 = f32[8,4]{1,0} parameter(0)
  %s1 = f32[1,4]{1,0} parameter(1)
  %s2 = s32[] parameter(2)
  ROOT %updated = f32[8,4]{1,0} dynamic-update-slice(%s0, %s1, %s2, %s2)
}
%taken (t0: f32[8,4], t1: s32[]) -> f32[1,4] {
  %t0 = f32[8,4]{1,0} parameter(0)
  %t1 = s32[] parameter(1)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%t0, %t1, %t1), dynamic_slice_sizes={1,4}
}
ENTRY %main (x: f32[8,4], i: s32[]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %first = f32[8,4]{1,0} while(%x), condition=%noted, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %second = f32[8,4]{1,0} while(%first), condition=%counted, body=%body
  %either = f32[8,4]{1,0} conditional(%i, %x, %x), branch_computations={%body, %body}
  %row = f32[1,4]{1,0} fusion(%second, %i), kind=kLoop, calls=%taken
  ROOT %last = f32[8,4]{1,0} fusion(%either, %row, %i), kind=kLoop, calls=%sliced
}
"""
# Cycles in each kind of computation that an instruction calls, and operations without any.
CYCLES = """
%one (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %f = bf16[8,128]{1,0} fusion(%p), calls=%inner, backend_config={"estimated_cycles":"1"}
}
%ten (p.1: bf16[8,128]) -> bf16[8,128] {
  %p.1 = bf16[8,128]{1,0} parameter(0)
  %s.1 = bf16[8,128]{1,0} select-and-scatter(%p.1, %p.1), window={size=3x3}, select=%ge, scatter=%add
  ROOT %f.1 = bf16[8,128]{1,0} fusion(%s.1), calls=%inner, backend_config={"estimated_cycles":"10"}
}
%hundred (p.2: bf16[8,128]) -> bf16[8,128] {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  ROOT %f.2 = bf16[8,128]{1,0} fusion(%p.2), calls=%inner, backend_config={"estimated_cycles":"100"}
}
%condition (q: bf16[8,128]) -> pred[] {
  %q = bf16[8,128]{1,0} parameter(0)
  ROOT %less = pred[] custom-call(%q), custom_call_target="Less", backend_config={"estimated_cycles":"1000"}
}
%beside (b: bf16[8,128]) -> bf16[4,128] {
  %b = bf16[8,128]{1,0} parameter(0)
  ROOT %part = bf16[4,128]{1,0} slice(%b), slice={[0:4], [0:128]}
}
ENTRY %main (x: bf16[8,128], i: pred[]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %i = pred[] parameter(1)
  %either = bf16[8,128]{1,0} conditional(%i, %x, %x), true_computation=%one, false_computation=%ten
  %third = bf16[8,128]{1,0} conditional(%i, %x, %x), branch_computations={%one, %ten}
  %called = bf16[8,128]{1,0} call(%third), to_apply=%hundred
  %loop = bf16[8,128]{1,0} while(%x), condition=%condition, body=%ten, backend_config={"known_trip_count":{"n":"3"}}
  %start = ((bf16[8,128]{1,0}), bf16[4,128]{1,0}, u32[]) async-start(%x), calls=%beside
  %done = bf16[4,128]{1,0} async-done(%start)
  %whole = bf16[8,128]{1,0} custom-call(%done, %done), custom_call_target="ConcatBitcast"
  %kernel = bf16[8,128]{1,0} custom-call(%whole), custom_call_target="tpu_custom_call"
  ROOT %last = f32[8,128]{1,0} reduce-window(%x, %x), window={size=3x3}, to_apply=%add
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
LIVES = """
ENTRY %main (x: bf16[64,64]) -> bf16[64,64] {
  %x = bf16[64,64]{1,0} parameter(0)
  %early = bf16[512,64]{1,0} broadcast(%x), metadata={op_name="jit(f)/jvp(stem)/early"}
  %pair = (bf16[256,64]{1,0}, bf16[128,64]{1,0}) fusion(%early), metadata={op_name="jit(f)/jvp(stem)/pair"}
  %one = bf16[256,64]{1,0} get-tuple-element(%pair), index=0
  %other = bf16[128,64]{1,0} get-tuple-element(%pair), index=1
  %chip = bf16[2048,64]{1,0:T(8,128)(2,1)S(1)} copy(%one)
  %more = bf16[256,64]{1,0} negate(%one), metadata={op_name="jit(f)/jvp(stem)/more"}
  %alias = bf16[64,256]{1,0} bitcast(%more)
  %wide = f32[256,64]{1,0} fusion(%one, %alias), metadata={op_name="jit(f)/transpose(jvp(heads))/wide"}
  %again = bf16[128,64]{0,1} copy(%other)
  ROOT %out = bf16[1024,64]{1,0} fusion(%wide, %again)
}
"""

# A convolution of 8 to 16 channels, and both of its gradients, as XLA calls them.
CONVOLUTION = """
ENTRY %main (x: bf16[2,6,6,8], w: bf16[16,3,3,8], y: bf16[2,3,3,16]) -> bf16[2,3,3,16] {
  %x = bf16[2,6,6,8]{3,2,1,0} parameter(0)
  %w = bf16[16,3,3,8]{3,2,1,0} parameter(1)
  %y = bf16[2,3,3,16]{3,2,1,0} parameter(2)
  ROOT %c = (TYPE, u8[0]{0}) custom-call(OPERANDS), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convWHAT"
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


def test_loops_are_multiplied_out_and_slices_are_moved_as_slices():
    kernels = gpu.kernels(hlo.parse(LOOPS))
    found = [(kernel.instruction.split()[0], kernel.times, kernel.size) for kernel in kernels]
    row, whole = 16, 128
    assert found == [
        ("more", 4, whole + 0),
        ("sine", 3, 2 * whole),
        ("less", 6, 4 + 4 + 1),
        ("sine", 5, 2 * whole),
        ("sine", 1, 2 * whole),
        ("sine", 1, 2 * whole),
        ("row", 1, row + 4 + row),
        ("last", 1, row + 4 + row),
    ]
    chip = chip_of("H100")
    stem = gpu.costs_by_stage(hlo.parse(LOOPS), chip)["stem, forward"]
    assert (stem.kernels, stem.size, stem.flops) == (10, 20 * whole, 0)
    assert stem.bound == pytest.approx(20 * whole / chip.bandwidth)


def test_cycles_of_called_computations_count_and_operations_without_cycles_are_listed():
    parsed = hlo.parse(CYCLES)
    assert sum(tpu.cycles_by_stage(parsed).values()) == 2 * (1 + 10) + 100 + 4 * 1000 + 3 * 10
    assert tpu.uncounted(parsed) == [
        {"kind": "select-and-scatter", "number": 2 + 3, "bytes": 5 * 2048},
        {"kind": "reduce-window", "number": 1, "bytes": 4096},
        {"kind": "tpu_custom_call", "number": 1, "bytes": 2048},
    ]


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


def test_largest_temporaries_are_those_alive_at_the_peak():
    found = program.largest_temporaries(hlo.parse(LIVES))
    assert [(row["array"], row["count"], row["bytes"], row["stage"]) for row in found] == [
        ("bf16[256,64]", 2, 2 * 256 * 128, "stem, forward"),
        ("f32[256,64]", 1, 256 * 256, "heads, backward"),
        ("bf16[128,64]", 1, 128 * 128, "stem, forward"),
    ]
    assert found[0]["op_name"] == "jit(f)/jvp(stem)/pair"


@pytest.mark.parametrize(
    ("what", "result", "operands"),
    [
        ("Forward", "bf16[2,3,3,16]", "%x, %w"),
        ("BackwardFilter", "bf16[16,3,3,8]", "%x, %y"),
        ("BackwardInput", "bf16[2,6,6,8]", "%y, %w"),
    ],
)
def test_a_convolution_and_its_gradients_are_as_many_flops(what, result, operands):
    text = CONVOLUTION.replace("TYPE", result + "{3,2,1,0}").replace("OPERANDS", operands).replace("WHAT", what)
    (kernel,) = gpu.kernels(hlo.parse(text))
    assert (kernel.flops, kernel.dtype) == (2 * (2 * 3 * 3 * 16) * (3 * 3 * 8), "bfloat16")


def test_a_copy_belongs_to_what_it_copies():
    computation = hlo.parse(LIVES).computations["main"]
    assert hlo.op_name_of(computation["again"], computation) == "jit(f)/jvp(stem)/pair"
    assert hlo.op_name_of(computation["out"], computation) == ""  # of two operands


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
