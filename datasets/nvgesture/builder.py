"""TFDS builder of `nvgesture`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rgbd_jax.datasets.nvgesture.lst import Gesture, read_lst

from rgbd_jax.ingest.clip_files import (
    FRAME_SUFFIXES,
    FrameKind,
    Recording,
    clip_name,
    find_clip,
    frame_bounds,
    is_video,
)
from rgbd_jax.ingest.discovery import (
    Candidate,
    RawClip,
    RawClips,
    check_splits,
    complete,
    find_modalities,
    without_duplicates,
)
from rgbd_jax.ingest.problems import Problem, RawDataError, in_split
from rgbd_jax.ingest.raw_clips import RawClipsBuilder
from rgbd_jax.ingest.reference_lists import LISTS_FOLDER, find_lists, read_lists
from rgbd_jax.ingest.splits import SPLIT_ALIASES
from rgbd_jax.modalities import MODALITIES

_CLASS_NAMES = tuple(f"class_{number:02d}" for number in range(1, 26))  # as the data set's own folders name them
_VIDEOS = "Video_data"
_LST = {split: f"nvgesture_{split}_correct_cvpr2016_v2.lst" for split in ("train", "test")}
_SPLITS = {"train": "train", "test": "validation"}  # the data set's own evaluation split, as the reference uses it
_FRAME_PATTERN = "%06d.jpg"
_GESTURE_FRAMES = 80  # of every gesture in the published lists; recordings are longer


class NvGesture(RawClipsBuilder):
    """NVIDIA Dynamic Hand Gesture, as it comes or as frames in the layout of the reference.

    As it comes: `RAW/Video_data/class_01/subject1_r0/{sk_color,sk_depth}.avi` and the two lists
    `RAW/nvgesture_{train,test}_correct_cvpr2016_v2.lst`, which say where in a recording the gesture is.

    As frames: `RAW/rgb/CLIP/000000.jpg` and so on, the same under `RAW/depth`, and split lists in
    `RAW/dataset_splits`, or one pair of them for each modality in `RAW/dataset_splits/{rgb,depth}`.

    Either way only the frames of the gesture are used: whole recordings are refused.
    """

    name = "nvgesture"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        if (raw_dir / _VIDEOS).is_dir():
            return _clips_of_videos(raw_dir)
        return _clips_of_frames(raw_dir)

    @staticmethod
    def read_frames(clip: RawClip, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns the encoded frames of a gesture; names the line of the list where they cannot be read."""
        try:
            return RawClipsBuilder.read_frames(clip, kinds)
        except RawDataError as error:
            problems = [dataclasses.replace(fault, where=f"{clip.where}: {fault.where}") for fault in error.problems]
            raise RawDataError(problems) from error


def _clips_of_videos(raw_dir: Path) -> RawClips:
    absent = [str(raw_dir / name) for name in _LST.values() if not (raw_dir / name).is_file()]
    if absent:
        what = f"no such list, and without it nothing says where in the recordings of {_VIDEOS}/ the gestures are"
        raise RawDataError([Problem(file, what, one_clip=False) for file in absent])
    problems: list[Problem] = []
    gestures: dict[str, Gesture] = {}  # by their line
    candidates = {}
    for folder, file in _LST.items():
        lines, faults = read_lst(raw_dir / file, len(_CLASS_NAMES))
        gestures |= {gesture.where: gesture for gesture in lines}
        # Names are those of the reference's lists.
        named = [Candidate(f"{folder}/{gesture.name}", gesture.label, None, gesture.where) for gesture in lines]
        candidates[_SPLITS[folder]] = without_duplicates(named, faults)
        problems += in_split(_SPLITS[folder], faults)

    def locate(candidate: Candidate) -> dict[str, Recording]:
        return _gesture_recordings(raw_dir, gestures[candidate.where])

    splits = check_splits(candidates, locate, problems)
    return RawClips(MODALITIES, _CLASS_NAMES, splits, problems)


def _gesture_recordings(raw_dir: Path, gesture: Gesture) -> dict[str, Recording]:
    """Returns the frames of a gesture by modality; raises RawDataError if a video is missing or too short."""
    videos = {modality: raw_dir / frames.video for modality, frames in gesture.ranges.items()}
    complete(gesture.where, {modality: path if path.is_file() else None for modality, path in videos.items()}, videos)
    for modality, frames in gesture.ranges.items():
        if frame_bounds(videos[modality])[1] < frames.stop:
            what = f"{videos[modality]} is shorter than the {frames.stop} frames that this line asks for"
            raise RawDataError([Problem(gesture.where, what, kind="missing")])
    return {
        modality: Recording(videos[modality], first=frames.first, count=frames.stop - frames.first)
        for modality, frames in gesture.ranges.items()
    }


def _clips_of_frames(raw_dir: Path) -> RawClips:
    modalities = find_modalities(raw_dir)
    lists = find_lists(raw_dir / LISTS_FOLDER, modalities)
    if not lists:
        names = ", ".join(f"{alias}.txt" for aliases in SPLIT_ALIASES.values() for alias in aliases)
        what = f"expected split lists ({names}), found none"
        raise RawDataError([Problem(str(raw_dir / LISTS_FOLDER), what, one_clip=False)])
    problems: list[Problem] = []

    def locate(candidate: Candidate) -> dict[str, Recording]:
        found = {modality: find_clip(raw_dir / modality, candidate.name) for modality in modalities}
        expected = {modality: raw_dir / modality / candidate.name for modality in modalities}
        paths = complete(candidate.where, found, expected)
        for path in paths.values():
            _check_that_it_is_the_gesture(candidate, path)
        return {
            modality: Recording(path, count=candidate.frame_count, pattern=_FRAME_PATTERN)
            for modality, path in paths.items()
        }

    candidates = read_lists(lists, len(_CLASS_NAMES), clip_name, problems)
    splits = check_splits(candidates, locate, problems)
    return RawClips(modalities, _CLASS_NAMES, splits, problems)


def _check_that_it_is_the_gesture(candidate: Candidate, path: Path) -> None:
    """Makes sure that a clip is not a whole recording, of which the gesture is only a part."""
    count = candidate.frame_count or 0
    if is_video(path):
        what = f"is a whole recording; expected a folder of the gesture's frames, or {_VIDEOS}/ with its .lst lists"
        raise RawDataError([Problem(str(path), what)])
    if count > _GESTURE_FRAMES:
        what = f"expected at most {_GESTURE_FRAMES} frames, as many as a gesture has, found {count}: a whole recording"
        raise RawDataError([Problem(candidate.where, what)])
    held = sum(file.suffix.lower() in FRAME_SUFFIXES for file in path.iterdir())
    if held > max(count, _GESTURE_FRAMES):
        what = f"holds {held} frames, more than the {_GESTURE_FRAMES} of a gesture: expected those of the gesture alone"
        raise RawDataError([Problem(str(path), what)])
