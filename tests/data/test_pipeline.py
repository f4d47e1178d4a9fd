"""From encoded clips to batches: order, draws, resume, and what reaches a batch."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.config import default_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord

WIDTH, HEIGHT = 40, 32


def encode(image, extension=".png"):
    done, encoded = cv2.imencode(extension, image)
    assert done
    return encoded.tobytes()


class CountingFrames(tuple):
    """Encoded frames that note which of them were read."""

    def __new__(cls, frames):
        result = super().__new__(cls, frames)
        result.read = []
        return result

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def textured(seed, value):
    """A frame whose texture tells crops and flips apart, and whose blue channel is `value`."""
    image = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = value  # OpenCV encodes blue, green, red
    return image


def clips(number, frames=6, modalities=("rgb",)):
    """Clips whose frame i has the blue value i, and whose label is 100 more than their position."""
    return [
        ClipRecord(
            name=f"clip{k}",
            label=100 + k,
            frames={m: CountingFrames(encode(textured(1000 * k + i, i)) for i in range(frames)) for m in modalities},
        )
        for k in range(number)
    ]


def config(**fields):
    result = default_config()
    result.clip.frames, result.clip.size = 4, 16
    result.data.workers = 2
    result.data.transforms.update(resize=(24, 20), crop_size=16, blur=True)
    result.update_from_flattened_dict(fields)
    return result


def taken(batches, number):
    """The first batches of an iterator."""
    return [next(batches) for _ in range(number)]


def joined(batches):
    """Batches as one list of (record, label, mask, frames of all modalities in one array)."""
    return [
        (int(r), int(label), bool(m), np.stack([f[i] for f in batch["frames"].values()]))
        for batch in batches
        for i, (r, label, m) in enumerate(zip(batch["record"], batch["label"], batch["mask"], strict=True))
    ]


def records(batches):
    return [entry[0] for entry in joined(batches)]


def assert_same_batches(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_equal(a, b)


def test_a_batch_holds_frames_labels_records_and_mask():
    batch = next(loader.train_batches(clips(5), config(), batch_size=3))
    assert set(batch) == {"frames", "label", "record", "mask"}
    assert set(batch["frames"]) == {"rgb"}
    frames = batch["frames"]["rgb"]
    assert (frames.shape, frames.dtype) == ((3, 4, 16, 16, 3), np.uint8)
    assert batch["label"].dtype == batch["record"].dtype == np.int32
    assert batch["mask"].dtype == np.bool_
    assert batch["mask"].all()
    np.testing.assert_array_equal(batch["label"], batch["record"] + 100)


def test_epochs_are_fresh_shuffles_that_leave_out_another_remainder():
    source, epochs = clips(11, frames=1), 12
    steps = loader.steps_per_epoch(source, 4)
    assert steps == 2
    seen = np.reshape(records(taken(loader.train_batches(source, config(), batch_size=4), steps * epochs)), (-1, 8))
    assert all(len(set(epoch)) == 8 for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == epochs
    assert len({frozenset(epoch) for epoch in seen}) > epochs // 2
    assert set(seen.ravel()) == set(range(11))
    other = records(taken(loader.train_batches(source, config(seed=1), batch_size=4), steps))
    assert list(seen[0]) != other


def test_the_shuffle_moves_clips_to_every_place():
    number, epochs = 40, 60
    order = records(taken(loader.train_batches(clips(number, frames=1), config(), batch_size=number), epochs))
    places = np.argsort(np.reshape(order, (epochs, number)), axis=1)  # of each clip in each epoch
    assert 18 < places.mean() < 21
    # Mean place of a clip over the epochs: standard deviation 11.5 / sqrt(60) = 1.5, of which 5 are allowed.
    assert np.abs(places.mean(axis=0) - 19.5).max() < 7.5
    assert np.abs(np.corrcoef(places)[np.triu_indices(epochs, 1)]).max() < 0.8  # no two epochs in much the same order


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
    whole = taken(loader.train_batches(source, config(seed=seed), batch_size=global_batch), steps)
    parts = [
        taken(
            loader.train_batches(
                source,
                config(**{"seed": seed, "data.workers": workers}),
                batch_size=global_batch // shards,
                shard_index=shard,
                shard_count=shards,
            ),
            steps,
        )
        for shard in range(shards)
    ]
    for step, batch in enumerate(whole):
        # Shard s holds the block of the global batch that process s has of the global array.
        np.testing.assert_equal(joined([part[step] for part in parts]), joined([batch]))


def test_draws_depend_on_seed_epoch_and_clip_only():
    """A clip looks the same in an epoch, whatever the batch size; differently in other epochs, clips and seeds."""
    (clip,) = clips(1, frames=12)
    source = [clip] * 12  # what differs is drawn
    looks = {}
    for batch_size in (3, 4, 12):
        steps = loader.steps_per_epoch(source, batch_size)
        batches = loader.train_batches(source, config(), batch_size=batch_size)
        for epoch in range(3):
            for record, _, _, frames in joined(taken(batches, steps)):
                looks.setdefault((epoch, record), []).append(frames)
    assert len(looks) == 36
    for same in looks.values():
        assert len(same) == 3
        np.testing.assert_equal(same[0], same[1])
        np.testing.assert_equal(same[0], same[2])
    assert len({same[0].tobytes() for same in looks.values()}) == 36
    other_seed = joined(taken(loader.train_batches(source, config(seed=7), batch_size=12), 1))
    assert all((frames != looks[0, record][0]).any() for record, _, _, frames in other_seed)


@pytest.mark.parametrize("steps_before", [0, 1, 3, 4, 7])
def test_resume_is_exact_from_a_json_state_into_a_fresh_iterator(steps_before):
    source = clips(9)
    batches = loader.train_batches(source, config(), batch_size=2)  # 4 steps an epoch
    taken(batches, steps_before)
    state = json.loads(json.dumps(batches.get_state()))
    assert len(json.dumps(state)) < 200
    expected = taken(batches, 6)
    resumed = loader.train_batches(source, config(**{"data.workers": 5}), batch_size=2)
    resumed.set_state(state)
    assert_same_batches(taken(resumed, 6), expected)
    batches.set_state(state)  # also into an iterator that has run on
    assert_same_batches(taken(batches, 6), expected)


@settings(deadline=None, max_examples=25)
@given(number=st.integers(1, 14), batch_size=st.integers(1, 6), shards=st.integers(1, 4))
def test_evaluation_counts_every_clip_once(number, batch_size, shards):
    source = clips(number, frames=2)
    parts = [
        list(loader.eval_batches(source, config(), batch_size=batch_size, shard_index=s, shard_count=shards))
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


def test_evaluation_can_be_run_again_and_draws_nothing():
    source = clips(3, frames=9)
    batches = loader.eval_batches(source, config(), batch_size=2)
    first = list(batches)
    assert_same_batches(list(batches), first)
    assert_same_batches(list(loader.eval_batches(source, config(seed=5), batch_size=2)), first)
    blue = first[0]["frames"]["rgb"][0, ..., 2].max(axis=(1, 2))
    np.testing.assert_array_equal(blue, [0, 2, 4, 7])  # middle members of 0-1, 2-3, 4-5, 6-8


def test_evaluation_takes_the_centre_crop_in_rgb():
    frame = textured(0, 9)
    source = [ClipRecord("clip", 3, {"rgb": [encode(frame)]})]
    settings_ = {"data.transforms.resize": (WIDTH, HEIGHT)}
    (batch,) = loader.eval_batches(source, config(**settings_), batch_size=1)
    np.testing.assert_array_equal(batch["frames"]["rgb"][0, 0], frame[8:24, 12:28, ::-1])


@pytest.mark.parametrize(("frames", "distinct"), [(20, 4), (4, 4), (3, 3), (1, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_only_sampled_frames_are_decoded_and_each_once(frames, distinct, training):
    (clip,) = source = clips(1, frames=frames)
    fields = {"data.workers": 1, "data.transforms.rotation_probability": 0.0}
    if training:
        batch = next(loader.train_batches(source, config(**fields), batch_size=1))
        read = clip.frames["rgb"].read[:distinct]  # what is read ahead for later epochs comes after
    else:
        (batch,) = loader.eval_batches(source, config(**fields), batch_size=1)
        read = clip.frames["rgb"].read
    assert len(read) == len(set(read)) == distinct
    assert sorted(set(batch["frames"]["rgb"][0, :, 0, 0, 2].tolist())) == sorted(read)


@pytest.mark.parametrize("separate", [False, True])
def test_fusion_reads_both_modalities_at_the_same_frames_with_one_crop_or_two(separate):
    frames = 100
    source = [
        ClipRecord(c.name, c.label, {"rgb": c.frames["rgb"], "depth": c.frames["rgb"]})  # the same pictures twice
        for c in clips(4, frames=frames)
    ]
    fields = {
        "modality": "fusion",
        "data.transforms.rotation_probability": 0.0,
        "data.transforms.reference_separate_draws": separate,
    }
    batch = next(loader.train_batches(source, config(**fields), batch_size=4))
    rgb, depth = batch["frames"]["rgb"], batch["frames"]["depth"]
    np.testing.assert_array_equal(rgb[..., 2], depth[..., 2])  # the frames' numbers
    assert len(np.unique(rgb[..., 2])) > 8
    differing = (rgb != depth).any(axis=(1, 2, 3, 4))
    assert differing.all() if separate else not differing.any()
    (batch,) = loader.eval_batches(source, config(**fields), batch_size=4)
    np.testing.assert_array_equal(batch["frames"]["rgb"], batch["frames"]["depth"])


def test_fusion_takes_frame_numbers_that_both_modalities_have():
    (long,), (short,) = clips(1, frames=8), clips(1, frames=4)
    source = [ClipRecord("clip", 0, {"rgb": long.frames["rgb"], "depth": short.frames["rgb"]})]
    (batch,) = loader.eval_batches(source, config(modality="fusion"), batch_size=1)
    for frames in batch["frames"].values():
        np.testing.assert_array_equal(frames[0, ..., 2].max(axis=(1, 2)), np.arange(4))


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_depth_is_colour_mapped_only_where_it_has_one_channel(extension):
    coloured = np.full((HEIGHT, WIDTH, 3), (10, 60, 200), np.uint8)  # blue, green, red
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    source = [ClipRecord("clip", 0, {"depth": [encode(coloured, extension), encode(grey, extension)]})]
    (batch,) = loader.eval_batches(source, config(**{"modality": "depth", "clip.frames": 2}), batch_size=1)
    first, second = batch["frames"]["depth"][0, :, 8, 8].astype(int)
    np.testing.assert_allclose(first, [200, 60, 10], atol=2)
    np.testing.assert_array_equal(second, [0, 0, 128])  # JET's red, in OpenCV's order


def test_16_bit_depth_keeps_its_16_bits():
    frame = np.full((HEIGHT, WIDTH), 4500, np.uint16)
    frame[:, WIDTH // 2 :] = 500
    source = [ClipRecord("clip", 0, {"depth": [encode(frame)]})]
    (batch,) = loader.eval_batches(source, config(modality="depth"), batch_size=1)
    far, near = batch["frames"]["depth"][0, 0, 8, [1, 14]].tolist()
    jet = cv2.applyColorMap(np.array([[1, 255]], np.uint8), cv2.COLORMAP_JET)[0].tolist()
    assert [far, near] == jet


GOOD = encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8), ".jpg")


@pytest.mark.parametrize(
    ("modality", "bad", "message"),
    [
        ("rgb", b"", r"clip take7: rgb frame 2 \(counted from 0\).*\(0 bytes\)"),
        ("rgb", b"no picture", "clip take7: rgb frame 2"),
        ("depth", GOOD[: len(GOOD) // 2], "clip take7: depth frame 2"),
        ("depth", encode(np.zeros((8, 8, 3), np.uint16)), "clip take7: depth frame 2 .*several channels of uint16"),
    ],
    ids=["empty", "no picture", "cut off", "16-bit colour"],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_frame_that_cannot_be_used_is_named(modality, bad, message, training):
    source = [ClipRecord("take7", 0, {modality: [GOOD, GOOD, bad, GOOD]})]
    make = loader.train_batches if training else loader.eval_batches
    batches = iter(make(source, config(modality=modality), batch_size=1))
    with pytest.raises(ValueError, match=message):
        next(batches)


@pytest.mark.parametrize(
    ("frames", "fields", "message"),
    [
        ({"rgb": [GOOD]}, {"modality": "depth"}, "clip take7: no depth frames, which config.modality=depth needs"),
        ({"rgb": [GOOD]}, {"modality": "fusion"}, "clip take7: no depth frames"),
        ({"rgb": []}, {}, "clip take7: no rgb frames"),
    ],
)
def test_a_clip_without_the_modality_is_named(frames, fields, message):
    batches = iter(loader.eval_batches([ClipRecord("take7", 0, frames)], config(**fields), batch_size=1))
    with pytest.raises(ValueError, match=message):
        next(batches)


@pytest.mark.parametrize("make", [loader.train_batches, loader.eval_batches])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "infrared"}, "config.modality is 'infrared'; expected one of rgb, depth, fusion"),
        ({"data.workers": -1}, "config.data.workers is -1"),
        ({"data.transforms.crop_size": 21}, "config.data.transforms.resize"),
        ({"data.depth.encoding": "log"}, "config.data.depth.encoding"),
    ],
)
def test_unusable_settings_are_errors_before_any_clip_is_read(make, fields, message):
    (clip,) = source = clips(1)
    with pytest.raises(ValueError, match=message):
        make(source, config(**fields), batch_size=1)
    assert clip.frames["rgb"].read == []


def test_fewer_clips_than_a_batch_is_an_error_for_training():
    with pytest.raises(ValueError, match=r"has 3 clips, fewer than one batch of 4: set config.train.batch_size to 3"):
        loader.train_batches(clips(3), config(), batch_size=2, shard_count=2)
    with pytest.raises(ValueError, match="fewer than one batch of 4"):
        loader.steps_per_epoch(clips(3), 4)


def test_no_clips_and_wrong_shards_are_errors():
    with pytest.raises(ValueError, match="no clips"):
        loader.eval_batches([], config(), batch_size=2)
    for make in (loader.train_batches, loader.eval_batches):
        with pytest.raises(ValueError, match="shard_index is 2; expected 0 to 1"):
            make(clips(4), config(), batch_size=1, shard_index=2, shard_count=2)
