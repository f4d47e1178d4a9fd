"""From encoded clips to batches on the host: decode the sampled frames, transform them, batch.

Every random draw is a function of (config.seed, epoch, clip), and the order of the clips one of (config.seed, epoch),
so that batches do not depend on the number of threads or of processes.
"""

from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import depth, sampling, transforms
from rgbd_jax.data.codec import decode_frame
from rgbd_jax.data.source import ClipRecord, ClipSource
from rgbd_jax.modalities import STREAMS

Batch = dict[str, Any]


def steps_per_epoch(source: ClipSource, batch_size: int) -> int:
    """Counts the training batches of one epoch; the remainder of the clips is left out, another one every epoch.

    Args:
      source: Training clips.
      batch_size: Clips in a batch, over all shards.

    Returns:
      Number of batches, at least 1.

    Raises:
      ValueError: There are fewer clips than `batch_size`.
    """
    if len(source) < batch_size:
        raise ValueError(
            f"the training split has {len(source)} clips, fewer than one batch of {batch_size}: "
            f"set config.train.batch_size to {len(source)} or less, or add clips"
        )
    return len(source) // batch_size


def train_batches(
    source: ClipSource, config: ConfigDict, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Starts the endless stream of training batches.

    Each epoch is a fresh shuffle of all clips, of which every shard takes its block of each batch: the batches over
    all shards, and the order of the clips in them, are the same for every number of shards.

    Args:
      source: Training clips.
      config: The experiment's settings: `seed`, `stream`, `clip`, `data.transforms`, `data.depth` and `data.workers`.
      batch_size: Clips in a batch of this shard.
      shard_index: Which shard this is, counted from 0 (one a process).
      shard_count: Number of shards.

    Returns:
      An iterator of batches: "frames" (modality to uint8[b t h w 3]), "label" int32[b], "record" (position in
      `source`) int32[b], "mask" bool[b], all true. Its `get_state()` is a small JSON-able dict, and `set_state()`
      continues exactly after the batch that was last taken.

    Raises:
      ValueError: A setting cannot be used, or there are fewer clips than a batch over all shards; from the iterator:
        a clip cannot be read.
    """
    loader = _Loader(source, config, training=True)
    steps = steps_per_epoch(source, batch_size * shard_count)
    clips = steps * batch_size * shard_count  # of an epoch, over all shards
    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle()[:clips].repeat(None)  # anew every epoch
    _check_shard(shard_index, shard_count)
    block = slice(shard_index * batch_size, (shard_index + 1) * batch_size)

    def load(step: int, records: np.ndarray) -> Batch:
        return _stacked([loader(int(record), epoch=step // steps) for record in records[block]])

    whole_batches = order.batch(batch_size * shard_count, drop_remainder=True)
    return iter(_ahead(whole_batches.map_with_index(load), config))


def skip_batches(batches: grain.DatasetIterator[Batch], count: int) -> None:
    """Moves a fresh stream of training batches on, as if `count` batches had been taken, without reading them."""
    batches.set_state({"next_index": count})


def eval_batches(
    source: ClipSource, config: ConfigDict, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> grain.IterDataset[Batch]:
    """Gives every clip exactly once over all shards, in order, with evaluation's frames and transform.

    Args:
      source: Clips to evaluate.
      config: The experiment's settings, as for `train_batches`, and `eval`.
      batch_size: Clips in a batch of this shard.
      shard_index: Which shard this is, counted from 0.
      shard_count: Number of shards.

    Returns:
      An iterable of batches like those of `train_batches`, `eval_steps` of them on every shard. The last one is
      filled up with black clips of label 0 and record -1, whose "mask" is false. With several views of a clip
      (`config.eval.clips` times `config.eval.crops`, crops side by side) "frames" holds uint8[b v t h w 3].

    Raises:
      ValueError: A setting cannot be used, or there are no clips; from the iterator: a clip cannot be read.
    """
    loader = _Loader(source, config, training=False)
    places = eval_steps(source, batch_size * shard_count) * batch_size * shard_count
    _check_shard(shard_index, shard_count)
    shard = grain.MapDataset.range(places)[shard_index::shard_count]
    examples = shard.map(lambda place: loader(int(place)) if place < len(source) else loader.padding())
    return _ahead(examples.batch(batch_size, drop_remainder=True), config)  # no remainder is left


def views(batch: Batch) -> list[Batch]:
    """Takes a batch of `eval_batches` apart into one batch for each view, all of the same clips."""
    (count,) = {frames.shape[1] if frames.ndim == 6 else 0 for frames in batch["frames"].values()}
    if not count:
        return [batch]
    return [{**batch, "frames": {m: frames[:, view] for m, frames in batch["frames"].items()}} for view in range(count)]


def eval_steps(source: ClipSource, batch_size: int) -> int:
    """Counts the batches that evaluate every clip once.

    Args:
      source: Clips to evaluate.
      batch_size: Clips in a batch, over all shards.

    Returns:
      Number of batches, at least 1; the last may be partly filled.

    Raises:
      ValueError: There are no clips.
    """
    if not len(source):
        raise ValueError("the evaluation split has no clips")
    return -(-len(source) // batch_size)


def load_clip(clip: ClipRecord, config: ConfigDict) -> dict[str, UInt8[np.ndarray, "*v t h w 3"]]:
    """Returns the frames of one clip as an evaluation sees them: modality -> frames, of several views v of them each.

    Args:
      clip: The clip; its label is not read.
      config: The experiment's settings, as for `eval_batches`.

    Raises:
      ValueError: A setting cannot be used, the clip lacks a modality, or a frame cannot be decoded.
    """
    return _Loader([clip], config, training=False)(0)["frames"]


def _check_shard(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"shard_index is {index}; expected 0 to {count - 1}, as shard_count is {count}")


def _stacked(examples: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *values: np.stack(values), *examples)


def _ahead(batches: grain.MapDataset[Batch], config: ConfigDict) -> grain.IterDataset[Batch]:
    """Makes `config.data.workers` batches at a time, each in a thread of its own; with 0, each when it is asked for."""
    workers = config.data.workers
    if workers < 0:
        raise ValueError(f"config.data.workers is {workers}; expected a number of threads, or 0 to load without one")
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)
    return batches.to_iter_dataset(options)


class _Loader:
    """Loads single clips: the frames of one stream, ready for the network."""

    def __init__(self, source: ClipSource, config: ConfigDict, *, training: bool):
        """Takes all settings from `config` and checks them.

        Raises:
          ValueError: A setting cannot be used.
        """
        if config.modality not in STREAMS:
            raise ValueError(f"config.modality is {config.modality!r}; expected one of {', '.join(STREAMS)}")
        transforms.check_settings(config.data.transforms)
        depth.check_settings(config.data.depth)
        crops = transforms.evaluation_transforms(config.data.transforms, config.clip.size, config.eval.crops)
        if config.eval.clips < 1:
            raise ValueError(f"config.eval.clips is {config.eval.clips}; at least 1 view of a clip is needed")
        self._views = config.eval.clips * len(crops)
        self._crops = crops
        self._source = source
        self._config = config.copy_and_resolve_references()
        self._training = training

    def __call__(self, record: int, epoch: int = 0) -> Batch:
        """Loads clip number `record` as one example, an entry of a batch.

        Raises:
          ValueError: The clip lacks a modality or has no frames, or a frame cannot be decoded.
        """
        config = self._config
        clip = self._source[record]
        rng = np.random.default_rng([config.seed, epoch, record]) if self._training else None
        modalities = STREAMS[config.modality]
        for modality in modalities:
            if not len(clip.frames.get(modality, ())):
                raise ValueError(
                    f"clip {clip.name}: no {modality} frames, which config.modality={config.modality} needs"
                )
        # All modalities at the same frame numbers.
        count = min(len(clip.frames[modality]) for modality in modalities)
        if rng is None:
            numbers = sampling.view_frames(count, config.clip.frames, config.eval.clips)  # v t
            frames = {modality: self._frames(clip, modality, numbers, self._crops) for modality in modalities}
            return _example(frames, clip.label, record, mask=True)
        numbers = sampling.sample_frames(count, config.clip.frames, rng)[None]
        frames = {}
        transform = transforms.draw_transform(config.data.transforms, config.clip.size, rng)
        for modality in modalities:
            if frames and config.data.transforms.reference_separate_draws:
                transform = transforms.draw_transform(config.data.transforms, config.clip.size, rng)
            frames[modality] = self._frames(clip, modality, numbers, (transform,))
        return _example(frames, clip.label, record, mask=True)

    def padding(self) -> Batch:
        """An example that fills up a batch and counts for nothing."""
        clip = self._config.clip
        views = (self._views,) if self._views > 1 else ()
        black = np.zeros((*views, clip.frames, clip.size, clip.size, 3), np.uint8)
        return _example(dict.fromkeys(STREAMS[self._config.modality], black), label=0, record=-1, mask=False)

    def _frames(
        self, clip: ClipRecord, modality: str, numbers: np.ndarray, crops: Sequence[transforms.ClipTransform]
    ) -> UInt8[np.ndarray, "*v t h w 3"]:
        """Decodes every frame of `numbers` (v t) once; several views, v times the crops, get an axis of their own."""
        size = crops[0].size
        frames = np.empty((len(numbers), len(crops), numbers.shape[1], size, size, 3), np.uint8)
        for number in np.unique(numbers):
            frame = self._decode(clip, modality, int(number))
            (view, place), *again = np.argwhere(numbers == number)  # a short clip repeats frames
            for crop, transform in enumerate(crops):
                transform(frame, out=frames[view, crop, place], colour=self._colour)
            for other_view, other_place in again:
                frames[other_view, :, other_place] = frames[view, :, place]
        merged = frames.reshape(-1, *frames.shape[2:])
        return merged if len(merged) > 1 else merged[0]

    def _colour(self, frame: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        return depth.colour_depth(frame, self._config.data.depth) if frame.ndim == 2 else frame

    def _decode(self, clip: ClipRecord, modality: str, number: int) -> np.ndarray:
        """Decodes one frame to uint8[h w 3], single-channel depth to the part of it that is used."""
        encoded = clip.frames[modality][number]
        frame = decode_frame(encoded, modality)
        if frame is None:
            raise ValueError(
                f"clip {clip.name}: {modality} frame {number} (counted from 0) is not a readable JPEG or PNG "
                f"({len(encoded)} bytes); restore the frame, or build the data set anew without the clip"
            )
        if modality != "depth":
            return frame
        if frame.ndim == 2:
            return depth.cut_depth(frame, self._config.data.depth)
        if frame.dtype != np.uint8:
            raise ValueError(
                f"clip {clip.name}: {modality} frame {number} (counted from 0) has several channels of {frame.dtype}; "
                "expected one channel of 8 or 16 bit (depth), or three of 8 bit (depth that is already coloured)"
            )
        return frame


def _example(frames: dict[str, np.ndarray], label: int, record: int, *, mask: bool) -> Batch:
    return {"frames": frames, "label": np.int32(label), "record": np.int32(record), "mask": np.bool_(mask)}
