"""What the headers of raw files tell about a clip, without decoding a frame."""

import cv2

from rgbd_jax.ingest.clip_files import IMAGE_SIGNATURES, Recording, frame_files, is_video, open_video
from rgbd_jax.ingest.problems import Problem, RawDataError

_LONGEST_SIGNATURE = max(map(len, IMAGE_SIGNATURES))


def check_headers(recording: Recording) -> int:
    """Makes sure that every frame file starts as JPEG or PNG, or that a video can be opened and is long enough.

    Args:
        recording: which frames.

    Returns:
        Number of frames that are used; of a video, as its header says, 0 where it does not say.

    Raises:
        RawDataError: they are not what they should be; all frames at fault are named.
    """
    if is_video(recording.path):
        return _check_video(recording)
    files = frame_files(recording)
    problems = []
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(_LONGEST_SIGNATURE)
        if not start.startswith(IMAGE_SIGNATURES):
            problems.append(Problem(str(file), "is neither JPEG nor PNG" if start else "is empty"))
    if problems:
        raise RawDataError(problems)
    return len(files)


def _check_video(recording: Recording) -> int:
    capture = open_video(recording.path)
    opened, announced = capture.isOpened(), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if not opened:
        raise RawDataError([Problem(str(recording.path), "cannot be opened as a video: truncated or damaged")])
    if announced < 1:
        return recording.count or 0
    if recording.stop is not None and announced < recording.stop:
        what = f"expected {recording.stop} frames, found {announced} by its header"
        raise RawDataError([Problem(str(recording.path), what, kind="missing")])
    return announced - recording.first if recording.count is None else recording.count
