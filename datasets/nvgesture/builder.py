"""TFDS builder of `nvgesture`."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import ClipSpec, FrameRange
from rgbd_jax.ingest.discovery import RawClips, check_clips, check_folder, complete, locator
from rgbd_jax.ingest.problems import Problem, bad_clip, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, label_from_1, read_clips, read_lists, relative_path
from rgbd_jax.ingest.videos import is_video
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


def _clips_of_videos(raw_dir: Path) -> RawClips:
    problems: list[Problem] = []
    splits = {}
    for folder, split in _SPLITS.items():
        file = raw_dir / _LST.format(folder)
        if not file.is_file():
            raise bad_data(file, f"no such list; without it the frames of the gestures in {_VIDEOS}/ are unknown")
        splits[split] = read_clips(file, functools.partial(_parse_line, raw_dir=raw_dir, split=folder), split, problems)
    return RawClips(_CLASS_NAMES, check_clips(splits, _find_videos, problems), problems)


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
    path, label = relative_path(fields["path"]), label_from_1(fields["label"], _CLASSES)
    frames = {}
    for modality, sensor in _SENSORS.items():
        match = re.fullmatch(r"(\w+):([0-9]{1,9}):([0-9]{1,9})", fields[sensor])
        if match is None or int(match[2]) >= int(match[3]):
            expected = f"expected {sensor}:VIDEO:START:END with START before END"
            raise ValueError(f"{expected}, found '{sensor}:{fields[sensor]}' in {line!r}")
        video, first = raw_dir / path / f"{match[1]}.avi", int(match[2])
        frames[modality] = FrameRange(video, first, int(match[3]) - first)
    return ClipSpec(f"{split}/{'/'.join(path.parts[-2:])}", label, where, frames=frames)


def _find_videos(clip: ClipSpec) -> Mapping[str, FrameRange]:
    paths = {modality: frames.path for modality, frames in clip.frames.items()}
    complete(clip, {modality: path if path.is_file() else None for modality, path in paths.items()}, paths)
    return clip.frames


def _clips_of_frames(raw_dir: Path) -> RawClips:
    roots = {modality: raw_dir / modality for modality in MODALITIES if (raw_dir / modality).is_dir()}
    if not roots:
        raise FileNotFoundError(f"{raw_dir}: holds none of {_VIDEOS}/, rgb/ and depth/; expected raw clips there")
    problems: list[Problem] = []
    splits = read_lists(raw_dir / LISTS_FOLDER, problems, _CLASSES)
    if not splits:
        raise bad_data(raw_dir / LISTS_FOLDER, "expected split lists (train.txt, valid.txt), found none")
    find = locator(roots, first=0)

    def locate(clip: ClipSpec) -> Mapping[str, FrameRange]:
        """Refuses whole recordings, of which the gesture is only a part."""
        frames = find(clip)
        for path in (each.path for each in frames.values()):
            if is_video(path):
                expected = f"a folder of the gesture's frames, or {_VIDEOS}/ with its .lst lists"
                raise bad_clip(path, f"is a whole recording; expected {expected}")
            held, used = len(list(path.iterdir())), clip.frame_count or 0
            if max(held, used) > _GESTURE_FRAMES:
                expected = f"at most {_GESTURE_FRAMES}, those of the gesture alone"
                raise bad_clip(path, f"holds {held} frames, of which {clip.where} uses {used}; expected {expected}")
        return frames

    return RawClips(_CLASS_NAMES, check_clips(splits, locate, problems), problems)
