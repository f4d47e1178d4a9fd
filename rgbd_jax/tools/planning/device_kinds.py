"""What accelerators can do at best: memory, arithmetic and links of the kinds that `--mode=plan` knows.

Figures are those of the makers, for one device as JAX counts them: a TPU v2 or v3 has two to a chip.
"""

import dataclasses
import os

import jax

TERA, GIGA, GIB = 10**12, 10**9, 2**30
# What a program can have of the memory; the rest goes to the runtime and to what lies in pieces.
USABLE_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """One kind of device.

    Attributes:
        name: what `--device_kind` calls it.
        memory: bytes; None if it is this machine's.
        bfloat16: peak of matrix products in bfloat16, operations a second (a multiplication and an addition are two);
            None if it is not known.
        float32: the same at JAX's default precision: in one bfloat16 pass on TPUs, in TensorFloat-32 on GPUs that have
            it.
        bandwidth: bytes a second between the device and its memory.
        link: bytes a second that it can send to the other devices of its node or slice, all links together.
        source: where the figures are from.
        reported: the names that JAX gives devices of this kind.
        lanes: arrays are padded in memory so that their last axis is a multiple of so many elements.
    """

    name: str
    memory: int | None
    bfloat16: float | None
    float32: float | None
    bandwidth: float | None
    link: float | None
    source: str
    reported: tuple[str, ...]
    lanes: int = 1

    def peak(self, dtype: str) -> float | None:
        """Returns the peak of matrix products in a compute type; None if it is not known (float64 never is)."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}.get(dtype)

    def memory_of_each(self, device_count: int) -> int:
        """Returns the bytes of each of several devices; simulated devices of a CPU share the machine's memory."""
        if self.memory is None:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // device_count
        return self.memory


def _tpu(
    name: str, memory: float, peak: float, bandwidth: float, link: float, reported: tuple[str, ...], cores: int = 1
) -> DeviceKind:
    """Returns a kind of TPU from the figures of a chip: GiB, TFLOP/s, GB/s, GB/s one way over all links together."""
    return DeviceKind(
        name=name, memory=int(memory * GIB / cores), bfloat16=peak * TERA / cores, float32=peak * TERA / cores,
        bandwidth=bandwidth * GIGA / cores, link=link * GIGA / cores,
        source=f"docs.cloud.google.com/tpu/docs/{name}" + (", half a chip" if cores == 2 else ""), reported=reported,
        lanes=128,
    )  # fmt: skip


def _gpu(
    name: str, memory: float, bfloat16: float, float32: float, bandwidth: float, link: float, source: str,
    *reported: str,
) -> DeviceKind:  # fmt: skip
    """Returns a kind of GPU: GiB, TFLOP/s without sparsity, GB/s, GB/s one way over all links together."""
    return DeviceKind(
        name=name, memory=int(memory * GIB), bfloat16=bfloat16 * TERA, float32=float32 * TERA,
        bandwidth=bandwidth * GIGA, link=link * GIGA, source=source, reported=reported,
    )  # fmt: skip


KINDS = (
    # Links of v2 and v3: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks" (2020).
    _tpu("v2", 16, 45, 700, 248, ("TPU v2",), cores=2),
    _tpu("v3", 32, 123, 900, 328, ("TPU v3",), cores=2),
    _tpu("v4", 32, 275, 1200, 270, ("TPU v4",)),
    _tpu("v5e", 16, 197, 819, 200, ("TPU v5 lite", "TPU v5e")),
    _tpu("v5p", 95, 459, 2765, 600, ("TPU v5", "TPU v5p")),
    _tpu("v6e", 32, 918, 1638, 400, ("TPU v6 lite", "TPU v6e")),
    # V100 and T4 have no bfloat16 units: XLA computes in float32.
    _gpu("V100-16GB", 16, 15.7, 15.7, 900, 150, "NVIDIA V100 data sheet, SXM2, NVLink", "Tesla V100-SXM2-16GB"),
    _gpu("V100-32GB", 32, 15.7, 15.7, 900, 150, "NVIDIA V100 data sheet, SXM2, NVLink", "Tesla V100-SXM2-32GB"),
    _gpu("T4", 15, 8.1, 8.1, 320, 16, "NVIDIA T4 data sheet, PCIe 3.0 x16; 1 of 16 GiB is for ECC", "Tesla T4"),
    _gpu(
        "A100-40GB", 40, 312, 156, 1555, 300, "NVIDIA A100 data sheet, SXM4, NVLink",
        "NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB",
    ),
    _gpu(
        "A100-80GB", 80, 312, 156, 2039, 300, "NVIDIA A100 data sheet, SXM4, NVLink",
        "NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB",
    ),
    _gpu("L4", 22.5, 121, 60, 300, 32, "NVIDIA L4 data sheet, PCIe 4.0 x16; 1.5 of 24 GiB are for ECC", "NVIDIA L4"),
    _gpu("H100-80GB", 79.6, 989, 495, 3350, 450, "NVIDIA H100 data sheet, SXM5, NVLink", "NVIDIA H100 80GB HBM3"),
    _gpu("H200", 140, 989, 495, 4800, 450, "NVIDIA H200 data sheet, SXM5, NVLink", "NVIDIA H200"),
    _gpu("B200", 179, 2250, 1125, 7700, 900, "NVIDIA HGX B200 data sheet, NVLink", "NVIDIA B200"),
    _gpu(
        "RTX-3090", 24, 71, 35.6, 936, 32, "NVIDIA GA102 white paper, float32 sums, PCIe 4.0 x16",
        "NVIDIA GeForce RTX 3090",
    ),
    _gpu(
        "RTX-4090", 24, 165, 82.6, 1008, 32, "NVIDIA Ada white paper, float32 sums, PCIe 4.0 x16",
        "NVIDIA GeForce RTX 4090",
    ),
    DeviceKind("cpu", None, None, None, None, None, "this machine; its devices share the memory", ("cpu",)),
)  # fmt: skip


def device_kind(name: str = "") -> DeviceKind:
    """Returns a kind by its name or by the name that JAX has for it, this machine's if there is none.

    Raises:
        ValueError: it is not known; names the kinds that are.
    """
    asked = name or jax.devices()[0].device_kind
    for kind in KINDS:
        if asked.lower() in (kind.name.lower(), *(reported.lower() for reported in kind.reported)):
            return kind
    found = f"--device_kind={name}" if name else f"this machine's device, {asked!r},"
    known = ", ".join(kind.name for kind in KINDS)
    raise ValueError(f"{found} is not a kind of device whose figures are known; use --device_kind with one of {known}")
