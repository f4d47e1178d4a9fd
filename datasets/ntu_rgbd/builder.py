"""TFDS builder of `ntu_rgbd`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
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
    decode_frame,
    frame_bounds,
    frame_files,
    is_video,
    video_frames,
)
from rgbd_jax.ingest.discovery import RawClips, check_folder, complete
from rgbd_jax.ingest.problems import Problem, bad_clip
from rgbd_jax.ingest.protocols import Layout, find_protocol_clips

from .protocols import CLASSES_60, PROTOCOLS, parse_name

CLASS_NAMES = tuple((Path(__file__).parent / "classes.txt").read_text().splitlines())
"""The actions of NTU RGB+D 120; the first 60 are those of NTU RGB+D 60."""

_VIDEOS = "nturgb+d_rgb"
_FRAMES = "Images"
_DEPTH = "nturgb+d_depth_masked"
_RGB_SUFFIX = "_rgb"
_SIZE = (320, 240)  # width and height that colour frames are kept in, pixels
_LARGEST = (960, 540)  # of frames that are cropped already: half of the camera's
_PERSON_CROP = ConfigDict({"encoding": "reference_wrapped", "reference_person_crop": True})  # of config.data.depth
_NESTING = 2  # folders between these and the clips: of a set-up, or of the archive that it came in


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
        layout = Layout(tuple(roots), class_names, _name_of, _label_of, dict(sorted(on_disk.items())), locate)
        protocols = [protocol for protocol in PROTOCOLS if of_120 or protocol.num_classes == CLASSES_60]
        raw = find_protocol_clips(raw_dir, layout, protocols, problems)
        return dataclasses.replace(raw, metadata={**raw.metadata, "person_cropped": True})

    @staticmethod
    def read_frames(clip: ClipSpec, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Reads a clip, cropped around the person frame by frame, as the reference prepares and loads it.

        RGB becomes JPEG of 320x240, depth PNG of at most that, in the kind it had. A video of the whole scene is
        cropped with the depth frames that go with it.
        """
        rgb, depth = clip.frames.get("rgb"), clip.frames.get("depth")
        encoded: dict[str, list[bytes]] = {modality: [] for modality in clip.frames}
        depth_files = frame_files(depth) if depth else []
        depth_frames = (decode_frame(file, file.read_bytes(), kinds["depth"]) for file in depth_files)
        if rgb and is_video(rgb.path):
            for number, frame in enumerate(video_frames(rgb)):
                if (image := next(depth_frames, None)) is None:
                    what = f"expected as many frames as {rgb.path.name} has, found only {number}"
                    raise bad_clip(depth.path if depth else rgb.path, what, "unpaired")
                # In the higher 8 bits, as in the reference, whatever is nearer than 256 units is nobody.
                mask = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
                left, top, right, bottom = person_box(mask, frame.shape[1::-1])
                encoded["rgb"].append(encode_jpeg(cv2.resize(frame[top:bottom, left:right], _SIZE)))
                encoded["depth"].append(_crop_depth(image))
            return encoded
        for file in frame_files(rgb) if rgb else ():
            content = file.read_bytes()
            image = decode_frame(file, content, COLOUR)
            height, width = image.shape[:2]
            if width > _LARGEST[0] or height > _LARGEST[1]:
                expected = f"a frame that is cropped around the person, at most {_LARGEST[0]}x{_LARGEST[1]}"
                raise bad_clip(file, f"is {width}x{height}; expected {expected}")
            encoded["rgb"].append(content if (width, height) == _SIZE else encode_jpeg(cv2.resize(image, _SIZE)))
        return encoded | ({"depth": [_crop_depth(image) for image in depth_frames]} if depth else {})


def _roots(raw_dir: Path) -> dict[str, Path]:
    """Returns modality to the folder of its clips."""
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
    """Returns name to folder or video of all clips below a folder."""
    found: dict[str, Path] = {}
    folders = [(root, 0)]
    for folder, depth in folders:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        for entry in visible:
            path, is_folder = Path(entry.path), entry.is_dir()
            if is_video(path) or (is_folder and entry.name.startswith("S") and "C" in entry.name):
                name = path.stem.removesuffix(_RGB_SUFFIX)
                try:
                    _label_of(name)
                except ValueError as error:
                    problems.append(Problem(str(path), str(error), "mislabelled"))
                    continue
                if found.setdefault(name, path) != path:
                    what = f"holds {name} a second time; the first is {found[name]}"
                    problems.append(Problem(str(path), what, "duplicated"))
            elif is_folder and depth < _NESTING:
                folders.append((path, depth + 1))
            elif path.suffix.lower() in FRAME_SUFFIXES:
                what = "holds frames, but is not named as a clip, such as S001C001P001R001A001"
                problems.append(Problem(str(folder), what))
                break
    return found


def _name_of(path: str) -> str:
    name = path.rpartition("/")[2].removesuffix(".avi").removesuffix(_RGB_SUFFIX)
    parse_name(name)
    return name


def _label_of(name: str) -> int:
    action = parse_name(name).action
    if not 1 <= action <= len(CLASS_NAMES):
        raise ValueError(f"expected an action from A001 to A{len(CLASS_NAMES)}, found {name!r}")
    return action - 1


def _frame_ranges(clip: ClipSpec, paths: Mapping[str, Path]) -> dict[str, FrameRange]:
    """Returns the frames of a clip by modality; depth frames after the last colour frame are not used."""
    count = clip.frame_count
    ranges = {}
    if "rgb" in paths:
        ranges["rgb"] = FrameRange(paths["rgb"], 0, count, "%06d", 1)
        if not is_video(paths["rgb"]):
            count = len(frame_files(ranges["rgb"]))
    if "depth" in paths:
        ranges["depth"] = FrameRange(paths["depth"], 0, count, "MDepth-%08d", 1)
        if count is None and "rgb" in paths:
            least, found = frame_bounds(paths["rgb"])[0], len(frame_files(ranges["depth"]))
            if found < least:
                what = f"expected as many frames as {paths['rgb'].name} has, at least {least}, found {found}"
                raise bad_clip(paths["depth"], what, "unpaired")
    return ranges


def _crop_depth(depth: np.ndarray) -> bytes:
    return encode_depth(np.ascontiguousarray(crop_person(depth, _PERSON_CROP)))
