"""The devices that a program can be compiled for: this machine's, and accelerators that need not be present.

JAX's compile-only devices (`jax.experimental.topologies`) need the compilers alone: no accelerator, no driver.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.resources
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

# Where `./scripts/setup.sh plan` installs the compilers: apart from other packages, since JAX would look for a GPU and
# a TPU at each start and complain.
COMPILERS = Path(sys.prefix) / "compilers"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the estimates of a device need beside its compiler's figures, for one JAX device."""

    platform: str  # "tpu" or "gpu"
    memory: float  # bytes of device memory that a program can use
    bandwidth: float  # of that memory, bytes a second
    # Dense FLOPs a second of matrix products in "bfloat16" and in "float32": by JAX's default precision TF32 on GPUs
    # and one bfloat16 pass on TPUs.
    peak: dict[str, float]
    clock: float = math.nan  # cycles a second of a TPU's core


def _tpu(gib: float, bandwidth: float, peak: float, clock: float) -> Chip:
    return Chip("tpu", gib * 2**30, bandwidth, {"bfloat16": peak, "float32": peak}, clock)


# Bandwidths and peaks are the vendors'. A TPU's memory is what its compiler leaves to a program, its clock the peak
# divided by the FLOPs of its matrix units in a cycle. A GPU's memory and bandwidth are those of its target description.
_TPUS = {
    "v4": _tpu(30.75, 1.2e12, 275e12, 1.05e9),
    "v5e": _tpu(15.75, 0.819e12, 197e12, 1.5e9),
    "v5p": _tpu(95.74, 2.765e12, 459e12, 1.75e9),
    "v6e": _tpu(31.25, 1.64e12, 918e12, 1.75e9),
}
_GPU_PEAKS = {
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "H200": {"bfloat16": 989e12, "float32": 494e12},
}
DEVICE_KINDS = (*_TPUS, *_GPU_PEAKS)
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda12-pjrt")}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices to compile for."""

    kind: str = ""  # one of `DEVICE_KINDS`; "" for the devices of this machine
    topology: str = ""  # how TPUs are connected, "4x4"
    device_count: int = 0  # of GPUs, or of this machine's devices; 0 for all of them (GPUs: one)

    def __post_init__(self) -> None:
        known = f"expected one of {', '.join(DEVICE_KINDS)}, or none for this machine's devices"
        if self.kind and self.kind not in DEVICE_KINDS:
            raise ValueError(f"--device_kind={self.kind}: {known}")
        if self.kind in _TPUS:
            if self.device_count:
                raise ValueError(f"--device_count is not for TPUs: --topology gives the number of {self.kind} chips")
            example = "2x2x1" if self.kind in ("v4", "v5p") else "4x4"
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", self.topology):
                raise ValueError(f"--topology={self.topology}: expected the chips along each axis, such as {example}")
        elif self.device_count < 0:
            raise ValueError(f"--device_count={self.device_count}: expected a number of devices, or 0 for the default")
        elif self.topology:
            raise ValueError(f"--topology={self.topology} is for TPUs: give the number of devices by --device_count")

    @property
    def name(self) -> str:
        """The target in words, such as "v5e 4x4"; without a kind, "this machine"."""
        return f"{self.kind} {self.topology or f'x{self.device_count or 1}'}" if self.kind else "this machine"

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that compile for it, beside JAX."""
        return _PACKAGES[chip_of(self.kind).platform] if self.kind else ()


def chip_of(kind: str) -> Chip:
    """Returns the figures of a device kind."""
    if kind in _TPUS:
        return _TPUS[kind]
    description = gpu_description(kind)
    numbers = dict(re.findall(r"(memory_bandwidth|device_memory_size): (\d+)", description))
    return Chip("gpu", float(numbers["device_memory_size"]), float(numbers["memory_bandwidth"]), _GPU_PEAKS[kind])


def gpu_description(kind: str) -> str:
    """Returns XLA's target description of a GPU (`GpuTargetConfigProto`)."""
    return (importlib.resources.files(__package__) / "gpus" / f"{kind.lower()}.txtpb").read_text()


def devices_of(target: Target) -> list[Any]:
    """Returns the devices of a target; those that are not this machine's can be compiled for only.

    Before JAX has started, a CPU simulates any number of this machine's devices.

    Raises:
        ValueError: the compiler does not know the topology, or this machine has fewer devices.
    """
    if not target.kind:
        return _own_devices(target.device_count)
    try:
        return list(_topology(target).devices)
    except jax.errors.JaxRuntimeError as error:
        asked = f"--topology={target.topology}" if target.topology else f"--device_count={target.device_count}"
        raise ValueError(f"{asked}: the compiler of {target.kind} refuses it: {error}") from error


def check_installed(target: Target) -> None:
    """Checks that the compilers of a target are installed.

    Raises:
        ValueError: one is not; names the command that installs it.
    """
    if missing := [name for name in target.packages if installed_version(name) is None]:
        pinned = [of_jax(name) for name in missing]
        raise ValueError(
            f"--device_kind={target.kind}: its compiler is not installed ({', '.join(missing)}): run "
            f"`./scripts/setup.sh plan`, or `pip install --no-deps {' '.join(pinned)}`"
        )


def of_jax(package: str) -> str:
    """Returns pip's requirement for a compiler's package in the version that the installed JAX works with."""
    if package != "libtpu":
        return f"{package}=={jax.__version__}"
    declared = importlib.metadata.requires("jax") or []
    return next((line.split(";")[0].strip() for line in declared if line.startswith(package)), package)


def installed_version(package: str) -> str | None:
    """Returns the version of a package that is installed, among others or in `COMPILERS`; None without it."""
    found = importlib.metadata.distributions(name=package, path=[str(COMPILERS), *sys.path])
    return next((distribution.version for distribution in found), None)


def kind_of(device: Any) -> str:
    """Returns the device kind of a device of this machine, as far as `DEVICE_KINDS` has it; else ""."""
    tpus = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    gpus = (kind for kind in _GPU_PEAKS if kind in re.findall(r"\w+", device.device_kind))
    return tpus.get(device.device_kind) or next(gpus, "")


def memory_of(target: Target, devices: list[Any]) -> float | None:
    """Returns the bytes of memory that a step can use on each of a target's devices; None if that is unknown.

    Of a GPU's memory JAX reserves the share `XLA_CLIENT_MEM_FRACTION`, 0.75 by default.
    """
    if target.kind:
        chip = chip_of(target.kind)
        return chip.memory * (float(os.environ.get("XLA_CLIENT_MEM_FRACTION", 0.75)) if chip.platform == "gpu" else 1)
    if devices[0].platform == "cpu":  # simulated devices share the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def _topology(target: Target) -> topologies.TopologyDescription:
    if target.kind not in _TPUS:
        count = target.device_count or 1
        shape = f"1x{count // 8}x8" if count % 8 == 0 else f"1x1x{count}"  # slices, hosts, devices of a host
        return topologies.get_topology_desc(platform="cuda", target_config=gpu_description(target.kind), topology=shape)
    axes = [int(length) for length in target.topology.split("x")]
    host = [min(length, most) for length, most in zip([*axes, 1], (2, 2, 1), strict=False)]  # chips of a host
    options: dict[str, Any] = {"chips_per_host_bounds": host}
    if target.kind in ("v4", "v5p"):
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device
    name = f"{target.kind}:{target.topology}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options)


def _own_devices(count: int) -> list[Any]:
    if count:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if not 0 <= count <= len(devices):
        found = f"this machine has {len(devices)} {devices[0].platform} devices"
        advice = "give at most as many, or set JAX_PLATFORMS=cpu for simulated ones"
        raise ValueError(f"--device_count={count}, but {found}: {advice}")
    return devices[: count or None]
