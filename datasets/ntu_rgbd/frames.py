"""NTU RGB+D's frames: colour and depth cut around the person, as the reference prepares and loads them."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from rgbd_jax.data.codec import encode_depth, encode_jpeg
from rgbd_jax.data.depth import crop_person, person_box_in_colour
from rgbd_jax.ingest.clip_files import COLOUR, FrameKind, decode_frame, frame_files, is_video, video_frames
from rgbd_jax.ingest.discovery import RawClip
from rgbd_jax.ingest.problems import Problem, RawDataError

_SIZE = (320, 240)  # width and height that colour frames are kept in, pixels
_LARGEST = (960, 540)  # of frames that are cut already: half of the camera's


def read_frames(clip: RawClip, kinds: Mapping[str, FrameKind]) -> dict[str, list[bytes]]:
    """Reads a clip, cut around the person frame by frame.

    Args:
        clip: rgb is a video of the whole scene, which needs depth, or a folder of frames that are cut already.
        kinds: modality to its kind of frames.

    Returns:
        Modality to encoded frames: rgb as JPEG of 320x240, depth as PNG of at most that, in the kind it had.

    Raises:
        RawDataError: a frame is missing, cannot be decoded or is of another kind.
    """
    rgb, depth = clip.recordings.get("rgb"), clip.recordings.get("depth")
    encoded: dict[str, list[bytes]] = {modality: [] for modality in clip.recordings}
    depth_files = frame_files(depth) if depth else []
    if rgb is None:
        encoded["depth"] = [_cut_depth(decode_frame(file, file.read_bytes(), kinds["depth"])) for file in depth_files]
        return encoded
    if not is_video(rgb.path):
        encoded["rgb"] = [_small_jpeg(file, file.read_bytes()) for file in frame_files(rgb)]
        for file in depth_files:
            encoded["depth"].append(_cut_depth(decode_frame(file, file.read_bytes(), kinds["depth"])))
        return encoded
    for number, frame in enumerate(video_frames(rgb)):
        if number == len(depth_files):
            what = f"expected as many frames as {rgb.path.name} has, found only {number}"
            raise RawDataError([Problem(str(depth.path if depth else rgb.path), what, kind="unpaired")])
        image = decode_frame(depth_files[number], depth_files[number].read_bytes(), kinds["depth"])
        encoded["rgb"].append(encode_jpeg(cut_colour(frame, image)))
        encoded["depth"].append(_cut_depth(image))
    return encoded


def cut_colour(frame: UInt8[np.ndarray, "h w 3"], depth: np.ndarray) -> UInt8[np.ndarray, "240 320 3"]:
    """Cuts a colour frame around the person in the masked depth frame (dh dw) that goes with it, and shrinks it."""
    left, top, right, bottom = person_box_in_colour(depth, frame.shape[1], frame.shape[0])
    return cv2.resize(frame[top:bottom, left:right], _SIZE)  # bilinear, as in the reference


def _cut_depth(depth: np.ndarray) -> bytes:
    return encode_depth(np.ascontiguousarray(crop_person(depth)))


def _small_jpeg(file: Path, content: bytes) -> bytes:
    """Returns a frame that is cut already in 320x240, byte for byte if it has that size."""
    image = decode_frame(file, content, COLOUR)
    height, width = image.shape[:2]
    if (width, height) == _SIZE:
        return content
    if width > _LARGEST[0] or height > _LARGEST[1]:
        what = (
            f"is {width}x{height}; expected a frame that is cut around the person, at most {_LARGEST[0]}x{_LARGEST[1]}"
        )
        raise RawDataError([Problem(str(file), what)])
    return encode_jpeg(cv2.resize(image, _SIZE))
