"""From encoded clips to batches on the host: decode the sampled frames, transform them, batch.

Every random draw is a function of (config.seed, epoch, clip), and the order of the clips one of (config.seed, epoch),
so that batches do not depend on the number of threads or of processes.

A batch holds "frames" (modality -> uint8[b t h w 3]), "label" int32[b], "record" int32[b] (index of the clip in the
source) and "mask" bool[b] (False for padding). Batch sizes are those of one shard (one per process) unless a docstring
states otherwise. Configs have been checked (`check_config`), and must not change while batches are made.
"""

import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from rgbd_jax.data.frames import colour_depth, crop_person, decode_frame
from rgbd_jax.data.scratch import Scratch
from rgbd_jax.data.source import ClipRecord, ClipSource
from rgbd_jax.data.transforms import ClipTransform, draw_transform, evaluation_transforms
from rgbd_jax.modalities import STREAMS, training_modalities
from rgbd_jax.sampling import sample_frames, view_frames

Batch = dict[str, Any]


def steps_per_epoch(source: ClipSource, batch_size: int) -> int:
    """Counts the training batches of an epoch, for a batch size over all shards; the remainder differs by epoch."""
    if len(source) < batch_size:
        raise ValueError(
            f"the training split has {len(source)} clips, fewer than one batch of {batch_size}: "
            f"set config.train.batch_size to {len(source)} or less, or add clips"
        )
    return len(source) // batch_size


def eval_steps(source: ClipSource, batch_size: int) -> int:
    """Counts the batches that evaluate every clip once, for a batch size over all shards."""
    if not len(source):
        raise ValueError("the evaluation split has no clips")
    return -(-len(source) // batch_size)


def train_batches(
    source: ClipSource, config: ConfigDict, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Starts the endless stream of training batches.

    Each epoch is a fresh shuffle of all clips, of which every shard takes its block of each batch: the batches over
    all shards, and the order of the clips in them, are the same for every number of shards. `get_state()` of the
    iterator is a small JSON-able dict, and `set_state()` resumes exactly after the batch that was last taken.
    """
    global_batch, modalities = batch_size * shard_count, training_modalities(config)
    steps = steps_per_epoch(source, global_batch)
    shape = (batch_size, 1, 1, config.clip.frames, config.clip.size, config.clip.size, 3)  # b v c t h w 3

    def load(step: int, records: np.ndarray) -> Batch:
        records = records[shard_index * batch_size :][:batch_size]
        frames, labels = {modality: np.empty(shape, np.uint8) for modality in modalities}, []
        for place, record in enumerate(records.tolist()):
            clip = source[record]
            out = {modality: each[place] for modality, each in frames.items()}
            _load_training_clip(clip, record, step // steps, config, out)
            labels.append(clip.label)
        return {
            "frames": {modality: each[:, 0, 0] for modality, each in frames.items()},  # b t h w 3
            "label": np.array(labels, np.int32),
            "record": records.astype(np.int32),
            "mask": np.ones(batch_size, np.bool_),
        }

    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle()[: steps * global_batch].repeat(None)
    return iter(_prefetched(order.batch(global_batch, drop_remainder=True).map_with_index(load), config))


def skip_batches(batches: grain.DatasetIterator[Batch], count: int) -> None:
    """Advances a fresh stream of training batches by `count` batches without reading them."""
    batches.set_state({"next_index": count})


def eval_batches(
    source: ClipSource, config: ConfigDict, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> grain.IterDataset[Batch]:
    """Gives every clip exactly once over all shards, in order, with the frames and transform of an evaluation.

    There are `eval_steps` batches on every shard. The last one is padded with black clips of label 0 and record -1.
    With several views of a clip (`config.eval.clips` times `config.eval.crops`, crops side by side) "frames" holds
    uint8[b v t h w 3].
    """
    size, view_count = config.clip.size, config.eval.clips * config.eval.crops
    shape = (config.clip.frames, size, size, 3)
    black = np.zeros(shape if view_count == 1 else (view_count, *shape), np.uint8)  # *v t h w c
    padding = _example(dict.fromkeys(STREAMS[config.modality], black), label=0, record=-1)

    def load(record: int) -> Batch:
        if record >= len(source):
            return padding
        clip = source[record]
        return _example(load_clip(clip, config), clip.label, record)

    padded_length = eval_steps(source, batch_size * shard_count) * batch_size * shard_count
    shard = grain.MapDataset.range(padded_length)[shard_index::shard_count]
    return _prefetched(shard.map(load).batch(batch_size, drop_remainder=True), config)  # no remainder is left


def views(batch: Batch) -> list[Batch]:
    """Splits a batch of `eval_batches` into one batch per view, all of the same clips."""
    (count,) = {frames.shape[1] if frames.ndim == 6 else 0 for frames in batch["frames"].values()}
    if not count:
        return [batch]
    return [{**batch, "frames": {m: frames[:, view] for m, frames in batch["frames"].items()}} for view in range(count)]


def load_clip(clip: ClipRecord, config: ConfigDict) -> dict[str, UInt8[np.ndarray, "*v t h w 3"]]:
    """Returns the frames of one clip by modality, as an evaluation sees them; the label is not read.

    Several views, `config.eval.clips` times `config.eval.crops`, get an axis of their own.
    """
    count, size = _frame_count(clip, config, STREAMS[config.modality]), config.clip.size
    numbers = view_frames(count, config.clip.frames, config.eval.clips)  # v t
    crops = evaluation_transforms(config)
    loaded = {}
    for modality in STREAMS[config.modality]:
        frames = np.empty((len(numbers), len(crops), config.clip.frames, size, size, 3), np.uint8)  # v c t h w 3
        _load_frames(clip, modality, numbers, crops, config, frames)
        merged = frames.reshape(-1, *frames.shape[2:])  # (v c) t h w 3
        loaded[modality] = merged if len(merged) > 1 else merged[0]
    return loaded


def _prefetched(batches: grain.MapDataset[Batch], config: ConfigDict) -> grain.IterDataset[Batch]:
    """Makes `config.data.workers` batches at a time, each in a thread of its own; with 0, each on demand."""
    workers = config.data.workers
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers))


def _load_training_clip(
    clip: ClipRecord, record: int, epoch: int, config: ConfigDict, out: dict[str, UInt8[np.ndarray, "1 1 t h w 3"]]
) -> None:
    rng = np.random.default_rng([config.seed, epoch, record])
    modalities = training_modalities(config)
    count = _frame_count(clip, config, modalities)
    numbers = sample_frames(count, config.clip.frames, rng)[None]  # 1 t
    transforms = dict.fromkeys(modalities, draw_transform(config, rng))
    if config.data.transforms.reference_separate_draws:
        transforms |= {modality: draw_transform(config, rng) for modality in modalities[1:]}
    for modality, transform in transforms.items():
        _load_frames(clip, modality, numbers, [transform], config, out[modality])


def _example(frames: dict[str, np.ndarray], label: int, record: int) -> Batch:
    return {"frames": frames, "label": np.int32(label), "record": np.int32(record), "mask": np.bool_(record >= 0)}


def _frame_count(clip: ClipRecord, config: ConfigDict, modalities: Sequence[str]) -> int:
    """Returns the number of frames that all modalities have: they are sampled at the same frame numbers."""
    counts = {modality: len(clip.frames.get(modality, ())) for modality in modalities}
    for modality, count in counts.items():
        if not count:
            raise ValueError(f"clip {clip.name}: no {modality} frames, which config.modality={config.modality} needs")
    return min(counts.values())


def _load_frames(
    clip: ClipRecord,
    modality: str,
    numbers: Int[np.ndarray, "v t"],
    crops: Sequence[ClipTransform],
    config: ConfigDict,
    out: UInt8[np.ndarray, "v c t h w 3"],
) -> None:
    """Decodes every frame of a clip once, for all views v and crops c that show it."""
    encoded, settings, scratch = clip.frames[modality], config.data.depth, Scratch()
    colour = functools.partial(colour_depth, settings=settings, scratch=scratch)
    for number in np.unique(numbers).tolist():
        try:
            frame = crop_person(decode_frame(encoded[number], modality, scratch), settings)
        except ValueError as error:
            advice = "restore the frame, or build the data set again without the clip"
            raise ValueError(f"clip {clip.name}, frame {number} (counted from 0): {error}; {advice}") from error
        (view, t), *repeats = np.argwhere(numbers == number)  # a short clip repeats frames
        for crop, transform in enumerate(crops):
            transform(frame, out[view, crop, t], colour, scratch)
        for other_view, other_t in repeats:
            out[other_view, :, other_t] = out[view, :, t]
