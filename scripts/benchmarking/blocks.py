"""Blocks of the paper's network whose programs compile in seconds, with their gradients: what CI can compile."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from rgbd_jax.config import default_config
from rgbd_jax.models.attention import encode
from rgbd_jax.models.family import ClipInput, Intermediates
from rgbd_jax.models.heat_map import heat_maps, pool_heat_map
from rgbd_jax.models.layers import Inception
from rgbd_jax.models.ops import operations
from rgbd_jax.models.spatial import INCEPTION_CHANNELS, SpatialNetwork
from rgbd_jax.models.temporal import TemporalBranch
from rgbd_jax.models.unimodal import feature_count
from rgbd_jax.tools.plan.compilation import compile_function, estimates
from rgbd_jax.tools.plan.targets import Target, chip_of

FRAMES, SIZE = 64, 224  # of a whole clip: smaller ones would fit into a TPU's own memory


def estimate_block(name: str, target: Target) -> dict[str, Any]:
    """Compiles a block in bfloat16 for one device of a target and returns the compiler's estimates."""
    config = default_config("rgb")
    config.model.dtype, config.model.operations = "bfloat16", chip_of(target.kind).platform
    function, shapes = BLOCKS[name](config)
    return estimates(compile_function(function, shapes, target), target.kind, 1)


def _stem(config: ConfigDict) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The layers before the inception blocks; XLA removes the others, whose results nothing needs."""
    config.model.frp = False

    def call(network: SpatialNetwork, frames: jax.Array) -> jax.Array:
        kept = Intermediates(["max_pool_3a"])
        network(ClipInput(frames, None), kept)
        return kept.collected()["max_pool_3a"]

    clip = jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), jnp.bfloat16)  # b t h w 3
    return _trained(lambda: SpatialNetwork(feature_count(config), config), call, clip, "conv_", of_input=False)


def _inception(config: ConfigDict) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The first inception block, for an eighth of the frames at half their size: it takes minutes for all."""
    windows = {"kernel_shape": (1, 3, 3), "pool_window": (3, 3, 3)}
    x = jax.ShapeDtypeStruct((1, FRAMES // 8, SIZE // 16, SIZE // 16, 192), jnp.bfloat16)  # b t h w c
    return _trained(lambda: Inception(192, INCEPTION_CHANNELS["mixed_3b"], config, **windows), Inception.__call__, x)


def _branch(config: ConfigDict) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    frames, features = min(config.model.branch_frames), feature_count(config)

    def call(branch: TemporalBranch, x: jax.Array) -> jax.Array:
        return encode({"branch": branch.transformer}, {"branch": branch(x)[0]}, {"branch": None})["branch"].tokens[:, 0]

    x = jax.ShapeDtypeStruct((1, frames, features), jnp.bfloat16)  # b n c
    return _trained(lambda: TemporalBranch(frames, features, config), call, x)


def _heat_map(config: ConfigDict) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The heat maps of a clip, which have no gradient, as the first FRP takes them."""
    frames = jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), jnp.uint8)  # b t h w 3
    max_pool = operations(config).max_pool

    def call(frames: jax.Array) -> jax.Array:
        heat = heat_maps(frames, config.model.frp_window, max_pool=max_pool)  # b t h w 1
        return pool_heat_map(heat, SIZE // 8, SIZE // 8)

    return call, (frames,)


BLOCKS = {"stem": _stem, "inception": _inception, "branch": _branch, "heat_map": _heat_map}


def _trained(
    make: Callable[[], nnx.Module],
    call: Callable[..., jax.Array],
    x: jax.ShapeDtypeStruct,
    prefix: str = "",
    of_input: bool = True,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the forward and backward pass of a module in training, and its arguments.

    The submodules whose names have the prefix are trained; with `of_input` the input has a gradient too.
    """

    def trained(kind: type) -> Callable[[tuple[Any, ...], Any], bool]:
        return lambda path, value: isinstance(value, kind) and str(path[0]).startswith(prefix)

    parts: Any = nnx.split(nnx.eval_shape(make), trained(nnx.Param), ...)
    graph, params, rest = parts

    def loss(params: Any, x: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        network = nnx.merge(graph, params, rest, copy=True)
        network.train()
        y = call(network, x)
        return jnp.square(y.astype(jnp.float32)).mean(), nnx.state(network, trained(nnx.BatchStat))

    arguments = nnx.to_pure_dict(params), x, nnx.to_pure_dict(rest)
    return jax.value_and_grad(loss, (0, 1) if of_input else 0, has_aux=True), arguments
