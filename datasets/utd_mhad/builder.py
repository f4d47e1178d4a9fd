"""TFDS builder of `utd_mhad`."""

import re
from collections.abc import Mapping
from pathlib import Path

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import ClipSpec, FrameRange, announced_count, natural_key
from rgbd_jax.ingest.discovery import RawClips, check_clips, check_folder, complete
from rgbd_jax.ingest.problems import Problem, bad_clip

# In the order of the numbers in the names of the files.
CLASS_NAMES = (
    *("swipe_left", "swipe_right", "wave", "clap", "throw", "cross_arms", "basketball_shoot", "draw_x"),
    *("draw_circle_clockwise", "draw_circle_counterclockwise", "draw_triangle", "bowling", "boxing"),
    *("baseball_swing", "tennis_swing", "arm_curl", "tennis_serve", "push", "knock", "catch", "pickup_and_throw"),
    *("jog", "walk", "sit_to_stand", "stand_to_sit", "lunge", "squat"),
)
SUBJECTS = 8
# Clips of which a modality has a few frames more end with the shorter one; a larger difference is a damaged clip.
TOLERANCE = 5

_FILES = {"rgb": "RGB/{}_color.avi", "depth": "Depth/{}_depth.mat"}


class UtdMhad(RawClipsBuilder):
    """UTD-MHAD as it is downloaded: `RAW/RGB/a1_s1_t1_color.avi` and `RAW/Depth/a1_s1_t1_depth.mat`.

    Odd subjects are the training split, even ones the validation split, as in the data set's own cross-subject test.
    """

    name = "utd_mhad"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        check_folder(raw_dir, "RGB/ and Depth/")
        files = {modality: sorted(raw_dir.glob(pattern.format("*"))) for modality, pattern in _FILES.items()}
        modalities = [modality for modality, found in files.items() if found]
        if not modalities:
            expected = "clips such as RGB/a1_s1_t1_color.avi and Depth/a1_s1_t1_depth.mat"
            raise FileNotFoundError(f"{raw_dir}: expected {expected}")
        problems: list[Problem] = []
        splits: dict[str, list[ClipSpec]] = {"train": [], "validation": []}
        places = {file.stem.rpartition("_")[0]: file for found in files.values() for file in found}
        for name in sorted(places, key=natural_key):
            try:
                label, subject = _parse(name)
            except ValueError as error:
                problems.append(Problem(str(places[name]), str(error), "mislabelled"))
                continue
            splits["train" if subject % 2 else "validation"].append(ClipSpec(name, label, str(places[name])))

        def locate(clip: ClipSpec) -> Mapping[str, FrameRange]:
            expected = {modality: raw_dir / _FILES[modality].format(clip.name) for modality in modalities}
            found = complete(clip, {m: path if path.is_file() else None for m, path in expected.items()}, expected)
            counts = {m: count for m, path in found.items() if (count := announced_count(path))}  # some do not say
            shorter = min(counts.values(), default=None)
            if shorter and max(counts.values()) - shorter > TOLERANCE:
                numbers = " and ".join(f"{count} {modality}" for modality, count in counts.items())
                what = f"expected about as many depth frames as rgb frames, found {numbers}"
                raise bad_clip(clip.where, what, "unpaired")
            return {modality: FrameRange(path, None, shorter) for modality, path in found.items()}

        return RawClips(CLASS_NAMES, check_clips(splits, locate, problems), problems)


def _parse(name: str) -> tuple[int, int]:
    """Returns label and subject of a clip; raises ValueError if its name does not give them."""
    match = re.fullmatch("a([0-9]+)_s([0-9]+)_t([0-9]+)", name)
    action, subject = map(int, match.groups()[:2]) if match else (0, 0)
    if not (1 <= action <= len(CLASS_NAMES) and 1 <= subject <= SUBJECTS):
        expected = f"an action from 1 to {len(CLASS_NAMES)} and a subject from 1 to {SUBJECTS}, such as a1_s1_t1"
        raise ValueError(f"expected {expected}, found {name!r}")
    return action - 1, subject
