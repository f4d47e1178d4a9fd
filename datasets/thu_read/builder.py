"""TFDS builder of `thu_read`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rgbd_jax.ingest.clip_files import VIDEO_SUFFIXES, Recording, clip_name, find_clip, is_video
from rgbd_jax.ingest.discovery import Candidate, RawClips, complete
from rgbd_jax.ingest.problems import Problem
from rgbd_jax.ingest.protocol_clips import ClipFinder, Protocol, find_protocol_clips
from rgbd_jax.ingest.raw_clips import RawClipsBuilder

# In the order of the labels of the published split lists.
CLASS_NAMES = (
    *("zip_up", "close_drawer", "open_laptop", "use_mobilephone", "cut_paper", "draw_paper", "stir", "open_drawer"),
    *("wear_watch", "water_plant", "clean_table", "cut_fruit", "use_mouse", "push_button", "bounce_ball", "manicure"),
    *("fetch_water", "wear_glove", "use_chopstick", "sweep_floor", "tear_paper", "open_door", "wave_hand"),
    *("throw_paperplane", "clap_hand", "tie_shoelaces", "use_stapler", "write", "twist_towel", "lift_weights"),
    *("wash_fruit", "fold", "umbrella", "wash_hand", "squeeze_toothpaste", "insert_tube", "plug", "thumb"),
    *("knock_door", "read_book"),
)
FOLDS = (("cgy", "cwx"), ("fjw", "gs"), ("lhh", "lzy"), ("tys", "wyy"))
"""The subjects that each fold is evaluated on; it is trained on all others."""

_FOLDERS = {"rgb": "RGB", "depth": "Depth"}
_PREFIXES = {"rgb": "RGB_", "depth": "D_"}
_SUBJECTS = {subject for fold in FOLDS for subject in fold}
_NAME = re.compile("(?P<action>[a-z_]+)_(?P<subject>[a-z]+)_(?P<repetition>[0-9]+)")


class ThuRead(RawClipsBuilder):
    """THU-READ, as folders of frames or videos.

    Clips are `RAW/RGB/RGB_clap_hand_cgy_3` and `RAW/Depth/D_clap_hand_cgy_3`, or all side by side in `RAW` or
    `RAW/frames`, as the reference wants them; frames are `000000.jpg` (or `.png`) and so on. Split lists, if there are
    any, lie in `RAW/dataset_splits/@CS1` to `@CS4`, or in folders `rgb` and `depth` of these.
    """

    name = "thu_read"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        roots = _roots(raw_dir)
        problems: list[Problem] = []
        clips = {modality: _clips(root, modality) for modality, root in roots.items()}
        modalities = tuple(modality for modality in roots if clips[modality])
        if not modalities:
            raise FileNotFoundError(
                f"{raw_dir}: expected clips such as RGB_clap_hand_cgy_3 and D_clap_hand_cgy_3 there"
            )

        def locate(candidate: Candidate) -> Mapping[str, Recording]:
            names = {modality: _PREFIXES[modality] + candidate.name for modality in modalities}
            found = {modality: find_clip(roots[modality], name) for modality, name in names.items()}
            expected = {modality: roots[modality] / name for modality, name in names.items()}
            paths = complete(candidate.where, found, expected)
            return {modality: _recording(path, candidate.frame_count) for modality, path in paths.items()}

        finder = ClipFinder(
            modalities=modalities,
            class_names=CLASS_NAMES,
            name_of=_name_of,
            label_of=lambda name: CLASS_NAMES.index(_parse(name)[0]),
            on_disk=dict(sorted((clips.get("depth", {}) | clips.get("rgb", {})).items())),
            locate=locate,
        )
        return find_protocol_clips(raw_dir, finder, _protocols(), problems)


def _protocols() -> list[Protocol]:
    def rule(subjects: tuple[str, ...]) -> Callable[[str], str]:
        return lambda name: "validation" if _parse(name)[1] in subjects else "train"

    return [
        Protocol(
            name=f"fold{number}",
            lists=(f"@CS{number}", f"@{number}"),
            num_classes=len(CLASS_NAMES),
            split_of=rule(subjects),
            sizes={"train": 720, "validation": 240},
        )
        for number, subjects in enumerate(FOLDS, start=1)
    ]


def _roots(raw_dir: Path) -> dict[str, Path]:
    if not raw_dir.is_dir():
        raise FileNotFoundError(f"{raw_dir}: no such folder; expected RGB/ and Depth/, or frames/, in it")
    root = raw_dir / "frames" if (raw_dir / "frames").is_dir() else raw_dir
    return {modality: root / name if (root / name).is_dir() else root for modality, name in _FOLDERS.items()}


def _clips(root: Path, modality: str) -> dict[str, Path]:
    """Returns the name of every clip of a modality to where it lies, without opening any."""
    prefix = _PREFIXES[modality]
    return {
        clip_name(path.name).removeprefix(prefix): path
        for path in sorted(root.iterdir())
        if path.name.startswith(prefix) and (path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir())
    }


def _name_of(path: str) -> str:
    name = clip_name(path).rpartition("/")[2]
    prefix = next((prefix for prefix in _PREFIXES.values() if name.startswith(prefix)), None)
    if prefix is None:
        raise ValueError(f"expected a name such as RGB_clap_hand_cgy_3 or D_clap_hand_cgy_3, found {path!r}")
    name = name.removeprefix(prefix)
    _parse(name)
    return name


def _parse(name: str) -> tuple[str, str]:
    """Returns action and subject of a clip; raises ValueError if its name does not say them."""
    match = _NAME.fullmatch(name)
    if match is None or match["action"] not in CLASS_NAMES or match["subject"] not in _SUBJECTS:
        raise ValueError(
            f"expected an action, a subject ({', '.join(sorted(_SUBJECTS))}) and a number, such as clap_hand_cgy_3, "
            f"found {name!r}"
        )
    return match["action"], match["subject"]


def _recording(path: Path, count: int | None) -> Recording:
    if is_video(path):
        return Recording(path, count=count)
    suffix = ".png" if (path / "000000.png").exists() else ".jpg"
    return Recording(path, count=count, pattern=f"%06d{suffix}")
