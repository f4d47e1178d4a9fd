"""This package's side: its network, training step and programs, for inputs that the reference can be given too."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rgbd_jax.parallel.sharded_step import parallel_train_step, spread_over

from benchmarking import memory, worker
from benchmarking.blocks import seconds_by_block
from rgbd_jax.parallel.mesh import by_clip, global_batch, make_mesh, place, replicated, state_sharding
from rgbd_jax.pytorch.decoupled_names import DECOUPLED
from rgbd_jax.step import ScheduleValues, Stream


class Ours:
    """The programs that are measured; each is compiled when it is prepared.

    Args:
        config: the experiment's config.
        num_classes: number of classes.
        clips: clips of a batch.
    """

    def __init__(self, config: ConfigDict, num_classes: int, clips: int):
        self._config = config
        self._mesh = make_mesh(config.sharding.parameter_shards)
        self._stream = Stream(config, num_classes, spread_over(self._mesh))
        self._sharding = state_sharding(self._stream.shapes(), self._mesh)
        rng = np.random.default_rng(0)
        shape = (clips, config.clip.frames, config.clip.size, config.clip.size, 3)  # b t h w c
        self._batch = {
            "frames": {config.modality: rng.integers(0, 256, shape, np.uint8)},
            "label": rng.integers(0, num_classes, clips),
            "record": np.arange(clips),
        }
        self._moment = ScheduleValues(1e-3, 1.0, 0.04)
        self._programs: dict[str, Any] = {}
        self._arguments: dict[str, Any] = {}

    def prepare(self, name: str) -> dict[str, float]:
        """Compiles a program; returns seconds, and the bytes that XLA allots and counts as read and written."""
        function, arguments = {"train": self._training, "infer": self._inference}[name]()
        started = time.perf_counter()
        self._programs[name] = program = function.lower(*arguments).compile()
        seconds = time.perf_counter() - started
        self._arguments[name] = arguments
        allotted = program.memory_analysis()
        costs = program.cost_analysis() or {}
        return {
            "compile_seconds": seconds,
            "allotted_bytes": allotted.temp_size_in_bytes + allotted.argument_size_in_bytes,
            "bytes_accessed": costs.get("bytes accessed", 0.0),
        }

    def run(self, name: str) -> float:
        """Runs a program once and returns the seconds."""
        started = time.perf_counter()
        result = jax.block_until_ready(self._programs[name](*self._arguments[name]))
        seconds = time.perf_counter() - started
        if name == "train":
            self._arguments[name] = (result[0], *self._arguments[name][1:])
        else:
            self._logits = result
        return seconds

    def profile(self, name: str) -> dict[str, float]:
        """Runs a program once more and returns the seconds of each block."""
        return seconds_by_block(self._programs[name], lambda: self.run(name))

    def logits(self) -> list[list[float]]:
        """Returns the logits of the last inference."""
        return np.asarray(self._logits, np.float64).tolist()

    def save_inputs(self, file: str) -> None:
        """Writes frames and heat maps as the network sees them, labels, and the weights by PyTorch's names."""
        state = self._stream.init(0)
        clip, heat = jax.jit(self._stream.inputs)(self._batch)
        weights = {
            f"weights/{name}": tensor for name, tensor in DECOUPLED.to_pytorch(state.params, state.batch_stats).items()
        }
        inputs: dict[str, np.ndarray] = {
            "clip": np.asarray(clip, np.float32),
            "label": np.asarray(self._batch["label"]),
        }
        if heat is not None:
            inputs["heat"] = np.asarray(heat, np.float32)
        np.savez(Path(file), allow_pickle=False, **inputs, **weights)

    def peak(self, name: str) -> int | None:
        """Returns the most bytes that were held at once during one more run."""
        memory.forget_peak()
        self.run(name)
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return memory.peak()
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    def _training(self) -> tuple[Any, tuple]:
        state = place(self._stream.init(0), self._sharding)
        return parallel_train_step(self._stream, self._mesh), (
            state,
            global_batch(self._batch, self._mesh),
            self._moment,
        )

    def _inference(self) -> tuple[Any, tuple]:
        """The network alone, as the reference is measured: frames are normalised and heat maps are there."""
        state = self._stream.init(0)
        whole = replicated(self._mesh)
        split = jax.sharding.NamedSharding(self._mesh, by_clip())
        clip, heat = jax.device_put(jax.jit(self._stream.inputs)(self._batch), split)
        weights = jax.device_put((state.params, state.batch_stats), whole)

        def logits(params, batch_stats, clip, heat):
            output, _ = self._stream.forward(params, batch_stats, clip, heat, self._moment.temperature)
            return output.logits.astype(jnp.float32)

        return jax.jit(logits, out_shardings=whole), (*weights, clip, heat)


def serve() -> None:
    """Answers the calls of the benchmark."""
    told = worker.settings()
    config = ConfigDict(told["config"])
    ours = Ours(config, told["classes"], told["clips"])
    names = ("prepare", "run", "profile", "logits", "save_inputs", "peak")
    worker.answer({name: getattr(ours, name) for name in names})
