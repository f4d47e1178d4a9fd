"""Temporal network (the paper's DTN): recoupling, then three transformer branches that see increasingly many frames."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rgbd_jax.models.attention import TransformerStack
from rgbd_jax.models.family import Intermediates
from rgbd_jax.models.layers import ClipRngs, Inception, dtypes_of, scaled
from rgbd_jax.models.ops import max_pool
from rgbd_jax.models.recoupling import Recoupling
from rgbd_jax.sampling import intervals, sample_frames

BRANCHES = ("small", "medium", "large")
INCEPTION_CHANNELS = (160, 112, 224, 24, 64, 64)


class TemporalBranch(nnx.Module):
    """One branch: a subset of the frames, a class token, a temporal inception block and N transformer layers."""

    def __init__(self, frames: int, features: int, config: ConfigDict):
        param_dtype = dtypes_of(config).param
        self.frames = frames
        self.class_token = nnx.Param(jnp.zeros(features, param_dtype))  # c
        self.position_embedding = nnx.Param(jnp.zeros((frames + 1, features), param_dtype))  # n+1 c
        channels = [scaled(c, config.model.width) for c in INCEPTION_CHANNELS]
        channels[-1] = features - channels[0] - channels[2] - channels[4]  # the sum is `features` despite rounding
        self.inception = Inception(features, channels, config, kernel_shape=(3, 1, 1), pool_window=(3, 1, 1))
        self.transformer = TransformerStack(features, config)

    def __call__(
        self, x: Float[Array, "b n c"], rngs: ClipRngs | None
    ) -> tuple[Float[Array, "b c"], Float[Array, "depth b n+1 c"], Float[Array, "depth b heads n+1 n+1"]]:
        """Returns, for the frames that it sees, the class feature and every layer's tokens and attention weights."""
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))  # b 1 c
        tokens = jnp.concatenate([token, x], axis=1) + self.position_embedding[...].astype(x.dtype)  # b n+1 c
        local = self.inception(tokens[:, 1:, None, None])  # b n 1 1 c
        local = max_pool(local, (3, 1, 1))[:, :, 0, 0]  # b n c
        tokens, all_tokens, all_attention = self.transformer(jnp.concatenate([tokens[:, :1], local], axis=1), rngs)
        return tokens[:, 0], all_tokens, all_attention


class TemporalNetwork(nnx.Module):
    """Recoupling and the three decoupled branches."""

    def __init__(self, features: int, config: ConfigDict):
        self.recoupling = Recoupling(features, config) if config.model.recoupling else None
        self.random_frames = config.model.random_branch_frames
        for name, frames in zip(BRANCHES, config.model.branch_frames, strict=True):
            setattr(self, name, TemporalBranch(frames, features, config))

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
        features = {}
        for name in BRANCHES:
            branch = getattr(self, name)
            chosen = choose_frames(x.shape[0], x.shape[1], branch.frames, rngs if self.random_frames else None)  # b n
            seen = jnp.take_along_axis(x, chosen[:, :, None], axis=1)  # b n c
            with jax.named_scope(f"branch_{name}"):
                features[name], tokens, attention = branch(seen, rngs)
            intermediates.sow(f"{name}_tokens", tokens)  # depth b n+1 c
            intermediates.sow(f"{name}_attention", attention)  # depth b heads n+1 n+1
        return features, spatial


def choose_frames(clips: int, frames: int, count: int, rngs: ClipRngs | None) -> Int[Array, "b n"]:
    """Returns which frames a branch sees: one of each of `count` equal intervals.

    With `rngs` a random member for each clip, else the middle one, int(mean(members)). The reference samples in
    evaluation too.
    """
    if rngs is None:
        return jnp.broadcast_to(jnp.asarray(sample_frames(frames, count, None)), (clips, count))
    start, stop = map(jnp.asarray, intervals(frames, count))  # n
    return jax.vmap(lambda key: jax.random.randint(key, (count,), start, stop))(rngs.next_keys())
