"""Mixup and ShuffleMix: clips of a training batch mixed with each other, frames and labels, on the accelerator.

Clip i of a batch of b is mixed with clip b - 1 - i, whatever the number of devices and processes that the batch lies
on; one draw holds for the whole batch, and for both modalities. Mixup (Zhang et al., 2018) blends the frames of both;
ShuffleMix (Zhou et al., "A Unified Multimodal De- and Re-coupling Framework for RGB-D Motion Recognition") takes some
frames, at random places, from the partner.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray
from ml_collections import ConfigDict

_DRAWS = 0x6D697831  # sets the draws apart from those of dropout, which are of the same seed and step


@struct.dataclass
class Mixture:
    """How the clips of one batch are mixed.

    Attributes:
        frames: share of the clip's own frame in each frame, from 0 to 1; the rest is its partner's at the same place.
        label: share of the clip's own label.
    """

    frames: Float[Array, "t"]
    label: Float[Array, ""]

    def blend(
        self, own: Num[Array, "b n h w c"], partner: Num[Array, "b n h w c"], first: int = 0
    ) -> Float[Array, "b n h w c"]:
        """Returns float32 values of the mixed clips, from values of single frames.

        Args:
            own: values of the clips themselves, at n frames from `first` on.
            partner: those of their partners (see `partners`).
            first: the frame that the values start with.
        """
        share = self.frames[first : first + own.shape[1], None, None, None]  # n 1 1 1
        return share * own.astype(jnp.float32) + (1 - share) * partner.astype(jnp.float32)

    def labels(self, own: Int[Array, "b"], partner: Int[Array, "b"], num_classes: int) -> Float[Array, "b k"]:
        """Returns the share of every class in the mixed clips, float32.

        Args:
            own: true classes of the clips themselves.
            partner: those of their partners (see `partners`).
            num_classes: number of classes k.
        """
        one_hot = [jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) for labels in (own, partner)]
        return self.label * one_hot[0] + (1 - self.label) * one_hot[1]


def partners(values: Num[Array, "b *rest"]) -> Num[Array, "b *rest"]:
    """Returns, for each clip of a whole batch, the values of the clip that it is mixed with: in reversed order."""
    return values[::-1]


def enabled(mixing: ConfigDict) -> bool:
    """Returns whether `config.mixing` mixes any clips."""
    return mixing.mixup_alpha > 0 or mixing.shufflemix_alpha > 0


def draw(mixing: ConfigDict, frames: int, seed: Array | int, step: Int[Array, ""] | int) -> Mixture:
    """Draws how the clips of a batch are mixed: a function of the seed and the step.

    A batch gets ShuffleMix with `shufflemix_probability`; one that does not gets mixup with `mixup_probability`; else
    it stays as it is. Shares are of a symmetric beta distribution with the method's alpha, and ShuffleMix rounds its
    share to whole frames.

    Args:
        mixing: `config.mixing`; an alpha of 0 turns a method off.
        frames: number of frames t of a clip.
        seed: the experiment's seed.
        step: step of the training.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _DRAWS), step)
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
    share = jax.random.beta(key, mixing.mixup_alpha, mixing.mixup_alpha, dtype=jnp.float32)
    return Mixture(jnp.broadcast_to(share, (frames,)), share)


def _shufflemix(mixing: ConfigDict, frames: int, key: PRNGKeyArray) -> Mixture:
    share_key, place_key = jax.random.split(key)
    share = jax.random.beta(share_key, mixing.shufflemix_alpha, mixing.shufflemix_alpha, dtype=jnp.float32)
    kept = jnp.round(share * frames)
    # The label follows the frames that are seen: the authors' code keeps the share from before it is rounded.
    own = jax.random.permutation(place_key, frames) < kept
    return Mixture(own.astype(jnp.float32), kept / frames)


def _either(condition: Array, one: Mixture, other: Mixture) -> Mixture:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
