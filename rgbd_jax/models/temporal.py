"""Temporal network (the paper's DTN): recoupling, then three transformer branches that see increasingly many frames."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rgbd_jax.models.attention import Encoded, TransformerStack, encode, layer_keys
from rgbd_jax.models.family import Intermediates
from rgbd_jax.models.layers import ClipRngs, Inception, dtypes_of, scaled
from rgbd_jax.models.ops import operations
from rgbd_jax.models.recoupling import Recoupling
from rgbd_jax.sampling import intervals, sample_frames

BRANCHES = ("small", "medium", "large")
INCEPTION_CHANNELS = (160, 112, 224, 24, 64, 64)


class TemporalBranch(nnx.Module):
    """One branch: a subset of the frames, a class token, a temporal inception block and N transformer layers.

    The layers are applied by `encode`.
    """

    def __init__(self, frames: int, features: int, config: ConfigDict, *, kernel: int = 3):
        param_dtype = dtypes_of(config).param
        self.frames = frames
        self.class_token = nnx.Param(jnp.zeros(features, param_dtype))  # c
        self.position_embedding = nnx.Param(jnp.zeros((frames + 1, features), param_dtype))  # n+1 c
        channels = [scaled(c, config.model.width) for c in INCEPTION_CHANNELS]
        channels[-1] = features - channels[0] - channels[2] - channels[4]  # the sum is `features` despite rounding
        window = (kernel, 1, 1)
        self.inception = Inception(features, channels, config, kernel_shape=window, pool_window=window)
        self.transformer = TransformerStack(features, config)
        self.ops = operations(config)

    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Float[Array, "b n+1 c"], Float[Array, "b n c"]]:
        """Returns the transformer's tokens, the class token first, for the frames that the branch sees, and `local`."""
        tokens = self.with_class_token(x)  # b n+1 c
        local = self.local(tokens[:, 1:])  # b n c
        return jnp.concatenate([tokens[:, :1], local], axis=1), local

    def with_class_token(self, x: Float[Array, "b n c"]) -> Float[Array, "b n+1 c"]:
        """Returns the tokens after the class token, each plus its position embedding."""
        token, position = self.class_token[...], self.position_embedding[...]  # c, n+1 c
        # Added in the parameters' dtype, in which their gradients are then summed.
        token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2]))  # b 1 c
        return (jnp.concatenate([token, x.astype(token.dtype)], axis=1) + position).astype(x.dtype)

    def local(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Applies the inception block and the pooling, which see neighbouring frames."""
        return self.ops.max_pool(self.inception(x[:, :, None, None]), (3, 1, 1))[:, :, 0, 0]


class Branches(nnx.Module):
    """The three decoupled branches; each sees another number of frames."""

    def __init__(self, features: int, config: ConfigDict, branch: Callable[..., TemporalBranch] = TemporalBranch):
        self.random_frames = config.model.random_branch_frames
        for name, frames in zip(BRANCHES, config.model.branch_frames, strict=True):
            setattr(self, name, branch(frames, features, config))

    def encode(
        self, x: Float[Array, "b t c"], rngs: ClipRngs | None, intermediates: Intermediates
    ) -> dict[str, Encoded]:
        branches = {name: getattr(self, name) for name in BRANCHES}
        tokens, keys = {}, {}
        for name, branch in branches.items():
            chosen = choose_frames(x.shape[0], x.shape[1], branch.frames, rngs if self.random_frames else None)  # b n
            seen = jnp.take_along_axis(x, chosen[:, :, None], axis=1)  # b n c
            with jax.named_scope(f"branch_{name}"):
                tokens[name], local = branch(seen)  # b n+1 c, b n c
            intermediates.sow(f"{name}_local", local)
            keys[name] = layer_keys(rngs, branch.transformer.depth)  # depth b
        encoded = encode({name: branch.transformer for name, branch in branches.items()}, tokens, keys)
        for name, each in encoded.items():
            intermediates.sow(f"{name}_tokens", each.all_tokens)  # depth b n+1 c
            intermediates.sow(f"{name}_attention", each.all_attention)  # depth b heads n+1 n+1
        return encoded


class TemporalNetwork(Branches):
    """Recoupling and the three decoupled branches."""

    def __init__(self, features: int, config: ConfigDict):
        super().__init__(features, config)
        self.recoupling = Recoupling(features, config) if config.model.recoupling else None

    def __call__(
        self, x: Float[Array, "b t c"], rngs: ClipRngs | None, intermediates: Intermediates
    ) -> tuple[dict[str, Float[Array, "b c"]], Float[Array, "b c"] | None]:
        """Returns the class feature of each branch, and the student feature of the distillation (None without RCM)."""
        spatial = None
        if self.recoupling is not None:
            with jax.named_scope("recoupling"):
                x, spatial, weights = self.recoupling(x, rngs)
            intermediates.sow("recoupled", x)  # b t c
            intermediates.sow("recoupling_weights", weights)  # b t c
            intermediates.sow("recoupling_spatial", spatial)  # b c
        encoded = self.encode(x, rngs, intermediates)
        return {name: each.tokens[:, 0] for name, each in encoded.items()}, spatial


def choose_frames(clips: int, frames: int, count: int, rngs: ClipRngs | None) -> Int[Array, "b n"]:
    """Returns which frames a branch sees: one of each of `count` equal intervals.

    With `rngs` a random member for each clip, else the middle one, int(mean(members)). The reference samples in
    evaluation too.
    """
    if rngs is None:
        return jnp.broadcast_to(jnp.asarray(sample_frames(frames, count, None)), (clips, count))
    start, stop = map(jnp.asarray, intervals(frames, count))  # n
    return jax.vmap(lambda key: jax.random.randint(key, (count,), start, stop))(rngs.next_keys())
