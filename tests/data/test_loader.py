"""From encoded clips to batches: order, random draws, resume, views, and what reaches a batch."""

import itertools
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax import sampling
from rgbd_jax.config import default_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord

WIDTH, HEIGHT = 40, 32


def encode(image, extension=".png"):
    return cv2.imencode(extension, image)[1].tobytes()


class CountingFrames(list):
    """Encoded frames that record which of them were read."""

    def __init__(self, frames):
        super().__init__(frames)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def textured(seed, value):
    """A frame whose texture distinguishes crops and flips, and whose blue channel is `value`."""
    image = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = value  # OpenCV encodes blue, green, red
    return image


def clips(number, frames=6):
    """Clips whose frame i has the blue value i, and whose label is 100 more than their index."""
    encoded = [CountingFrames(encode(textured(1000 * k + i, i)) for i in range(frames)) for k in range(number)]
    return [ClipRecord(f"clip{k}", 100 + k, {"rgb": each}) for k, each in enumerate(encoded)]


def config(**fields):
    result = default_config()
    result.clip.frames, result.clip.size = 4, 16
    result.data.workers = 2
    result.data.transforms.update(resize=(24, 20), crop_size=16, blur=True)
    result.update_from_flattened_dict(fields)
    return result


def evaluated(source, batch_size=1, **fields):
    """The only batch of an evaluation."""
    (batch,) = loader.eval_batches(source, config(**fields), batch_size=batch_size)
    return batch


def taken(batches, number):
    return [next(batches) for _ in range(number)]


def joined(batches):
    """Batches as one list of (record, label, mask, frames in RGB)."""
    columns = (
        zip(b["record"].tolist(), b["label"].tolist(), b["mask"], b["frames"]["rgb"], strict=True) for b in batches
    )
    return list(itertools.chain.from_iterable(columns))


def test_epochs_are_fresh_shuffles_that_leave_out_another_remainder():
    source, epochs = clips(11, frames=1), 12

    def records(steps, **fields):
        batches = loader.train_batches(source, config(**fields), batch_size=4)  # 2 steps an epoch
        return [entry[0] for entry in joined(taken(batches, steps))]

    seen = np.reshape(records(2 * epochs), (-1, 8))
    assert all(len(set(epoch)) == 8 for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == epochs
    assert len({frozenset(epoch) for epoch in seen}) > epochs // 2
    assert set(seen.ravel()) == set(range(11))
    assert list(seen[0]) != records(2, seed=1)


@settings(deadline=None, max_examples=8)
@given(
    number=st.integers(16, 24),
    global_batch=st.sampled_from([4, 8, 12]),
    shards=st.sampled_from([1, 2, 4]),
    workers=st.sampled_from([0, 1, 2, 4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_global_batches_are_the_same_for_all_shards_and_workers(number, global_batch, shards, workers, seed):
    source = clips(number, frames=2)
    steps = 2 * loader.steps_per_epoch(source, global_batch) + 1  # into the third epoch

    def shard(index, count, workers):
        settings_ = config(**{"seed": seed, "data.workers": workers})
        sharding = {"batch_size": global_batch // count, "shard_index": index, "shard_count": count}
        return taken(loader.train_batches(source, settings_, **sharding), steps)

    parts = [shard(index, shards, workers) for index in range(shards)]
    for step, batch in enumerate(shard(0, 1, 2)):
        # Shard s holds the block of the global batch that process s has of the global array.
        np.testing.assert_equal(joined([part[step] for part in parts]), joined([batch]))


def test_random_draws_depend_on_seed_epoch_and_clip_only():
    """A clip looks the same in an epoch, whatever the batch size; differently in other epochs, clips and seeds."""
    source = clips(1, frames=12) * 12  # what differs is drawn
    looks = {}
    for batch_size in (3, 4, 12):
        steps = loader.steps_per_epoch(source, batch_size)
        batches = loader.train_batches(source, config(), batch_size=batch_size)
        for epoch in range(3):
            for record, _, _, frames in joined(taken(batches, steps)):
                looks.setdefault((epoch, record), set()).add(frames.tobytes())
    assert len(looks) == 36
    assert {len(same) for same in looks.values()} == {1}
    assert len(set.union(*looks.values())) == 36
    for record, _, _, frames in joined(taken(loader.train_batches(source, config(seed=7), batch_size=12), 1)):
        assert frames.tobytes() not in looks[0, record]


@pytest.mark.parametrize("steps_before", [0, 1, 4, 7])
def test_resume_is_exact_from_a_json_state_into_a_fresh_iterator(steps_before):
    source = clips(9)
    batches = loader.train_batches(source, config(), batch_size=2)  # 4 steps an epoch
    taken(batches, steps_before)
    state = json.loads(json.dumps(batches.get_state()))
    assert len(json.dumps(state)) < 200
    expected = taken(batches, 6)
    resumed = loader.train_batches(source, config(**{"data.workers": 5}), batch_size=2)
    resumed.set_state(state)
    np.testing.assert_equal(taken(resumed, 6), expected)
    batches.set_state(state)  # also into an iterator that has advanced
    np.testing.assert_equal(taken(batches, 6), expected)
    skipped = loader.train_batches(source, config(), batch_size=2)
    loader.skip_batches(skipped, steps_before)
    np.testing.assert_equal(taken(skipped, 6), expected)


@settings(deadline=None, max_examples=25)
@given(
    number=st.integers(1, 14),
    batch_size=st.integers(1, 6),
    shards=st.integers(1, 4),
    crops=st.sampled_from([1, 3]),
)
def test_evaluation_counts_every_clip_once(number, batch_size, shards, crops):
    source, settings_ = clips(number, frames=2), config(**{"eval.crops": crops})
    parts = [
        list(loader.eval_batches(source, settings_, batch_size=batch_size, shard_index=s, shard_count=shards))
        for s in range(shards)
    ]
    steps = loader.eval_steps(source, batch_size * shards)
    assert {len(part) for part in parts} == {steps}
    assert (steps - 1) * batch_size * shards < number
    entries = [entry for part in parts for entry in joined(part)]
    assert len(entries) == steps * batch_size * shards
    assert sorted(record for record, _, mask, _ in entries if mask) == list(range(number))
    assert {(record, label, frames.any()) for record, label, mask, frames in entries if not mask} <= {(-1, 0, False)}
    assert all(label == record + 100 for record, label, mask, _ in entries if mask)


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("temporal_views", [1, 2])
@pytest.mark.parametrize("frames", [2, 12])
def test_every_view_is_the_crop_of_its_frames_in_rgb_and_each_frame_is_decoded_once(frames, temporal_views, crops):
    (clip,) = source = clips(1, frames=frames)
    fields = {"data.transforms.resize": (WIDTH, HEIGHT), "eval.clips": temporal_views, "eval.crops": crops}
    batch = evaluated(source, **fields)
    axis = (temporal_views * crops,) if temporal_views * crops > 1 else ()
    assert batch["frames"]["rgb"].shape == (1, *axis, 4, 16, 16, 3)
    expected = sampling.view_frames(frames, 4, temporal_views)
    views = loader.views(batch)
    assert len(views) == temporal_views * crops
    for view, seen in enumerate(views):
        left = (0, 12, 24)[view % 3] if crops == 3 else 12
        for place, number in enumerate(expected[view // crops]):
            whole = textured(number, number)[..., ::-1]
            np.testing.assert_array_equal(seen["frames"]["rgb"][0, place], whole[8:24, left : left + 16])
    assert sorted(clip.frames["rgb"].read) == sorted(set(expected.ravel()))
    np.testing.assert_equal(loader.load_clip(clip, config(**fields))["rgb"], batch["frames"]["rgb"][0])


@pytest.mark.parametrize("separate", [False, True])
def test_fusion_reads_both_modalities_at_the_same_frames_with_one_crop_or_two(separate):
    source = clips(4, frames=100)
    for clip in source:
        clip.frames["depth"] = clip.frames["rgb"]  # the same pictures twice
    transforms = {"rotation_probability": 0.0, "reference_separate_draws": separate}
    fields = {"modality": "fusion", **{f"data.transforms.{name}": value for name, value in transforms.items()}}
    batch = next(loader.train_batches(source, config(**fields), batch_size=4))
    dtypes = {"label": np.int32, "record": np.int32, "mask": np.bool_}
    assert {key: batch[key].dtype for key in dtypes} == dtypes
    assert batch["mask"].all()
    np.testing.assert_array_equal(batch["label"], batch["record"] + 100)
    rgb, depth = batch["frames"]["rgb"], batch["frames"]["depth"]
    np.testing.assert_array_equal(rgb[..., 2], depth[..., 2])  # the frames' numbers
    assert len(np.unique(rgb[..., 2])) > 8
    differing = (rgb != depth).any(axis=(1, 2, 3, 4))
    assert differing.all() if separate else not differing.any()
    batch = evaluated(source, batch_size=4, **fields)
    np.testing.assert_array_equal(batch["frames"]["rgb"], batch["frames"]["depth"])


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_depth_is_colour_mapped_only_where_it_has_one_channel_and_keeps_its_16_bits(extension):
    coloured = np.full((HEIGHT, WIDTH, 3), (10, 60, 200), np.uint8)  # blue, green, red
    grey, far = np.full((HEIGHT, WIDTH), 255, np.uint8), np.full((HEIGHT, WIDTH), 4500, np.uint16)
    frames = [encode(coloured, extension), encode(grey, extension), encode(far)]
    fields = {"modality": "depth", "clip.frames": 3, "data.depth.reference_person_crop": True}  # larger than they are
    batch = evaluated([ClipRecord("clip", 0, {"depth": frames})], **fields)
    first, second, third = batch["frames"]["depth"][0, :, 8, 8].astype(int)
    np.testing.assert_allclose(first, [200, 60, 10], atol=2)
    np.testing.assert_array_equal(second, [0, 0, 128])  # JET's red, in OpenCV's order
    np.testing.assert_array_equal(third, [132, 0, 0])  # its blue


GOOD = encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8), ".jpg")
DEPTH_IN_COLOURS, WITH_ALPHA = encode(np.zeros((8, 8, 3), np.uint16)), encode(np.zeros((8, 8, 4), np.uint8))


@pytest.mark.parametrize(
    ("modality", "frames", "message"),
    [
        ("rgb", {"rgb": [GOOD, b""]}, r"frame 1 \(counted from 0\): the rgb frame cannot be decoded.*\(0 bytes\)"),
        ("rgb", {"rgb": [GOOD, b"no picture"]}, "frame 1 .*restore the frame, or build the data set again"),
        ("depth", {"depth": [GOOD, GOOD[: len(GOOD) // 2]]}, "frame 1 .*cannot be decoded"),
        ("depth", {"depth": [GOOD, DEPTH_IN_COLOURS]}, r"frame 1 .* uint16\[8, 8, 3\]; expected one channel"),
        ("depth", {"depth": [GOOD, WITH_ALPHA]}, r"frame 1 .* uint8\[8, 8, 4\]; expected one channel"),
        ("depth", {"rgb": [GOOD]}, "no depth frames, which config.modality=depth needs"),
        ("fusion", {"rgb": [GOOD]}, "no depth frames"),
        ("rgb", {"rgb": []}, "no rgb frames"),
    ],
)
@pytest.mark.parametrize("make", [loader.train_batches, loader.eval_batches])
def test_a_clip_or_frame_that_cannot_be_used_is_named(make, modality, frames, message):
    batches = iter(make([ClipRecord("take7", 0, frames)], config(modality=modality), batch_size=1))
    with pytest.raises(ValueError, match=f"clip take7.*{message}"):
        next(batches)


def test_too_few_clips_are_errors():
    with pytest.raises(ValueError, match=r"has 3 clips, fewer than one batch of 4: set config.train.batch_size to 3"):
        loader.train_batches(clips(3), config(), batch_size=2, shard_count=2)
    with pytest.raises(ValueError, match="no clips"):
        loader.eval_batches([], config(), batch_size=2)
