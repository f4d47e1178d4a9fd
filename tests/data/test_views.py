"""Several views of a clip in evaluation: which frames and crops they are, and how their scores become one."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax import metrics
from rgbd_jax.data import loader, sampling, transforms
from rgbd_jax.data.source import ClipRecord, open_split
from rgbd_jax.evaluate import Evaluator
from rgbd_jax.parallel.mesh import make_mesh
from rgbd_jax.step import Stream, evaluation_schedule
from tests.data.test_pipeline import HEIGHT, WIDTH, clips, config, encode, textured
from tests.tiny import tiny_config

lengths, counts, numbers = st.integers(1, 400), st.integers(1, 64), st.integers(1, 10)


@given(n=lengths, count=counts)
def test_one_view_takes_the_middle_frames(n, count):
    np.testing.assert_array_equal(sampling.view_frames(n, count, 1), [sampling.sample_frames(n, count, None)])


@given(n=lengths, count=counts, views=numbers)
def test_views_lie_in_their_intervals_in_time_order_and_share_no_frame_of_a_long_clip(n, count, views):
    frames = sampling.view_frames(n, count, views)
    start, stop = sampling.intervals(n, count)
    assert frames.shape == (views, count)
    assert (start <= frames).all()
    assert (frames < stop).all()
    assert (np.diff(frames, axis=0) >= 0).all()
    if n >= views * count:
        assert len(np.unique(frames)) == views * count


def test_the_frames_of_views_are_those_of_the_definition():
    # Intervals of 6 frames: with 2 views the middles of 0-2 and 3-5, with 3 the earlier middles of 0-1, 2-3, 4-5.
    np.testing.assert_array_equal(sampling.view_frames(12, 2, 2), [[1, 7], [4, 10]])
    np.testing.assert_array_equal(sampling.view_frames(12, 2, 3), [[0, 6], [2, 8], [4, 10]])


@pytest.mark.parametrize(
    ("crops", "places"),
    [
        (1, [(8, 5)]),
        (3, [(0, 5), (8, 5), (16, 5)]),
        (5, [(0, 0), (16, 0), (0, 10), (16, 10), (8, 5)]),
    ],
)
def test_crops_cut_these_places(crops, places):
    settings = config(**{"data.transforms.resize": (32, 26), "eval.crops": crops}).data.transforms
    found = transforms.evaluation_transforms(settings, 16, crops)
    assert [(transform.left, transform.top) for transform in found] == places
    assert all(transform.rotation == 0 and not transform.flip and not transform.blur_radius for transform in found)
    upright = config(**{"data.transforms.resize": (26, 32)}).data.transforms
    if crops == 3:
        upright_places = [(t.left, t.top) for t in transforms.evaluation_transforms(upright, 16, 3)]
        assert upright_places == [(y, x) for x, y in places]


def test_crops_of_nvgesture_stay_where_training_crops_are():
    settings = config(**{"data.transforms.reference_nvgesture_crop": True}).data.transforms
    settings.update(resize=(256, 256), crop_size=224)
    places = [(t.left, t.top) for t in transforms.evaluation_transforms(settings, 224, 5)]
    assert places == [(10, 10), (32, 10), (10, 32), (32, 32), (21, 21)]


def test_every_view_is_the_crop_of_its_frames_and_each_frame_is_decoded_once():
    (clip,) = source = clips(1, frames=12)
    fields = {"data.transforms.resize": (WIDTH, HEIGHT), "eval.clips": 2, "eval.crops": 3}
    (batch,) = loader.eval_batches(source, config(**fields), batch_size=1)
    frames = batch["frames"]["rgb"]
    assert frames.shape == (1, 6, 4, 16, 16, 3)
    expected = sampling.view_frames(12, 4, 2)
    for view, seen in enumerate(loader.views(batch)):
        assert list(seen["label"]) == [100]
        left = (0, 12, 24)[view % 3]
        for place, number in enumerate(expected[view // 3]):
            full = textured(number, number)[..., ::-1]
            np.testing.assert_array_equal(seen["frames"]["rgb"][0, place], full[8:24, left : left + 16])
    assert sorted(clip.frames["rgb"].read) == sorted(set(expected.ravel()))


def test_views_of_a_clip_shorter_than_they_are():
    fields = {"eval.clips": 3, "eval.crops": 1, "data.transforms.resize": (WIDTH, HEIGHT)}
    (batch,) = loader.eval_batches(clips(1, frames=2), config(**fields), batch_size=1)
    blue = batch["frames"]["rgb"][0, ..., 2].max(axis=(2, 3))
    np.testing.assert_array_equal(blue, sampling.view_frames(2, 4, 3))


def test_single_views_have_no_axis_and_padding_has_the_shape_of_the_rest():
    source = [ClipRecord("clip", 3, {"rgb": [encode(textured(0, 9))]})]
    (batch,) = loader.eval_batches(source, config(), batch_size=2)
    assert batch["frames"]["rgb"].shape == (2, 4, 16, 16, 3)
    assert len(loader.views(batch)) == 1
    (batch,) = loader.eval_batches(source, config(**{"eval.crops": 5}), batch_size=2)
    assert batch["frames"]["rgb"].shape == (2, 5, 4, 16, 16, 3)
    assert not batch["frames"]["rgb"][1].any()
    np.testing.assert_array_equal(batch["mask"], [True, False])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"eval.crops": 2}, "config.eval.crops is 2; expected one of 1, 3, 5"), ({"eval.clips": 0}, "config.eval.clips")],
)
def test_unusable_numbers_of_views_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        loader.eval_batches(clips(1), config(**fields), batch_size=1)


def test_scores_of_views_are_averaged_as_probabilities():
    logits = np.random.default_rng(0).normal(0, 4, (6, 5, 12)).astype(np.float32)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    averaged = metrics.average_views(logits)
    np.testing.assert_allclose(np.exp(averaged), probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(metrics.average_views(logits[:1]), logits[0])
    assert np.isfinite(metrics.average_views(1e30 * logits)).any()


def test_the_evaluator_scores_a_clip_by_the_mean_over_its_views(small_demo, monkeypatch):
    config = tiny_config(small_demo)
    config.eval.clips, config.eval.crops = 2, 3
    stream = Stream(config, 12)
    state = stream.init(0)
    evaluator = Evaluator(stream, open_split("rgbd_demo", small_demo, "validation"), make_mesh(1))

    def probabilities():
        figures, scores = evaluator.measure(state, evaluation_schedule(config, 1))
        assert (figures["clips"], figures["views"]) == (24, 6)
        return {name: np.asarray(jax.nn.softmax(logits)) for name, logits in scores.heads.items()}, figures["loss"]

    averaged, loss = probabilities()
    alone = []
    for view in range(6):
        monkeypatch.setattr(loader, "views", lambda batch, view=view: original_views(batch)[view : view + 1])
        alone.append(probabilities())
    assert loss == pytest.approx(np.mean([each for _, each in alone]), rel=1e-5)
    for name, found in averaged.items():
        views = np.stack([heads[name] for heads, _ in alone])
        np.testing.assert_allclose(found, views.mean(axis=0), rtol=1e-4, atol=1e-6)
        assert views.std(axis=0).max() > 1e-6  # the views differ, or the mean over them would show nothing


original_views = loader.views
