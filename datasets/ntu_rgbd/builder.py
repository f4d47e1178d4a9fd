"""TFDS builder of `ntu_rgbd`."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.data.frames import crop_person, encode_depth, encode_jpeg, person_box
from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import (
    COLOUR,
    FRAME_SUFFIXES,
    ClipSpec,
    FrameKind,
    FrameRange,
    frame_files,
    least_count,
    read_frame,
    video_frames,
)
from rgbd_jax.ingest.discovery import RawClips, check_folder, complete
from rgbd_jax.ingest.problems import Problem, bad_clip
from rgbd_jax.ingest.protocols import Protocol, find_protocol_clips
from rgbd_jax.ingest.videos import is_video

CLASS_NAMES = tuple((Path(__file__).parent / "classes.txt").read_text().splitlines())
"""The actions of NTU RGB+D 120; the first 60 are those of NTU RGB+D 60."""

_VIDEOS = "nturgb+d_rgb"
_FRAMES = "Images"
_DEPTH = "nturgb+d_depth_masked"
_RGB_SUFFIX = "_rgb"
_SIZE = (320, 240)  # width and height that colour frames are kept in, pixels
_LARGEST = (960, 540)  # of frames that are cropped already: half of the camera's
_PERSON_CROP = ConfigDict({"encoding": "reference_wrapped", "reference_person_crop": True})  # of config.data.depth

CLASSES_60, _CLASSES_120 = 60, 120
_FIRST_SETUP_OF_120 = 18
_SUBJECTS_60 = {1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38}
_SUBJECTS_120 = _SUBJECTS_60 | {
    *(45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103)
}


def parse_name(name: str) -> tuple[int, ...]:
    """Returns set-up, camera, subject, replication and action of "S001C001P001R001A001", all counted from 1."""
    match = re.fullmatch(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})", name)
    if match is None:
        raise ValueError(f"expected a name such as S001C001P001R001A001, found {name!r}")
    return tuple(map(int, match.groups()))


def _rule(trains: Callable[[int, int, int], bool], *, of_60: bool) -> Callable[[str], str | None]:
    """Makes the rule of a protocol of whether a set-up, camera and subject train."""

    def split_of(name: str) -> str | None:
        setup, camera, subject, _, _ = parse_name(name)
        if of_60 and setup >= _FIRST_SETUP_OF_120:
            return None
        return "train" if trains(setup, camera, subject) else "validation"

    return split_of


_SIZES_CS, _SIZES_CV = {"train": 40320, "validation": 16560}, {"train": 37920, "validation": 18960}
PROTOCOLS = (
    Protocol("cs", ("@CS",), CLASSES_60, _rule(lambda s, c, subject: subject in _SUBJECTS_60, of_60=True), _SIZES_CS),
    Protocol("cv", ("@CV",), CLASSES_60, _rule(lambda s, camera, p: camera != 1, of_60=True), _SIZES_CV),
    Protocol("csub", ("@CSub",), _CLASSES_120, _rule(lambda s, c, subject: subject in _SUBJECTS_120, of_60=False)),
    Protocol("cset", ("@CSet",), _CLASSES_120, _rule(lambda setup, c, p: setup % 2 == 0, of_60=False)),
)
"""The first two are those of NTU RGB+D 60, the others those of NTU RGB+D 120."""


class NtuRgbd(RawClipsBuilder):
    """NTU RGB+D 60 and 120, cropped around the person.

    RGB is `RAW/nturgb+d_rgb/NAME_rgb.avi` or frames that are cropped already, `RAW/Images/NAME_rgb/000001.jpg` and so
    on, which are taken where both are there; depth is `RAW/nturgb+d_depth_masked/NAME/MDepth-00000001.png` and so on.
    Clips may lie in folders of set-ups.
    """

    name = "ntu_rgbd"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        roots = _roots(raw_dir)
        problems: list[Problem] = []
        paths = {modality: _clip_paths(root, problems) for modality, root in roots.items()}
        on_disk = paths.get("depth", {}) | paths.get("rgb", {})
        of_120 = any(_label_of(name) >= CLASSES_60 for name in on_disk)

        def locate(clip: ClipSpec) -> Mapping[str, FrameRange]:
            found = {modality: each.get(clip.name) for modality, each in paths.items()}
            expected = {modality: root / clip.name for modality, root in roots.items()}
            return _frame_ranges(clip, complete(clip, found, expected))

        class_names = CLASS_NAMES if of_120 else CLASS_NAMES[:CLASSES_60]
        protocols = [protocol for protocol in PROTOCOLS if of_120 or protocol.num_classes == CLASSES_60]
        raw = find_protocol_clips(raw_dir, protocols, class_names, problems, on_disk, locate, _name_of, _label_of)
        return dataclasses.replace(raw, metadata={**raw.metadata, "person_cropped": True})

    @staticmethod
    def read_frames(clip: ClipSpec, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Reads a clip, cropped around the person frame by frame, as the reference prepares and loads it.

        RGB becomes JPEG of 320x240, depth PNG of at most that, in the kind it had. A video of the whole scene is
        cropped with the depth frames that go with it.
        """
        rgb, depth = clip.frames.get("rgb"), clip.frames.get("depth")
        encoded: dict[str, list[bytes]] = {modality: [] for modality in clip.frames}
        depth_frames = (read_frame(file, kinds["depth"])[1] for file in (frame_files(depth) if depth else ()))
        if depth and rgb and is_video(rgb.path):
            for number, frame in enumerate(video_frames(rgb)):
                if (image := next(depth_frames, None)) is None:
                    what = f"expected as many frames as {rgb.path.name} has, found only {number}"
                    raise bad_clip(depth.path, what, "unpaired")
                # In the higher 8 bits, as in the reference, whatever is nearer than 256 units is nobody.
                mask = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
                left, top, right, bottom = person_box(mask, frame.shape[1::-1])
                encoded["rgb"].append(encode_jpeg(cv2.resize(frame[top:bottom, left:right], _SIZE)))
                encoded["depth"].append(_crop_depth(image))
            return encoded
        for file in frame_files(rgb) if rgb else ():
            content, image = read_frame(file, COLOUR)
            height, width = image.shape[:2]
            if width > _LARGEST[0] or height > _LARGEST[1]:
                expected = f"a frame that is cropped around the person, at most {_LARGEST[0]}x{_LARGEST[1]}"
                raise bad_clip(file, f"is {width}x{height}; expected {expected}")
            encoded["rgb"].append(content if (width, height) == _SIZE else encode_jpeg(cv2.resize(image, _SIZE)))
        if depth:
            encoded["depth"] = [_crop_depth(image) for image in depth_frames]
        return encoded


def _roots(raw_dir: Path) -> dict[str, Path]:
    expected = f"{_VIDEOS}/ or {_FRAMES}/, and {_DEPTH}/"
    check_folder(raw_dir, expected)
    candidates = (("rgb", _VIDEOS), ("rgb", _FRAMES), ("depth", _DEPTH))
    roots = {modality: raw_dir / folder for modality, folder in candidates if (raw_dir / folder).is_dir()}
    if not roots:
        raise FileNotFoundError(f"{raw_dir}: expected {expected} in it, found none of them")
    if "depth" not in roots and roots["rgb"].name == _VIDEOS:
        why = f"the videos in {_VIDEOS}/ are cropped around the person, and the masked depth shows where they are"
        raise FileNotFoundError(f"{raw_dir / _DEPTH}: no such folder; {why}")
    return roots


def _clip_paths(root: Path, problems: list[Problem]) -> dict[str, Path]:
    """Returns name to folder or video of all clips below a folder, which may lie in folders of set-ups or archives."""
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(root):
        clips = {name for name in folders if re.match("S[0-9]+C", name)}
        folders[:] = sorted(name for name in folders if name not in clips and not name.startswith("."))
        visible = [Path(name) for name in files if not name.startswith(".")]
        if any(file.suffix.lower() in FRAME_SUFFIXES for file in visible):
            what = "holds frames, but is not named as a clip, such as S001C001P001R001A001"
            problems.append(Problem(folder, what))
        for name in sorted(clips.union(str(file) for file in visible if is_video(file))):
            path = Path(folder, name)
            try:
                _label_of(clip := path.stem.removesuffix(_RGB_SUFFIX))
            except ValueError as error:
                problems.append(Problem(str(path), str(error), "mislabelled"))
                continue
            if (first := found.setdefault(clip, path)) is not path:
                problems.append(Problem(str(path), f"holds {clip} a second time; the first is {first}", "duplicated"))
    return found


def _name_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".avi").removesuffix(_RGB_SUFFIX)


def _label_of(name: str) -> int:
    action = parse_name(name)[-1]
    if not 1 <= action <= len(CLASS_NAMES):
        raise ValueError(f"expected an action from A001 to A{len(CLASS_NAMES)}, found {name!r}")
    return action - 1


def _frame_ranges(clip: ClipSpec, paths: Mapping[str, Path]) -> dict[str, FrameRange]:
    """Returns the frames of a clip by modality; depth frames after the last colour frame are not used."""
    count = clip.frame_count
    ranges = {}
    if "rgb" in paths:
        ranges["rgb"] = FrameRange(paths["rgb"], 0 if is_video(paths["rgb"]) else 1, count)
        if not is_video(paths["rgb"]):
            count = len(frame_files(ranges["rgb"]))
    if "depth" in paths:
        ranges["depth"] = FrameRange(paths["depth"], 1, count)
        if count is None and "rgb" in paths:
            least, found = least_count(paths["rgb"]), len(frame_files(ranges["depth"]))
            if found < least:
                what = f"expected as many frames as {paths['rgb'].name} has, at least {least}, found {found}"
                raise bad_clip(paths["depth"], what, "unpaired")
    return ranges


def _crop_depth(depth: np.ndarray) -> bytes:
    return encode_depth(np.ascontiguousarray(crop_person(depth, _PERSON_CROP)))
