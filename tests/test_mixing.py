"""Mixup and ShuffleMix: their random weights, and that frames, heat maps and labels are mixed by them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rgbd_jax.config import default_config
from rgbd_jax.model import Model, schedule_at
from rgbd_jax.models import mixing
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.step import new_state, train_step, with_partners
from tests.models.test_heat_map import expected_heat_map, moving_clip
from tests.parity import recipe
from tests.tiny import tiny_config

CLASSES = 12
RECORDED = np.load(Path(__file__).parent / "parity" / "umdr_mixing.npz")


def draws(number: int, seed: int = 0, **fields: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the own frames (n 16) and of the own labels (n) in the first steps."""
    config = default_config().mixing
    config.update({"shufflemix_probability": 1.0, **fields})
    drawn = jax.jit(jax.vmap(lambda step: mixing.draw(config, 16, seed, step)))(np.arange(number))
    return np.asarray(drawn.frames), np.asarray(drawn.label)


def test_mixup_blends_all_frames_and_the_label_alike_by_a_beta_distributed_weight():
    frames, label = draws(4000, mixup_alpha=0.8)
    np.testing.assert_array_equal(frames, np.repeat(label[:, None], 16, axis=1))
    assert label.mean() == pytest.approx(0.5, abs=0.03)
    assert label.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of a symmetric beta distribution


def test_shufflemix_takes_whole_frames_and_the_label_counts_them():
    frames, label = draws(4000, shufflemix_alpha=0.3)
    assert set(np.unique(frames)) == {0, 1}
    np.testing.assert_allclose(frames.mean(axis=1), label, atol=1e-6)
    assert label.var() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), abs=0.01)
    np.testing.assert_allclose(frames.mean(axis=0), 0.5, atol=0.04)  # any frame as often as another
    some = frames[(label > 0.2) & (label < 0.8)]
    assert (np.abs(np.diff(some, axis=1)).sum(axis=1) > 1).mean() > 0.9  # places at random, not a first and a last part


def test_the_weights_of_mixup_can_be_of_each_frame_and_grow_with_the_epoch():
    frames, label = draws(4000, mixup_alpha=0.8, mixup_per_frame=True)
    np.testing.assert_allclose(frames.mean(axis=1), label, atol=1e-6)
    assert frames.var(axis=1).mean() == pytest.approx(15 / 16 / (4 * (2 * 0.8 + 1)), abs=0.01)
    frames, label = draws(4000, mixup_alpha=0.8, mixup_dynamic=True)
    assert (label.mean(), label.max()) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.001))
    config = default_config()
    config.mixing.mixup_dynamic = True
    limits = [schedule_at(config, epoch + 0.5).mixup_limit for epoch in range(config.train.epochs)]
    np.testing.assert_allclose(limits, np.linspace(0, 0.5, config.train.epochs))


@pytest.mark.parametrize("mode", ["strided", "trailing", "mixup"])
def test_labels_follow_the_frames_or_the_drawn_weight(mode):
    fields = {"shufflemix_alpha": 0.3, "shufflemix_mode": mode}
    (frames, label), (same, drawn) = draws(500, **fields), draws(500, **fields, reference_label=True)
    np.testing.assert_array_equal(frames, same)
    assert np.abs(label - drawn).max() > 0
    if mode != "mixup":
        assert set(np.unique(frames)) == {0, 1}
        np.testing.assert_allclose(frames.mean(axis=1), label, atol=1e-6)


@pytest.mark.parametrize("reference", [False, True])
def test_a_quarter_of_the_frames_comes_from_clips_of_the_same_class(reference):
    """As UMDR's MixIntra, computed here clip by clip; its label has a tenth of the partner's."""
    config = tiny_config("unused")
    config.mixing.update(same_class_probability=0.5, mixup_alpha=0.8, reference_label=reference)
    model, labels = Model(config, CLASSES), np.array([3, 7, 3, 5, 7, 3])
    clips = np.random.default_rng(1).integers(0, 256, (6, 8, 2, 2, 3), np.uint8)
    own, partner = np.eye(CLASSES)[labels], np.eye(CLASSES)[labels[::-1]]
    taken, replaced = np.zeros((6, 6)), np.zeros(8)
    for step in range(200):
        batch = jax.jit(with_partners, static_argnums=0)(model, {"frames": {"rgb": clips}, "label": labels}, step)
        mixture = mixing.draw(config.mixing, 8, config.seed, step)
        soft = mixture.labels(labels, batch["partner"]["label"], CLASSES)
        if not set(np.unique(mixture.frames)) <= {0, 1}:  # mixup
            np.testing.assert_array_equal(batch["partner"]["frames"]["rgb"], clips[::-1])
            np.testing.assert_allclose(soft, mixture.label * own + (1 - mixture.label) * partner, atol=1e-6)
            continue
        mixed = np.asarray(mixture.blend(clips, batch["partner"]["frames"]["rgb"]))
        sources = [[j for j in range(6) if (mixed[i] == clips[j]).all(axis=(1, 2, 3)).sum() == 2] for i in range(6)]
        sources = [found or [i] for i, found in enumerate(sources)]  # the clip itself
        for i, (j,) in enumerate(sources):
            assert labels[i] == labels[j]
            taken[i, j] += 1
            expected = np.where(mixture.frames[:, None, None, None], clips[i], clips[j])
            np.testing.assert_array_equal(mixed[i], expected)
        assert mixture.frames.sum() == 6
        replaced += 1 - np.asarray(mixture.frames)
        np.testing.assert_allclose(soft, 0.9 * own + 0.1 * partner if reference else own, atol=1e-6)
    number = taken[3, 3]
    assert number == pytest.approx(100, abs=25)
    np.testing.assert_allclose(replaced / number, 0.25, atol=0.15)
    same = labels[:, None] == labels
    np.testing.assert_allclose(taken / number, same / same.sum(axis=1, keepdims=True), atol=0.2)


@pytest.mark.parametrize("kind", ["mixup", "sm", "sm_b", "sm_v1", "sm_v2", "mu_sm"])
def test_parity_mixing_of_umdr(kind):
    """Of the recorded draws; ShuffleMix rounds its weight for the frames, not for the label."""
    recorded = {name: RECORDED[f"{kind}/{name}"] for name in ("lam", "own", "clip", "target")}
    weight = jnp.asarray(recorded["lam"], jnp.float32)
    clip = np.moveaxis(recipe.rng_for(30, "mixing/clip").standard_normal((4, 3, 16, 2, 2)), 1, -1)  # b t h w c
    own = recorded["own"].astype(bool)
    if kind == "mu_sm":  # both frames that stay mixed are neither clip's alone
        recorded_clip = np.moveaxis(recorded["clip"], 1, -1)
        own = ~np.isclose(recorded_clip, (1 - recorded["lam"]) * clip[::-1]).all(axis=(0, 2, 3, 4))
    order = jnp.asarray(np.argsort(np.argsort(~own, kind="stable")))
    mixture = {
        "mixup": lambda: mixing.Mixture(jnp.full(16, weight), weight),
        "sm_v1": lambda: mixing.strided(weight, 16, odd=True, chance=0.6),  # drawn: the stretch begins at its second
        "sm_v2": lambda: mixing.trailing(weight, 16, chance=9.5 / 11),  # drawn: 9 of 0 to 10
        "mu_sm": lambda: mixing.overwritten(weight, order),
    }.get(kind, lambda: mixing.shuffled(weight, order))()
    if kind.startswith("sm"):
        np.testing.assert_array_equal(mixture.frames, own)
    label = recipe.rng_for(30, "mixing/label").integers(0, 60, 4)
    blended = mixture.blend(jnp.asarray(clip), mixing.partners(jnp.asarray(clip)))
    np.testing.assert_allclose(np.moveaxis(np.asarray(blended), -1, 1), recorded["clip"], atol=1e-6)
    soft = mixture.labels(jnp.asarray(label), mixing.partners(jnp.asarray(label)), 60)
    np.testing.assert_allclose(optax.smooth_labels(soft, 0.1), recorded["target"], atol=1e-7)


def test_methods_take_turns_as_often_as_set():
    chances = {"mixup_probability": 0.5, "shufflemix_probability": 0.2}
    frames, label = draws(4000, mixup_alpha=0.8, shufflemix_alpha=0.3, **chances)
    whole = (frames == frames.round()).all(axis=1)
    untouched = whole & (label == 1)
    assert (~whole).mean() == pytest.approx(0.8 * 0.5, abs=0.04)
    assert untouched.mean() == pytest.approx(0.8 * 0.5 + 0.2 * (label[whole] == 1).mean() * 0.2, abs=0.06)
    frames, label = draws(50, mixup_alpha=0.8, mixup_probability=0.0)
    assert (frames == 1).all()
    assert (label == 1).all()


def test_draws_depend_on_seed_and_step_alone():
    label = draws(50, mixup_alpha=0.8)[1]
    np.testing.assert_array_equal(draws(5, mixup_alpha=0.8)[1], label[:5])
    assert len(np.unique(label)) == 50
    assert not np.array_equal(draws(50, seed=1, mixup_alpha=0.8)[1], label)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(3)
    return np.stack([moving_clip(rng, 8, 24, 20) for _ in range(3)])


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_heat_maps_of_blended_clips_are_those_of_the_blended_frames(clips, weight):
    mixture = mixing.Mixture(np.full(8, weight, np.float32), np.float32(weight))
    found = np.asarray(jax.jit(heat_maps, static_argnums=1)(clips, 4, mixture, clips[::-1]))[..., 0]
    weight = float(np.float32(weight))
    for own, partner, heat in zip(clips, clips[::-1], found, strict=True):
        expected = expected_heat_map(weight * own + (1 - weight) * partner, 4)
        # Where a pixel is the mean to the last digit, float32 may take it for motion and float64 not.
        assert (np.abs(heat - expected) < 1e-4).mean() > 0.999


@pytest.mark.parametrize("source", [None, np.array([0, 1, 2, 6, 4, 1, 5, 7])])
def test_frames_of_shufflemix_keep_the_heat_maps_of_their_own_clips(clips, source):
    weights = np.array([1, 0, 0, 1, 1, 0, 1, 0], np.float32)
    mixture = mixing.Mixture(weights, np.float32(0.5), source=source)
    places = np.where(weights, range(8), range(8) if source is None else source)
    mixed = mixture.blend(clips, mixing.partners(clips))
    heat = jax.jit(heat_maps, static_argnums=1)(clips, 4, mixture, clips[::-1])
    alone = heat_maps(clips, 4)
    for i in range(len(clips)):
        for t, weight in enumerate(weights):
            clip = i if weight else len(clips) - 1 - i
            np.testing.assert_array_equal(mixed[i, t], clips[clip, places[t]])
            if t >= 3:  # the windows of the first frames are not full
                np.testing.assert_allclose(heat[i, t], alone[clip, places[t]], atol=1e-6)


@pytest.mark.parametrize("modality", ["rgb", "fusion"])
def test_a_step_trains_on_mixed_clips_of_every_modality(clips, modality, monkeypatch):
    config = tiny_config("unused", modality)
    config.update({"clip": {"size": 24}, "mixing": {"mixup_alpha": 0.8}})
    model = Model(config, CLASSES)
    frames = clips[:2, :, :, :1].repeat(24, axis=3)
    batch = {"frames": dict.fromkeys(model.modalities, frames), "label": np.array([3, 7]), "record": np.arange(2)}
    seen = {}

    def losses(output, labels, schedule):
        seen["labels"] = np.asarray(labels)
        raise StopIteration

    monkeypatch.setattr(model, "apply", lambda params, stats, inputs, *_, **__: seen.update(inputs) or (None, stats))
    monkeypatch.setattr(model, "losses", losses)
    state = new_state(model, *model.init(0)).replace(step=np.int32(5))
    with pytest.raises(StopIteration), jax.disable_jit():
        train_step(model, state, with_partners(model, batch, 5), schedule_at(config, 0.0))
    weight = float(mixing.draw(config.mixing, 8, config.seed, 5).label)
    assert 0.01 < weight < 0.99
    np.testing.assert_allclose(seen["labels"][:, [3, 7]], [[weight, 1 - weight], [1 - weight, weight]], atol=1e-6)
    expected = ((weight * frames + (1 - weight) * frames[::-1].astype(np.float64)) - 127.5) / 128
    for name in model.modalities:
        np.testing.assert_allclose(seen[name].clip, expected, atol=1e-5)
