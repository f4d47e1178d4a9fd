"""Mixup and ShuffleMix: frames and labels of the clips of a training batch are mixed with each other.

Clip i of a batch of b is mixed with clip b - 1 - i, on any number of devices and processes; the whole batch and both
modalities share one draw. Mixup (Zhang et al., 2018) blends the frames of both; ShuffleMix (Zhou et al., "A Unified
Multimodal De- and Re-coupling Framework for RGB-D Motion Recognition") replaces random frames by the partner's. The
other modes of ShuffleMix, and mixing within a class (each clip with a random one of its class), are those of the
reference of UMDR, which only published results with the first.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray
from ml_collections import ConfigDict

_STREAM = 0x6D697831  # separates these random numbers from those of dropout, which share seed and step
_SAME_CLASS = 3  # separates those of mixing within a class from the other methods'
_KEPT_FRAMES, _REFERENCE_LABEL = 0.75, 0.9  # of mixing within a class


@struct.dataclass
class Mixture:
    """How the clips of one batch are mixed."""

    frames: Float[Array, "t"]  # weight of the clip's own frame in each frame, from 0 to 1
    label: Float[Array, ""]  # weight of the clip's own label
    partner: Float[Array, "t"] | None = None  # weight of the partner's frame in each frame; None: the rest to 1
    source: Int[Array, "t"] | None = None  # number of the partner's frame; None: the same

    def complete(self) -> "Mixture":
        """Returns the same mixture without None."""
        partner = 1 - self.frames if self.partner is None else self.partner
        source = jnp.arange(len(self.frames)) if self.source is None else self.source
        return Mixture(self.frames, self.label, partner, source)

    def blend(
        self, own: Num[Array, "b n h w c"], partner: Num[Array, "b n h w c"], first: int = 0
    ) -> Float[Array, "b n h w c"]:
        """Returns per-frame values of the mixed clips, float32, from those of the clips and of their partners.

        The values are of n frames from `first` on.
        """
        part = slice(first, first + own.shape[1])
        weight = self.frames[part, None, None, None]  # n 1 1 1
        other = 1 - weight if self.partner is None else self.partner[part, None, None, None]
        if self.source is not None:
            source = self.source[part] - first
            other = jnp.where(source[:, None, None, None] < 0, 0, other)  # of frames before the first there is nothing
            partner = jnp.take(partner, jnp.maximum(source, 0), axis=1)
        return weight * own.astype(jnp.float32) + other * partner.astype(jnp.float32)

    def labels(self, own: Int[Array, "b"], partner: Int[Array, "b"], num_classes: int) -> Float[Array, "b k"]:
        own_class, partner_class = (jax.nn.one_hot(x, num_classes, dtype=jnp.float32) for x in (own, partner))
        return self.label * own_class + (1 - self.label) * partner_class


def partners(values: Num[Array, "b *rest"]) -> Num[Array, "b *rest"]:
    """Returns the values of the clip that each clip of a whole batch is mixed with: in reversed order."""
    return values[::-1]


def frame_partners(
    mixing: ConfigDict, labels: Int[Array, "b"], seed: Array | int, step: Int[Array, ""] | int
) -> Int[Array, "b"]:
    """Returns for each clip of a whole batch the clip whose frames it receives: its partner, or one of its class.

    One of its class may be the clip itself. Labels are always mixed with the partner's (see `draw`).
    """
    chosen, key, _ = _same_class_draw(mixing, seed, step)
    of_class = jax.random.categorical(key, jnp.where(labels[:, None] == labels, 0.0, -jnp.inf))
    return jnp.where(chosen, of_class, partners(jnp.arange(len(labels))))


def enabled(mixing: ConfigDict) -> bool:
    """Returns whether `config.mixing` mixes any clips."""
    return max(mixing.mixup_alpha, mixing.shufflemix_alpha, mixing.same_class_probability) > 0


def mixup_limit(mixing: ConfigDict, epoch: float, epochs: int) -> float:
    """Returns the largest weight of mixup with `mixup_dynamic`: from 0 in the first epoch to 0.5 in the last."""
    return 0.5 * int(epoch) / max(epochs - 1, 1) if mixing.mixup_dynamic else 0.5


def draw(
    mixing: ConfigDict, frames: int, seed: Array | int, step: Int[Array, ""] | int, limit: Array | float = 0.5
) -> Mixture:
    """Samples how the clips of a batch, of `frames` frames each, are mixed: a function of the seed and the step.

    ShuffleMix is applied with `shufflemix_probability`, else mixup with `mixup_probability`, else nothing; an alpha of
    0 turns a method off. Weights follow a symmetric beta distribution with the method's alpha; ShuffleMix rounds its
    weight to whole frames. With `mixup_dynamic` mixup's weight is uniform from 0 to `limit` (see `mixup_limit`), with
    `mixup_per_frame` each frame has its own, and the label their mean.

    With `same_class_probability` a batch gets neither: a quarter of the frames are those of a clip of the same
    class, whose label is kept. With `reference_label` it is mixed with a tenth of the partner's, as in the reference.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    choice, mixup_key, shufflemix_key = jax.random.split(key, 3)
    mixup_chance, shufflemix_chance = jax.random.uniform(choice, (2,))
    mixture = Mixture(jnp.ones(frames), jnp.ones(()))
    if mixing.mixup_alpha > 0:
        mixup = _mixup(mixing, frames, mixup_key, limit)
        mixture = _either(mixup_chance < mixing.mixup_probability, mixup, mixture)
    if mixing.shufflemix_alpha > 0:
        shufflemix = _shufflemix(mixing, frames, shufflemix_key)
        mixture = _either(shufflemix_chance < mixing.shufflemix_probability, shufflemix, mixture)
    if mixing.same_class_probability > 0:
        chosen, _, key = _same_class_draw(mixing, seed, step)
        same_class = within_class(jax.random.permutation(key, frames), mixing.reference_label)
        mixture = _either(chosen, same_class, mixture)
    return mixture


def _same_class_draw(
    mixing: ConfigDict, seed: Array | int, step: Int[Array, ""] | int
) -> tuple[Array, PRNGKeyArray, PRNGKeyArray]:
    """Returns whether a batch is mixed within its classes, and the keys of the clips' and the frames' draws."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    chance, clips, frames = jax.random.split(jax.random.fold_in(key, _SAME_CLASS), 3)
    return jax.random.uniform(chance) < mixing.same_class_probability, clips, frames


def _mixup(mixing: ConfigDict, frames: int, key: PRNGKeyArray, limit: Array | float) -> Mixture:
    alpha, shape = mixing.mixup_alpha, (frames,) if mixing.mixup_per_frame else ()
    if mixing.mixup_dynamic:
        weight = limit * jax.random.uniform(key, shape)
    else:
        weight = jax.random.beta(key, alpha, alpha, shape, dtype=jnp.float32)
    return Mixture(jnp.broadcast_to(weight, (frames,)), weight.mean())


def _shufflemix(mixing: ConfigDict, frames: int, key: PRNGKeyArray) -> Mixture:
    weight_key, order_key = jax.random.split(key)
    alpha = mixing.shufflemix_alpha
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32)
    if mixing.shufflemix_mode in ("random", "mixup"):
        order = jax.random.permutation(order_key, frames)
        mixture = shuffled(weight, order) if mixing.shufflemix_mode == "random" else overwritten(weight, order)
    else:
        first, chance = jax.random.uniform(order_key, (2,))
        strided_mode = mixing.shufflemix_mode == "strided"
        mixture = strided(weight, frames, first < 0.5, chance) if strided_mode else trailing(weight, frames, chance)
    return mixture if mixing.reference_label else with_counted_label(mixture)


def with_counted_label(mixture: Mixture) -> Mixture:
    """Returns a mixture whose label follows its frames, not the weight before it was rounded to whole frames."""
    partner = 1 - mixture.frames if mixture.partner is None else mixture.partner
    return dataclasses.replace(mixture, label=mixture.frames.sum() / (mixture.frames + partner).sum())


def shuffled(weight: Float[Array, ""], order: Int[Array, "t"]) -> Mixture:
    """Returns ShuffleMix ("random", the reference's "sm") with the order in which frames remain the clip's own."""
    return Mixture((order < jnp.round(weight * len(order))).astype(jnp.float32), weight)


def within_class(order: Int[Array, "t"], reference_label: bool) -> Mixture:
    """Returns mixing within a class ("MixIntra") with the order in which frames remain the clip's own."""
    label = jnp.asarray(_REFERENCE_LABEL if reference_label else 1.0)
    return dataclasses.replace(shuffled(jnp.asarray(_KEPT_FRAMES), order), label=label)


def overwritten(weight: Float[Array, ""], order: Int[Array, "t"]) -> Mixture:
    """Returns "mixup" ("mu_sm"): mixup, then some frames are the partner's alone, as dark as they are in the rest."""
    kept = len(order) - jnp.floor((1 - weight) * len(order))
    return Mixture(jnp.where(order < kept, weight, 0), weight, jnp.full(len(order), 1 - weight))


def strided(weight: Float[Array, ""], frames: int, odd: Array | bool, chance: Array | float) -> Mixture:
    """Returns "strided" ("sm_v1"): every second frame of a stretch is of the one clip, all others of the other.

    `chance`, from 0 to 1, is where the stretch begins.
    """
    replaced, first, number = jnp.floor((1 - weight) * frames), jnp.asarray(odd, int), jnp.arange(frames)
    count = jnp.minimum(replaced, frames - replaced)
    start = jnp.floor(chance * jnp.maximum((frames - first + 1) // 2 - count, 0))
    place = (number - first) / 2
    chosen = (place == jnp.floor(place)) & (place >= start) & (place < start + count)
    return Mixture((chosen == (replaced > count)).astype(jnp.float32), weight)


def trailing(weight: Float[Array, ""], frames: int, chance: Array | float) -> Mixture:
    """Returns "trailing" ("sm_v2"): the last frames are a stretch of the partner's, which begins by `chance`."""
    number, replaced = jnp.arange(frames), jnp.maximum(jnp.floor((1 - weight) * frames), 1).astype(int)
    kept = frames - replaced
    own = (number < kept) | (kept == 0)  # if all were the partner's, nothing changes
    start = jnp.floor(chance * kept).astype(int)
    return Mixture(own.astype(jnp.float32), weight, source=jnp.where(own, number, number - kept + start))


def _either(condition: Array, one: Mixture, other: Mixture) -> Mixture:
    if any((getattr(one, name) is None) != (getattr(other, name) is None) for name in ("partner", "source")):
        one, other = one.complete(), other.complete()
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
