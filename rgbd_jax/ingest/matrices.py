"""Depth clips as MATLAB files: one array, h w t, of millimetres."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from scipy.io import loadmat, whosmat

from rgbd_jax.data.frames import check_size
from rgbd_jax.ingest.problems import bad_clip
from rgbd_jax.regular_files import check_regular

MATRIX_SUFFIX = ".mat"
_NUMBERS = ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32")


def is_matrix(path: Path) -> bool:
    """Returns whether `path` is named as a file of MATLAB."""
    return path.suffix.lower() == MATRIX_SUFFIX


def matrix_frame_count(path: Path) -> int:
    """Returns the number of frames of a MATLAB file by its header; raises RawDataError if it holds no depth clip."""
    return _variable(path)[1]


def read_matrix(path: Path) -> UInt16[np.ndarray, "t h w"]:
    """Returns the depth of a clip; raises RawDataError if the file is damaged or holds no depth clip."""
    name, _ = _variable(path)
    try:
        array = loadmat(path, variable_names=[name])[name]  # h w t
    except Exception as error:  # SciPy raises all kinds
        raise bad_clip(path, f"is damaged: {error}") from error
    depth = np.moveaxis(array, -1, 0).astype(np.uint16)  # t h w
    if not np.array_equal(depth, np.moveaxis(array, -1, 0)):
        raise bad_clip(path, f"{name} holds other values than whole millimetres from 0 to 65535")
    return depth


def _variable(path: Path) -> tuple[str, int]:
    check_regular(path, bad_clip)
    try:
        variables = whosmat(path)
    except Exception as error:  # SciPy raises all kinds
        raise bad_clip(path, f"is no MATLAB file up to version 7, or damaged: {error}") from error
    found = [(name, shape) for name, shape, kind in variables if len(shape) == 3 and kind in _NUMBERS]
    if len(found) != 1:
        names = ", ".join(f"{name} {shape}" for name, shape, _ in variables) or "nothing"
        raise bad_clip(path, f"expected one array of height x width x frames, found {names}")
    name, (height, width, count) = found[0]
    try:
        check_size(width, height)
    except ValueError as error:
        raise bad_clip(path, str(error)) from error
    if not height * width * count:
        raise bad_clip(path, f"{name} is empty")
    return name, count
