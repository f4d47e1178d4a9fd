"""The training and the evaluation step: pure functions of a train state and a batch, one program over the mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from rgbd_jax import metrics, optim
from rgbd_jax.model import Model
from rgbd_jax.models import mixing
from rgbd_jax.models.family import ScheduleValues, Tree
from rgbd_jax.models.ops import operations
from rgbd_jax.parallel import collectives, distributed
from rgbd_jax.parallel.mesh import FSDP, by_clip, global_batch, make_mesh, replicated, state_sharding, state_specs

Batch = Mapping[str, Any]
Metrics = Mapping[str, Float[Array, ""]]
GradFn = Callable[[Tree, Batch], tuple[tuple[Float[Array, ""], Any], Tree]]

# XLA's older emitters of machine code: steps take 0.95 times, compilation 0.92 times as long.
CPU_COMPILER_OPTIONS = {"xla_cpu_use_fusion_emitters": False}


@struct.dataclass
class TrainState:
    """Everything that a training step changes: nested dicts of arrays.

    With `config.train.ema_decay` each step ends with `ema = decay * ema + (1 - decay) * weights`, from the initial
    weights on, for parameters and running statistics alike. Those of a network with frozen parts have no average: no
    step changes them.
    """

    step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    ema_params: Tree | None = None
    ema_batch_stats: Tree | None = None

    @property
    def evaluated(self) -> tuple[Tree, Tree]:
        """Parameters and running statistics that are evaluated: their moving averages if there are any."""
        if self.ema_params is None:
            return self.params, self.batch_stats
        return self.ema_params, self.batch_stats if self.ema_batch_stats is None else self.ema_batch_stats


def new_state(model: Model, params: Tree, batch_stats: Tree) -> TrainState:
    """Returns the train state at step 0 for given weights."""
    opt_state = optim.zero_state(optim.make_optimizer(model.config), params)
    ema = (params, None if model.family.frozen else batch_stats) if model.config.train.ema_decay else ()
    return TrainState(jnp.asarray(np.zeros((), np.int32)), params, batch_stats, opt_state, *ema)


def state_shapes(model: Model) -> TrainState:
    """Returns the shapes and dtypes of the train state."""
    return jax.eval_shape(lambda params, batch_stats: new_state(model, params, batch_stats), *model.shapes())


def train_step(model: Model, state: TrainState, batch: Batch, schedule: ScheduleValues) -> tuple[TrainState, Metrics]:
    """Trains on a batch (see `with_partners`), or inside `jax.shard_map` on a device's clips together with all others.

    The batch is split into `config.train.microbatches`: the gradient is the mean of theirs (gradient accumulation).
    BatchNorm normalises each microbatch by its own statistics, and the running ones are updated once, by their mean.
    Randomness is a function of the seed, the step and the clip.

    Returns the new state and the metrics averaged over all clips; `top1` of mixed clips is that of their main class.
    """
    config, shapes = model.config, model.shapes()[0]
    step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    mixture = None
    if mixing.enabled(config.mixing):
        mixture = mixing.draw(config.mixing, config.clip.frames, config.seed, state.step, schedule.mixup_limit)

    def loss_fn(params: Tree, microbatch: Batch) -> tuple[Float[Array, ""], tuple[Tree, Metrics]]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, microbatch["record"])  # b
        labels = microbatch["label"]  # b
        if mixture is not None:
            labels = mixture.labels(labels, microbatch["partner"]["label"], model.num_classes)  # b k
        with jax.named_scope("inputs"):
            inputs = model.inputs(microbatch, mixture)
        output, batch_stats = model.apply(params, state.batch_stats, inputs, schedule, train=True, keys=keys)
        losses = {name: values.mean() for name, values in model.losses(output, labels, schedule).items()}
        if weight := config.loss.teacher:
            losses["teacher"] = model.teacher_loss(averages, inputs, output, schedule).mean()
            losses["loss"] += weight * losses["teacher"]
        classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)  # b
        top1 = jnp.mean(metrics.rank_of_label(output.logits, classes) < 1)
        changed = {} if model.family.frozen else batch_stats
        return losses["loss"], (changed, {**losses, "top1": top1})

    averages: tuple[Tree, Tree] = {}, {}
    if config.loss.teacher:
        average, statistics = state.evaluated
        averages = collectives.gather(average, shapes), statistics
    params, reduce = jax.vjp(lambda params: collectives.gather(params, shapes), state.params)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    with jax.default_matmul_precision(config.model.matmul_precision):  # of gradients too that operations write out
        grads, (batch_stats, measured) = accumulate_gradients(grad_fn, params, batch, config.train.microbatches)
    (grads,) = reduce(grads)  # the sum over devices
    grads = jax.tree.map(lambda x: x / collectives.device_count(), grads)
    if not config.model.sync_batch_norm:
        batch_stats = collectives.pmean(batch_stats)
    measured = collectives.pmean(measured)
    with jax.named_scope("optimizer"):
        tx = optim.make_optimizer(config)
        norm = collectives.global_norm(grads, shapes)
        params, opt_state = state.params, state.opt_state
        if operations(config).small_tensors_together:
            together = functools.partial(optim.beside_each_other, shapes=shapes)
            params, grads, opt_state = together(params), together(grads), optim.map_params_like(together, opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, norm=norm)
        updates = optax.tree.scale(schedule.learning_rate, updates)
        params = optax.apply_updates(params, updates)
    ema = ()
    if decay := config.train.ema_decay:
        with jax.named_scope("ema"):
            averaged = None if model.family.frozen else batch_stats
            previous = state.ema_params, state.ema_batch_stats
            ema = optax.incremental_update((params, averaged), previous, 1 - decay)
    batch_stats = state.batch_stats if model.family.frozen else batch_stats
    return TrainState(state.step + 1, params, batch_stats, opt_state, *ema), {**measured, "gradient_norm": norm}


def accumulate_gradients(grad_fn: GradFn, params: Tree, batch: Batch, microbatches: int) -> tuple[Tree, Any]:
    """Returns the means over microbatches, processed in sequence, of the gradient and of the auxiliary outputs.

    Clip i is in microbatch i modulo their number, so that a microbatch has the same clips on any number of devices.
    """
    if microbatches == 1:
        (_, aux), grads = grad_fn(params, batch)
        return grads, aux
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch)  # parts b ...

    def add(total: Tree, part: Batch) -> tuple[Tree, Any]:
        (_, aux), grads = grad_fn(params, part)
        return jax.tree.map(jnp.add, total, grads), aux

    total, aux = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return jax.tree.map(lambda x: x / microbatches, total), jax.tree.map(lambda x: x.mean(0), aux)


def evaluation_step(
    model: Model, params: Tree, batch_stats: Tree, batch: Batch, schedule: ScheduleValues
) -> Mapping[str, Any]:
    """Returns for each clip the logits of every head (`heads`), the losses (`losses`), and which clip it is."""
    params = collectives.gather(params, model.shapes()[0])
    output, _ = model.apply(params, batch_stats, model.inputs(batch), schedule)
    losses = model.losses(output, batch["label"], schedule)
    clips = {name: batch[name] for name in ("label", "record", "mask")}
    return {"heads": dict(output.heads), "losses": dict(losses), **clips}


def with_partners(model: Model, batch: Batch, step: Int[Array, ""] | int) -> Batch:
    """Returns a whole batch with the frames and labels of the clips that its clips are mixed with, if they are."""
    config = model.config.mixing
    if not mixing.enabled(config):
        return batch
    frames, labels = batch["frames"], batch["label"]
    if config.same_class_probability == 0:
        partner = jax.tree.map(mixing.partners, frames)
    else:
        index = mixing.frame_partners(config, labels, model.config.seed, step)
        partner = jax.tree.map(lambda x: jnp.take(x, index, axis=0), frames)
    return {**batch, "partner": {"frames": partner, "label": mixing.partners(labels)}}


def compile_train_step(model: Model, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted training step over the mesh; the state is donated.

    Each device runs `train_step` on its own clips in `jax.shard_map`, with explicit collectives.
    """
    shapes = state_shapes(model)
    specs = state_specs(shapes, mesh.shape[FSDP])
    arguments = specs, by_clip(), PartitionSpec()
    per_device = _on_each_device(functools.partial(train_step, model), mesh, arguments, (specs, PartitionSpec()))
    on_cpu = not isinstance(mesh, AbstractMesh) and mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        lambda state, batch, schedule: per_device(state, with_partners(model, batch, state.step), schedule),
        donate_argnums=0,
        out_shardings=(state_sharding(shapes, mesh), None),
        compiler_options=CPU_COMPILER_OPTIONS if on_cpu else None,
    )


def compile_evaluation_step(model: Model, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted evaluation step over the mesh; every process receives the results of all clips.

    `jax.shard_map` keeps attention on its device: left to itself, XLA gathers it, since it does not split `top_k`.
    """
    specs = state_specs(state_shapes(model), mesh.shape[FSDP])
    arguments = specs.params, specs.batch_stats, by_clip(), PartitionSpec()
    per_device = _on_each_device(functools.partial(evaluation_step, model), mesh, arguments, by_clip())
    return jax.jit(per_device, out_shardings=replicated(mesh))


def _on_each_device(step: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    return step if mesh.size == 1 else jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


class Steps:
    """The training and the evaluation step of a model on all devices; each is compiled at its first call.

    `shapes` are those of the train state, `sharding` is how it is laid out over the devices.
    """

    def __init__(self, model: Model):
        self.model = model
        self.mesh = make_mesh(model.config.sharding.parameter_shards)
        self.shapes = state_shapes(model)
        self.sharding = state_sharding(self.shapes, self.mesh)
        self._train = distributed.compiled(compile_train_step(model, self.mesh), "the training step")
        self._evaluate = distributed.compiled(compile_evaluation_step(model, self.mesh), "the evaluation step")

    def train(self, state: TrainState, batch: Batch, schedule: ScheduleValues) -> tuple[TrainState, Metrics]:
        """Trains on a batch, of which each process passes the clips that it read; the old state is donated."""
        return self._train(state, global_batch(batch, self.mesh), schedule)

    def evaluate(self, state: TrainState, batch: Batch, schedule: ScheduleValues) -> Mapping[str, Any]:
        """Returns what `evaluation_step` returns for the clips of all processes, as NumPy arrays.

        With `config.train.ema_decay` the averaged weights are evaluated.
        """
        results = self._evaluate(*state.evaluated, global_batch(batch, self.mesh), schedule)
        # Batches must not overlap: on CPUs, a device that lags behind could mix up the collectives of two batches.
        return jax.device_get(jax.block_until_ready(results))
