"""TFDS builder of `ntu_rgbd`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rgbd_jax.datasets.ntu_rgbd import frames
from rgbd_jax.datasets.ntu_rgbd.classes import CLASS_NAMES
from rgbd_jax.datasets.ntu_rgbd.protocols import PROTOCOLS, parse_name

from rgbd_jax.ingest.clip_files import FRAME_SUFFIXES, FrameKind, Recording, frame_bounds, frame_files, is_video
from rgbd_jax.ingest.discovery import Candidate, RawClip, RawClips, complete
from rgbd_jax.ingest.problems import Problem, RawDataError
from rgbd_jax.ingest.protocol_clips import ClipFinder, find_protocol_clips
from rgbd_jax.ingest.raw_clips import RawClipsBuilder

_VIDEOS = "nturgb+d_rgb"
_FRAMES = "Images"
_DEPTH = "nturgb+d_depth_masked"
_RGB_SUFFIX = "_rgb"
_CLASSES_60 = 60
_NESTING = 2  # folders between these and the clips: of a set-up, or of the archive that it came in


class NtuRgbd(RawClipsBuilder):
    """NTU RGB+D 60 and 120, cut around the person.

    RGB is `RAW/nturgb+d_rgb/NAME_rgb.avi` or frames that are cut already, `RAW/Images/NAME_rgb/000001.jpg` and so on,
    which are taken where both are there; depth is `RAW/nturgb+d_depth_masked/NAME/MDepth-00000001.png` and so on.
    Clips may lie in folders of set-ups.
    """

    name = "ntu_rgbd"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        roots = _roots(raw_dir)
        problems: list[Problem] = []
        index = {modality: _index(root, problems) for modality, root in roots.items()}
        on_disk = {name: path for paths in reversed(index.values()) for name, path in paths.items()}
        on_disk = dict(sorted(on_disk.items()))
        of_120 = any(parse_name(name).action > _CLASSES_60 for name in on_disk)

        def locate(candidate: Candidate) -> Mapping[str, Recording]:
            found = {modality: paths.get(candidate.name) for modality, paths in index.items()}
            expected = {modality: root / candidate.name for modality, root in roots.items()}
            return _recordings(candidate, complete(candidate.where, found, expected))

        finder = ClipFinder(
            modalities=tuple(roots),
            class_names=CLASS_NAMES if of_120 else CLASS_NAMES[:_CLASSES_60],
            name_of=_name_of,
            label_of=_label_of,
            on_disk=on_disk,
            locate=locate,
        )
        protocols = [protocol for protocol in PROTOCOLS if of_120 or protocol.num_classes == _CLASSES_60]
        raw = find_protocol_clips(raw_dir, finder, protocols, problems)
        return dataclasses.replace(raw, metadata={**raw.metadata, "person_cropped": True})

    @staticmethod
    def read_frames(clip: RawClip, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns a clip's encoded frames, cut around the person."""
        return frames.read_frames(clip, kinds)


def _roots(raw_dir: Path) -> dict[str, Path]:
    """Returns modality to the folder of its clips."""
    if not raw_dir.is_dir():
        raise FileNotFoundError(f"{raw_dir}: no such folder; expected {_VIDEOS}/ or {_FRAMES}/ and {_DEPTH}/ in it")
    roots = {}
    for modality, folder in (("rgb", _VIDEOS), ("rgb", _FRAMES), ("depth", _DEPTH)):
        if (raw_dir / folder).is_dir():
            roots[modality] = raw_dir / folder
    if not roots:
        raise FileNotFoundError(
            f"{raw_dir}: expected {_VIDEOS}/ or {_FRAMES}/, and {_DEPTH}/ in it, found none of them"
        )
    if "depth" not in roots and roots["rgb"].name == _VIDEOS:
        raise FileNotFoundError(
            f"{raw_dir / _DEPTH}: no such folder; the videos in {_VIDEOS}/ are cut around the person, "
            "and the masked depth says where that is"
        )
    return roots


def _index(root: Path, problems: list[Problem]) -> dict[str, Path]:
    """Returns name to folder or video of all clips below a folder."""
    found: dict[str, Path] = {}
    folders = [(root, 0)]
    for folder, depth in folders:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                if entry.name.startswith("."):
                    continue
                is_clip_folder = entry.name.startswith("S") and "C" in entry.name and entry.is_dir()
                if is_video(path) or is_clip_folder:
                    _add(path, found, problems)
                elif entry.is_dir() and depth < _NESTING:
                    folders.append((path, depth + 1))
                elif path.suffix.lower() in FRAME_SUFFIXES:
                    what = "holds frames, but is not named as a clip, such as S001C001P001R001A001"
                    problems.append(Problem(str(folder), what))
                    break
    return found


def _add(path: Path, found: dict[str, Path], problems: list[Problem]) -> None:
    name = path.stem.removesuffix(_RGB_SUFFIX)
    try:
        _label_of(name)
    except ValueError as error:
        problems.append(Problem(str(path), str(error), kind="mislabelled"))
        return
    if found.setdefault(name, path) != path:
        what = f"holds {name} a second time; the first is {found[name]}"
        problems.append(Problem(str(path), what, kind="duplicated"))


def _name_of(path: str) -> str:
    name = path.rpartition("/")[2].removesuffix(".avi").removesuffix(_RGB_SUFFIX)
    parse_name(name)
    return name


def _label_of(name: str) -> int:
    action = parse_name(name).action
    if not 1 <= action <= len(CLASS_NAMES):
        raise ValueError(f"expected an action from A001 to A{len(CLASS_NAMES)}, found {name!r}")
    return action - 1


def _recordings(candidate: Candidate, paths: Mapping[str, Path]) -> dict[str, Recording]:
    """Returns where the frames lie; depth frames that follow the last colour frame are not used."""
    count = candidate.frame_count
    recordings = {}
    if "rgb" in paths:
        if is_video(paths["rgb"]):
            recordings["rgb"] = Recording(paths["rgb"], count=count)
        else:
            recordings["rgb"] = Recording(paths["rgb"], count=count, pattern="%06d.jpg", pattern_first=1)
            count = len(frame_files(recordings["rgb"]))
    if "depth" in paths:
        depth = Recording(paths["depth"], count=count, pattern="MDepth-%08d.png", pattern_first=1)
        if count is None and "rgb" in paths:
            least, found = frame_bounds(paths["rgb"])[0], len(frame_files(depth))
            if found < least:
                what = f"expected as many frames as {paths['rgb'].name} has, at least {least}, found {found}"
                raise RawDataError([Problem(str(depth.path), what, kind="unpaired")])
        recordings["depth"] = depth
    return recordings
