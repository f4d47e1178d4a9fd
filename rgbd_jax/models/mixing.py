"""Mixup and ShuffleMix: frames and labels of the clips of a training batch are mixed with each other.

Clip i of a batch of b is mixed with clip b - 1 - i, on any number of devices and processes; the whole batch and both
modalities share one draw. Mixup (Zhang et al., 2018) blends the frames of both; ShuffleMix (Zhou et al., "A Unified
Multimodal De- and Re-coupling Framework for RGB-D Motion Recognition") replaces random frames by the partner's.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray
from ml_collections import ConfigDict

_STREAM = 0x6D697831  # separates these random numbers from those of dropout, which share seed and step


@struct.dataclass
class Mixture:
    """How the clips of one batch are mixed.

    Attributes:
        frames: weight of the clip's own frame in each frame, from 0 to 1; the rest is its partner's same frame.
        label: weight of the clip's own label.
    """

    frames: Float[Array, "t"]
    label: Float[Array, ""]

    def blend(
        self, own: Num[Array, "b n h w c"], partner: Num[Array, "b n h w c"], first: int = 0
    ) -> Float[Array, "b n h w c"]:
        """Returns the values of the mixed clips, float32, from per-frame values.

        Args:
            own: values of the clips, at n frames from `first` on.
            partner: those of their partners (see `partners`).
            first: the frame that the values start with.
        """
        weight = self.frames[first : first + own.shape[1], None, None, None]  # n 1 1 1
        return weight * own.astype(jnp.float32) + (1 - weight) * partner.astype(jnp.float32)

    def labels(self, own: Int[Array, "b"], partner: Int[Array, "b"], num_classes: int) -> Float[Array, "b k"]:
        """Returns the class distributions of the mixed clips, float32.

        Args:
            own: true classes of the clips.
            partner: those of their partners (see `partners`).
            num_classes: number of classes k.
        """
        one_hot = [jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) for labels in (own, partner)]
        return self.label * one_hot[0] + (1 - self.label) * one_hot[1]


def partners(values: Num[Array, "b *rest"]) -> Num[Array, "b *rest"]:
    """Returns the values of the clip that each clip of a whole batch is mixed with: in reversed order."""
    return values[::-1]


def enabled(mixing: ConfigDict) -> bool:
    """Returns whether `config.mixing` mixes any clips."""
    return mixing.mixup_alpha > 0 or mixing.shufflemix_alpha > 0


def draw(mixing: ConfigDict, frames: int, seed: Array | int, step: Int[Array, ""] | int) -> Mixture:
    """Samples how the clips of a batch are mixed: a function of the seed and the step.

    ShuffleMix is applied with `shufflemix_probability`, else mixup with `mixup_probability`, else nothing. Weights
    follow a symmetric beta distribution with the method's alpha; ShuffleMix rounds its weight to whole frames.

    Args:
        mixing: `config.mixing`; an alpha of 0 turns a method off.
        frames: number of frames t of a clip.
        seed: the experiment's seed.
        step: step of the training.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    choice, mixup_key, shufflemix_key = jax.random.split(key, 3)
    chances = jax.random.uniform(choice, (2,))
    mixture = Mixture(jnp.ones(frames), jnp.ones(()))
    if mixing.mixup_alpha > 0:
        mixture = _either(chances[0] < mixing.mixup_probability, _mixup(mixing, frames, mixup_key), mixture)
    if mixing.shufflemix_alpha > 0:
        shufflemix = _shufflemix(mixing, frames, shufflemix_key)
        mixture = _either(chances[1] < mixing.shufflemix_probability, shufflemix, mixture)
    return mixture


def _mixup(mixing: ConfigDict, frames: int, key: PRNGKeyArray) -> Mixture:
    weight = jax.random.beta(key, mixing.mixup_alpha, mixing.mixup_alpha, dtype=jnp.float32)
    return Mixture(jnp.broadcast_to(weight, (frames,)), weight)


def _shufflemix(mixing: ConfigDict, frames: int, key: PRNGKeyArray) -> Mixture:
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, mixing.shufflemix_alpha, mixing.shufflemix_alpha, dtype=jnp.float32)
    kept = jnp.round(weight * frames)
    # The label follows the frames that remain; the authors' code uses the weight before rounding.
    own = jax.random.permutation(order_key, frames) < kept
    return Mixture(own.astype(jnp.float32), kept / frames)


def _either(condition: Array, one: Mixture, other: Mixture) -> Mixture:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
