"""The lists that NvGesture comes with, one gesture a line.

A line holds blank- or tab-separated fields: `path:./Video_data/class_01/subject13_r0`, the video and the frames of each
sensor, such as `color:sk_color:138:218` (the frame after the last one is 218), and `label:1`, counted from 1.
"""

import re
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.clip_files import ClipSpec, FrameRange
from rgbd_jax.ingest.problems import LabelError

NUM_CLASSES = 25
_SENSORS = {"rgb": "color", "depth": "depth"}


def parse_line(line: str, where: str, raw_dir: Path, split: str) -> ClipSpec:
    """Returns the gesture of a line, named "SPLIT/class_01/subject13_r0" as in the reference's lists.

    Raises:
        ValueError: quotes the line and what is wrong with it.
    """
    fields = dict(field.partition(":")[::2] for field in line.split())
    missing = [key for key in ("path", *_SENSORS.values(), "label") if not fields.get(key)]
    if missing:
        expected = " and ".join(f"{key}:…" for key in missing)
        raise ValueError(f"expected a field {expected}, found none in {line!r}")
    path, label = PurePosixPath(fields["path"]), fields["label"]
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise ValueError(f"expected a path such as ./Video_data/class_01/subject13_r0, found {str(path)!r} in {line!r}")
    if not re.fullmatch("[0-9]+", label) or not 1 <= int(label) <= NUM_CLASSES:
        raise LabelError(f"expected a label from 1 to {NUM_CLASSES}, found {label!r} in {line!r}")
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
