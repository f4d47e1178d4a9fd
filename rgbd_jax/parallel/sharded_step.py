"""Training step and evaluation of a batch, each as one program over the whole mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from rgbd_jax.parallel.collectives import ALONE, Spread
from rgbd_jax.parallel.mesh import REPLICAS, SHARDS, by_clip, replicated, state_sharding, state_specs
from rgbd_jax.step import Batch, ScheduleValues, Stream, TrainState, Tree, with_partners

# XLA's older emitters of machine code: steps of 0.95 times the time, compiled in 0.92 times (docs/performance.md).
CPU_COMPILER_OPTIONS = {"xla_cpu_use_fusion_emitters": False}

TrainStep = Callable[[TrainState, Batch, ScheduleValues], tuple[TrainState, Mapping[str, Float[Array, ""]]]]
EvaluationStep = Callable[[Tree, Tree, Batch, ScheduleValues], Mapping[str, Any]]


def spread_over(mesh: Mesh) -> Spread:
    """Returns how the steps of a stream are spread over a mesh of `sharding.make_mesh`: not at all over one device."""
    return ALONE if mesh.size == 1 else Spread((REPLICAS, SHARDS), mesh.shape[SHARDS])


def parallel_train_step(stream: Stream, mesh: Mesh) -> TrainStep:
    """Compiles, when it is first called, the stream's training step on a batch that lies split over the mesh.

    Every device runs `Stream.train_step` on its own clips; what devices tell each other stands there in so many words
    (`jax.shard_map`). The memory of the state that is handed over is used again.

    Args:
        stream: the stream, made with `spread_over(mesh)`.
        mesh: the mesh.
    """
    shapes = stream.shapes()
    specs = state_specs(shapes, mesh.shape[SHARDS])
    on_each_device = stream.train_step
    if stream.spread.axes:
        on_each_device = jax.shard_map(
            stream.train_step,
            mesh=mesh,
            in_specs=(specs, by_clip(), PartitionSpec()),
            out_specs=(specs, PartitionSpec()),
        )

    def train_step(state: TrainState, batch: Batch, moment: ScheduleValues) -> tuple[TrainState, Mapping[str, Array]]:
        return on_each_device(state, with_partners(batch, stream.config), moment)

    on_cpu = not isinstance(mesh, AbstractMesh) and mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(state_sharding(shapes, mesh), None),
        compiler_options=CPU_COMPILER_OPTIONS if on_cpu else None,
    )


def parallel_evaluation_step(stream: Stream, mesh: Mesh) -> EvaluationStep:
    """Compiles, when it is first called, the stream's evaluation of a batch that lies split over the mesh.

    Every device runs `Stream.evaluation_step` on its own clips. What it finds, and which clips these are (`label`,
    `record`, `mask`), is all that is sent: then every process has that of all clips. Left to itself, XLA would gather
    the attention of all clips on every device, since it does not split `top_k`.

    Args:
        stream: the stream, however it is spread: nothing is told to other devices before the end.
        mesh: the mesh.
    """
    shapes = stream.shapes()
    specs, spread = state_specs(shapes, mesh.shape[SHARDS]), spread_over(mesh)

    def on_each_device(params: Tree, batch_stats: Tree, batch: Batch, moment: ScheduleValues) -> Mapping[str, Any]:
        whole = spread.gather(params, shapes.params)
        scored = stream.evaluation_step(whole, batch_stats, batch, moment)
        return {**scored, **{name: batch[name] for name in ("label", "record", "mask")}}

    if spread.axes:
        on_each_device = jax.shard_map(
            on_each_device,
            mesh=mesh,
            in_specs=(specs.params, specs.batch_stats, by_clip(), PartitionSpec()),
            out_specs=by_clip(),
        )
    return jax.jit(on_each_device, out_shardings=replicated(mesh))
