"""TFDS builder of `thu_read`."""

import functools
import re
from pathlib import Path

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import clip_name
from rgbd_jax.ingest.discovery import RawClips, check_folder, locator
from rgbd_jax.ingest.protocols import Protocol, find_protocol_clips
from rgbd_jax.ingest.videos import is_video

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
_SUBJECTS = sorted(subject for fold in FOLDS for subject in fold)


class ThuRead(RawClipsBuilder):
    """THU-READ, as folders of frames or videos.

    Clips are `RAW/RGB/RGB_clap_hand_cgy_3` and `RAW/Depth/D_clap_hand_cgy_3`, or all side by side in `RAW` or
    `RAW/frames`, as in the reference; frames are `000000.jpg` (or `.png`) and so on. Split lists, if there are any, lie
    in `RAW/dataset_splits/@CS1` to `@CS4`, or in folders `rgb` and `depth` of these.
    """

    name = "thu_read"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        check_folder(raw_dir, "RGB/ and Depth/, or frames/,")
        root = raw_dir / "frames" if (raw_dir / "frames").is_dir() else raw_dir
        roots = {m: root / name if (root / name).is_dir() else root for m, name in _FOLDERS.items()}
        clips = {modality: _clips(folder, _PREFIXES[modality]) for modality, folder in roots.items()}
        roots = {modality: folder for modality, folder in roots.items() if clips[modality]}
        if not roots:
            what = "expected clips such as RGB_clap_hand_cgy_3 and D_clap_hand_cgy_3 there"
            raise FileNotFoundError(f"{raw_dir}: {what}")
        sizes = {"train": 720, "validation": 240}
        protocols = [
            Protocol(f"fold{k}", (f"@CS{k}", f"@{k}"), len(CLASS_NAMES), functools.partial(_split_of, subjects), sizes)
            for k, subjects in enumerate(FOLDS, start=1)
        ]
        on_disk = clips["depth"] | clips["rgb"]
        locate = locator(roots, first=0, path_of=lambda name, modality: _PREFIXES[modality] + name)
        return find_protocol_clips(raw_dir, protocols, CLASS_NAMES, [], on_disk, locate, _name_of, _label_of)


def _label_of(name: str) -> int:
    return CLASS_NAMES.index(_parse(name)[0])


def _split_of(subjects: tuple[str, ...], name: str) -> str:
    return "validation" if _parse(name)[1] in subjects else "train"


def _clips(root: Path, prefix: str) -> dict[str, Path]:
    """Returns the name of every clip of a modality to where it lies, without opening any."""
    return {
        clip_name(path.name).removeprefix(prefix): path
        for path in sorted(root.iterdir())
        if path.name.startswith(prefix) and (is_video(path) or path.is_dir())
    }


def _name_of(path: str) -> str:
    return re.sub("^(RGB|D)_", "", clip_name(path).rpartition("/")[2])


def _parse(name: str) -> tuple[str, str]:
    """Returns action and subject of a clip; raises ValueError if they are not in its name."""
    match = re.fullmatch("([a-z_]+)_([a-z]+)_[0-9]+", name)
    if match is None or match[1] not in CLASS_NAMES or match[2] not in _SUBJECTS:
        expected = f"an action, a subject ({', '.join(_SUBJECTS)}) and a number, such as clap_hand_cgy_3"
        raise ValueError(f"expected {expected}, found {name!r}")
    return match[1], match[2]
