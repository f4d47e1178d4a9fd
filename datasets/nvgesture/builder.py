"""TFDS builder of `nvgesture`."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import FRAME_SUFFIXES, ClipSpec, FrameKind, FrameRange, frame_bounds, is_video
from rgbd_jax.ingest.discovery import RawClips, check_folder, check_splits, complete, locator
from rgbd_jax.ingest.problems import LabelError, Problem, RawDataError, bad_clip, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, find_lists, read_clips, read_lists
from rgbd_jax.modalities import MODALITIES

_CLASSES = 25
_CLASS_NAMES = tuple(f"class_{number:02d}" for number in range(1, _CLASSES + 1))  # as its folders name them
_SENSORS = {"rgb": "color", "depth": "depth"}  # as the lists name them
_VIDEOS = "Video_data"
_LST = "nvgesture_{}_correct_cvpr2016_v2.lst"
_SPLITS = {"train": "train", "test": "validation"}  # the data set's own evaluation split, as the reference uses it
_GESTURE_FRAMES = 80  # of every gesture in the published lists; recordings are longer


class NvGesture(RawClipsBuilder):
    """NVIDIA Dynamic Hand Gesture, as it comes or as frames in the layout of the reference.

    As it comes: `RAW/Video_data/class_01/subject1_r0/{sk_color,sk_depth}.avi` and the two lists
    `RAW/nvgesture_{train,test}_correct_cvpr2016_v2.lst`, which give the frames of the gesture in a recording.

    As frames: `RAW/rgb/CLIP/000000.jpg` and so on, the same under `RAW/depth`, and split lists in
    `RAW/dataset_splits`, or one pair of them for each modality in `RAW/dataset_splits/{rgb,depth}`.

    Either way only the frames of the gesture are used: whole recordings are refused.
    """

    name = "nvgesture"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        check_folder(raw_dir, f"{_VIDEOS}/ or rgb/ and depth/")
        return _clips_of_videos(raw_dir) if (raw_dir / _VIDEOS).is_dir() else _clips_of_frames(raw_dir)

    @staticmethod
    def read_frames(clip: ClipSpec, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns the encoded frames of a gesture; errors name the line of the list."""
        try:
            return RawClipsBuilder.read_frames(clip, kinds)
        except RawDataError as error:
            problems = [dataclasses.replace(fault, where=f"{clip.where}: {fault.where}") for fault in error.problems]
            raise RawDataError(problems) from error


def _clips_of_videos(raw_dir: Path) -> RawClips:
    problems: list[Problem] = []
    splits = {}
    for folder, split in _SPLITS.items():
        file = raw_dir / _LST.format(folder)
        if not file.is_file():
            raise bad_data(file, f"no such list; without it the frames of the gestures in {_VIDEOS}/ are unknown")
        splits[split] = read_clips(file, functools.partial(_parse_line, raw_dir=raw_dir, split=folder), split, problems)
    return check_splits(MODALITIES, _CLASS_NAMES, splits, _check_videos, problems)


def _parse_line(line: str, where: str, raw_dir: Path, split: str) -> ClipSpec:
    """Returns the gesture of a line of a .lst list, named "SPLIT/class_01/subject13_r0" as in the reference's lists.

    A line holds blank- or tab-separated fields: `path:./Video_data/class_01/subject13_r0`, the video and the frames of
    each sensor, such as `color:sk_color:138:218` (the frame after the last one is 218), and `label:1`, counted from 1.
    """
    fields = dict(field.partition(":")[::2] for field in line.split())
    missing = [key for key in ("path", *_SENSORS.values(), "label") if not fields.get(key)]
    if missing:
        expected = " and ".join(f"{key}:…" for key in missing)
        raise ValueError(f"expected a field {expected}, found none in {line!r}")
    path, label = PurePosixPath(fields["path"]), fields["label"]
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise ValueError(f"expected a path such as ./Video_data/class_01/subject13_r0, found {str(path)!r} in {line!r}")
    if not re.fullmatch("[0-9]+", label) or not 1 <= int(label) <= _CLASSES:
        raise LabelError(f"expected a label from 1 to {_CLASSES}, found {label!r} in {line!r}")
    frames = {}
    for modality, sensor in _SENSORS.items():
        match = re.fullmatch(r"(\w+):([0-9]+):([0-9]+)", fields[sensor])
        if match is None or int(match[2]) >= int(match[3]):
            expected = f"expected {sensor}:VIDEO:START:END with START before END"
            raise ValueError(f"{expected}, found '{sensor}:{fields[sensor]}' in {line!r}")
        video, first = raw_dir / path / f"{match[1]}.avi", int(match[2])
        frames[modality] = FrameRange(video, first, int(match[3]) - first)
    counts = {_SENSORS[modality]: each.count for modality, each in frames.items()}
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{count} of {sensor}" for sensor, count in counts.items())
        raise ValueError(f"expected as many frames of each sensor, found {found} in {line!r}")
    return ClipSpec(f"{split}/{'/'.join(path.parts[-2:])}", int(label) - 1, where, frames=frames)


def _check_videos(clip: ClipSpec) -> Mapping[str, FrameRange]:
    paths = {modality: frames.path for modality, frames in clip.frames.items()}
    complete(clip, {modality: path if path.is_file() else None for modality, path in paths.items()}, paths)
    for frames in clip.frames.values():
        if frames.stop is not None and frame_bounds(frames.path)[1] < frames.stop:
            what = f"{frames.path} is shorter than the {frames.stop} frames that this line needs"
            raise bad_clip(clip.where, what, "missing")
    return clip.frames


def _clips_of_frames(raw_dir: Path) -> RawClips:
    roots = {modality: raw_dir / modality for modality in MODALITIES if (raw_dir / modality).is_dir()}
    if not roots:
        raise FileNotFoundError(f"{raw_dir}: holds none of {_VIDEOS}/, rgb/ and depth/; expected raw clips there")
    lists = find_lists(raw_dir / LISTS_FOLDER, tuple(roots))
    if not lists:
        raise bad_data(raw_dir / LISTS_FOLDER, "expected split lists (train.txt, valid.txt), found none")
    find = locator(roots, pattern="%06d")

    def locate(clip: ClipSpec) -> Mapping[str, FrameRange]:
        """Refuses whole recordings, of which the gesture is only a part."""
        frames, count = find(clip), clip.frame_count or 0
        for path in (each.path for each in frames.values()):
            if is_video(path):
                expected = f"a folder of the gesture's frames, or {_VIDEOS}/ with its .lst lists"
                raise bad_clip(path, f"is a whole recording; expected {expected}")
            if count > _GESTURE_FRAMES:
                expected = f"at most {_GESTURE_FRAMES} frames, as many as a gesture has"
                raise bad_clip(clip.where, f"expected {expected}, found {count}: a whole recording")
            held = sum(file.suffix.lower() in FRAME_SUFFIXES for file in path.iterdir())
            if held > max(count, _GESTURE_FRAMES):
                what = f"holds {held} frames, more than the {_GESTURE_FRAMES} of a gesture"
                raise bad_clip(path, f"{what}: expected those of the gesture alone")
        return frames

    problems: list[Problem] = []
    splits = read_lists(lists, problems, _CLASSES)
    return check_splits(roots, _CLASS_NAMES, splits, locate, problems)
