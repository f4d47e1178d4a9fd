"""Temporal network (the paper's DTN): recoupling, then three transformer branches that see ever more frames."""

from collections.abc import Mapping
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rgbd_jax.models.attention import TransformerStack
from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import BatchStatistics, Inception, Types, max_pool, scaled
from rgbd_jax.models.recoupling import Recoupling
from rgbd_jax.models.rngs import ClipRngs
from rgbd_jax.sampling import intervals, sample_frames

BRANCHES = ("small", "medium", "large")
INCEPTION_CHANNELS = (160, 112, 224, 24, 64, 64)
ATTENTION_HEAD_FEATURES = 64
MLP_FEATURES = 768


class TemporalBranch(nnx.Module):
    """One branch: some of the frames, a class token, a temporal inception block and N transformer layers."""

    def __init__(
        self, frames: int, features: int, *, width: float, blocks: int, heads: int, knn_attention: float,
        dropout: float, statistics: BatchStatistics, remat: str, **types: Unpack[Types],
    ):  # fmt: skip
        param_dtype = types["param_dtype"]
        self.class_token = nnx.Param(jnp.zeros(features, param_dtype))  # c
        self.position_embedding = nnx.Param(jnp.zeros((frames + 1, features), param_dtype))  # n+1 c
        channels = [scaled(c, width) for c in INCEPTION_CHANNELS]
        channels[-1] = features - channels[0] - channels[2] - channels[4]  # whatever the rounding, the sum is features
        self.inception = Inception(
            features, channels, kernel_shape=(3, 1, 1), pool_window=(3, 1, 1), statistics=statistics, **types
        )
        self.transformer = TransformerStack(
            blocks, features, heads, scaled(ATTENTION_HEAD_FEATURES, width), scaled(MLP_FEATURES, width),
            knn_attention, dropout, remat=remat, **types,
        )  # fmt: skip
        self.frames = frames

    def __call__(
        self, x: Float[Array, "b n c"], *, train: bool, draws: ClipRngs | None, intermediates: Intermediates, name: str
    ) -> Float[Array, "b c"]:
        """Returns the class feature of the branch from the n frames that it sees."""
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))  # b 1 c
        tokens = jnp.concatenate([token, x], axis=1) + self.position_embedding[...].astype(x.dtype)  # b n+1 c
        local = self.inception(tokens[:, 1:, None, None], train=train)  # b n 1 1 c
        local = max_pool(local, (3, 1, 1))[:, :, 0, 0]  # b n c
        tokens = jnp.concatenate([tokens[:, :1], local], axis=1)  # b n+1 c
        tokens, every_tokens, every_attention = self.transformer(tokens, draws)
        intermediates.offer(f"{name}_tokens", every_tokens)  # depth b n+1 c
        intermediates.offer(f"{name}_attention", every_attention)  # depth b heads n+1 n+1
        return tokens[:, 0]


class TemporalNetwork(nnx.Module):
    """Recoupling and the three decoupled branches; gives one class feature a branch."""

    def __init__(
        self, frames: int, features: int, *, width: float, branch_frames: tuple[int, int, int],
        random_frames: bool, blocks: int, heads: int, knn_attention: float, dropout: float, recoupling: Mapping | None,
        statistics: BatchStatistics, remat: str, **types: Unpack[Types],
    ):  # fmt: skip
        self.recoupling = None if recoupling is None else Recoupling(frames, features, **recoupling, **types)
        self.random_frames = random_frames
        for name, count in zip(BRANCHES, branch_frames, strict=True):
            branch = TemporalBranch(
                count, features, width=width, blocks=blocks, heads=heads, knn_attention=knn_attention,
                dropout=dropout, statistics=statistics, remat=remat, **types,
            )  # fmt: skip
            setattr(self, name, branch)

    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool, draws: ClipRngs | None, intermediates: Intermediates
    ) -> tuple[dict[str, Float[Array, "b c"]], Float[Array, "b c"] | None]:
        """Returns the class feature of each branch, and the spatial summary that distillation teaches (or None)."""
        spatial = None
        if self.recoupling is not None:
            with jax.named_scope("recoupling"):
                x, spatial, weights = self.recoupling(x, draws)
            intermediates.offer("recoupled", x)  # b t c
            intermediates.offer("recoupling_weights", weights)  # b t c
            intermediates.offer("recoupling_spatial", spatial)  # b c
        features = {}
        for name in BRANCHES:
            branch = getattr(self, name)
            chosen = choose_frames(x.shape[0], x.shape[1], branch.frames, draws if self.random_frames else None)  # b n
            seen = jnp.take_along_axis(x, chosen[:, :, None], axis=1)  # b n c
            with jax.named_scope(f"branch_{name}"):
                features[name] = branch(seen, train=train, draws=draws, intermediates=intermediates, name=name)
        return features, spatial


def choose_frames(clips: int, frames: int, count: int, draws: ClipRngs | None) -> Int[Array, "b n"]:
    """Returns which frames a branch sees: one of each of `count` equal intervals, clip by clip.

    With draws a random member, without the middle one, int(mean(members)). The reference draws at evaluation too.
    """
    if draws is None:
        return jnp.broadcast_to(jnp.asarray(sample_frames(frames, count, None)), (clips, count))
    start, stop = intervals(frames, count)
    lowest, end = jnp.asarray(start), jnp.asarray(stop)  # n
    return jax.vmap(lambda key: jax.random.randint(key, (count,), lowest, end))(draws.next_keys())
