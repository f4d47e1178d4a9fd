"""This package's side: its training step and network, for inputs that the reference can be given too."""

import collections
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData
from ml_collections import ConfigDict

from benchmarking.sides import peak_of_process
from rgbd_jax.model import Model
from rgbd_jax.models.family import ScheduleValues
from rgbd_jax.parallel.mesh import by_clip_sharding, global_batch, make_mesh, replicated, shard, state_sharding
from rgbd_jax.step import compile_evaluation_step, compile_train_step, new_state, state_shapes
from rgbd_jax.tools.plan.compilation import estimates
from rgbd_jax.tools.plan.stages import STAGES, stage_of
from rgbd_jax.tools.plan.targets import kind_of

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_CALLERS = ("while", "conditional", "call")  # their time is that of the operations within, which are listed too


class Ours:
    """The programs that are measured, for batches of so many clips, each compiled when it is prepared."""

    def __init__(self, config: ConfigDict, num_classes: int, clips: int):
        self._mesh = make_mesh(config.sharding.parameter_shards)
        self._model = Model(config, num_classes)
        rng = np.random.default_rng(0)
        shape = (clips, config.clip.frames, config.clip.size, config.clip.size, 3)  # b t h w c
        self._clips = clips
        self._batch = {
            "frames": {config.modality: rng.integers(0, 256, shape, np.uint8)},
            "label": rng.integers(0, num_classes, clips),
            "record": np.arange(clips),
        }
        self._schedule = ScheduleValues(1e-3, 1.0, 0.04)
        self._programs: dict[str, Any] = {}
        self._arguments: dict[str, tuple] = {}

    def device(self) -> str:
        """Returns the kind of device."""
        return jax.devices()[0].device_kind

    def prepare(self, part: str) -> float:
        """Compiles the program of a part, "train", "eval" or "infer"; returns the seconds."""
        make = {"train": self._training, "eval": self._evaluation, "infer": self._inference}[part]
        function, self._arguments[part] = make()
        started = time.perf_counter()
        self._programs[part] = function.lower(*self._arguments[part]).compile()
        return time.perf_counter() - started

    def run(self, part: str) -> float:
        """Runs a program once and returns the seconds."""
        started = time.perf_counter()
        result = jax.block_until_ready(self._programs[part](*self._arguments[part]))
        seconds = time.perf_counter() - started
        if part == "train":
            self._arguments[part] = (result[0], *self._arguments[part][1:])
        elif part == "infer":
            self._logits = result
        return seconds

    def estimates(self, part: str) -> dict[str, Any]:
        """Returns the compiler's estimates of a program, of its time only for devices that the plan knows."""
        return estimates(self._programs[part], kind_of(jax.devices()[0]), self._clips // jax.device_count())

    def logits(self) -> np.ndarray:
        """Returns the logits of the last inference."""
        return np.asarray(self._logits, np.float64)

    def peak(self, part: str) -> int | None:
        """Returns the most bytes that were held at once during one more run."""
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return peak_of_process(lambda: self.run(part))
        self.run(part)
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    def profile(self, part: str) -> dict[str, float]:
        """Runs a program once more; returns the seconds of each block, "NAME, forward" and "NAME, backward".

        An operation belongs to the block that it, or the last of those that XLA fused in it, comes from. Operations
        that ran at the same time count each, so that the sum can be more than the run's time.
        """
        scopes = dict(_INSTRUCTION.findall(self._programs[part].as_text()))
        seconds: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(part)
            (profile,) = Path(folder).rglob("*.xplane.pb")
            for plane in ProfileData.from_file(str(profile)).planes:
                for event in (event for line in plane.lines for event in line.events):
                    operation = str(dict(event.stats).get("hlo_op", ""))
                    if operation and not operation.startswith(_CALLERS):
                        seconds[stage_of(scopes.get(operation, ""))] += event.duration_ns / 1e9
        if not seconds:
            raise RuntimeError("this platform's profile names no operation of the program")
        in_order = [f"{block}, {way}" for block in STAGES for way in ("forward", "backward")]
        return {block: seconds[block] for block in in_order if block in seconds}

    def save_inputs(self, file: Path) -> None:
        """Writes frames and heat maps as the network sees them, labels, and the weights by PyTorch's names."""
        arrays = {
            f"weights/{name}": tensor
            for name, tensor in self._model.family.name_table.to_pytorch(*self._model.init(0)).items()
        }
        (inputs,) = jax.jit(self._model.inputs)(self._batch).values()
        arrays |= {"clip": np.asarray(inputs.clip, np.float32), "label": np.asarray(self._batch["label"])}
        if inputs.heat is not None:
            arrays["heat"] = np.asarray(inputs.heat, np.float32)
        np.savez(file, allow_pickle=False, **arrays)

    def _training(self) -> tuple[Any, tuple]:
        sharding = state_sharding(state_shapes(self._model), self._mesh)
        state = shard(new_state(self._model, *self._model.init(0)), sharding)
        batch = global_batch(self._batch, self._mesh)
        return compile_train_step(self._model, self._mesh), (state, batch, self._schedule)

    def _evaluation(self) -> tuple[Any, tuple]:
        _, (state, batch, schedule) = self._training()
        batch = {**batch, "mask": shard(np.ones(self._clips, bool), by_clip_sharding(self._mesh))}
        return compile_evaluation_step(self._model, self._mesh), (state.params, state.batch_stats, batch, schedule)

    def _inference(self) -> tuple[Any, tuple]:
        """The network alone, as the reference is measured: normalised frames and heat maps go in."""
        inputs = jax.device_put(jax.jit(self._model.inputs)(self._batch), by_clip_sharding(self._mesh))
        weights = jax.device_put(self._model.init(0), replicated(self._mesh))

        def logits(params, batch_stats, inputs):
            output, _ = self._model.apply(params, batch_stats, inputs, self._schedule)
            return output.logits.astype(jnp.float32)

        return jax.jit(logits, out_shardings=replicated(self._mesh)), (*weights, inputs)
