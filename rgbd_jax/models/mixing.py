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
        """Returns per-frame values of the mixed clips, float32, from those of the clips and of their partners.

        The values are of n frames from `first` on.
        """
        weight = self.frames[first : first + own.shape[1], None, None, None]  # n 1 1 1
        return weight * own.astype(jnp.float32) + (1 - weight) * partner.astype(jnp.float32)

    def labels(self, own: Int[Array, "b"], partner: Int[Array, "b"], num_classes: int) -> Float[Array, "b k"]:
        """Returns the class distributions of the mixed clips, float32."""
        own_class, partner_class = (jax.nn.one_hot(x, num_classes, dtype=jnp.float32) for x in (own, partner))
        return self.label * own_class + (1 - self.label) * partner_class


def partners(values: Num[Array, "b *rest"]) -> Num[Array, "b *rest"]:
    """Returns the values of the clip that each clip of a whole batch is mixed with: in reversed order."""
    return values[::-1]


def enabled(mixing: ConfigDict) -> bool:
    """Returns whether `config.mixing` mixes any clips."""
    return mixing.mixup_alpha > 0 or mixing.shufflemix_alpha > 0


def draw(mixing: ConfigDict, frames: int, seed: Array | int, step: Int[Array, ""] | int) -> Mixture:
    """Samples how the clips of a batch, of `frames` frames each, are mixed: a function of the seed and the step.

    ShuffleMix is applied with `shufflemix_probability`, else mixup with `mixup_probability`, else nothing; an alpha of
    0 turns a method off. Weights follow a symmetric beta distribution with the method's alpha; ShuffleMix rounds its
    weight to whole frames.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    choice, mixup_key, shufflemix_key = jax.random.split(key, 3)
    mixup_chance, shufflemix_chance = jax.random.uniform(choice, (2,))
    mixture = Mixture(jnp.ones(frames), jnp.ones(()))
    if mixing.mixup_alpha > 0:
        mixup = _mixup(mixing.mixup_alpha, frames, mixup_key)
        mixture = _either(mixup_chance < mixing.mixup_probability, mixup, mixture)
    if mixing.shufflemix_alpha > 0:
        shufflemix = _shufflemix(mixing.shufflemix_alpha, frames, shufflemix_key)
        mixture = _either(shufflemix_chance < mixing.shufflemix_probability, shufflemix, mixture)
    return mixture


def _mixup(alpha: float, frames: int, key: PRNGKeyArray) -> Mixture:
    weight = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return Mixture(jnp.broadcast_to(weight, (frames,)), weight)


def _shufflemix(alpha: float, frames: int, key: PRNGKeyArray) -> Mixture:
    weight_key, order_key = jax.random.split(key)
    kept = jnp.round(jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32) * frames)
    # The label follows the frames that remain; the authors' code uses the weight before rounding.
    own = jax.random.permutation(order_key, frames) < kept
    return Mixture(own.astype(jnp.float32), kept / frames)


def _either(condition: Array, one: Mixture, other: Mixture) -> Mixture:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
