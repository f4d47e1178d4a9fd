"""NTU RGB+D's frames: colour and depth cropped around the person, as the reference prepares and loads them."""

from collections.abc import Mapping

import cv2
import numpy as np

from rgbd_jax.data.codec import encode_depth, encode_jpeg
from rgbd_jax.data.depth import crop_person, person_box_in_colour
from rgbd_jax.ingest.clip_files import COLOUR, ClipSpec, FrameKind, decode_frame, frame_files, is_video, video_frames
from rgbd_jax.ingest.problems import bad_clip

_SIZE = (320, 240)  # width and height that colour frames are kept in, pixels
_LARGEST = (960, 540)  # of frames that are cropped already: half of the camera's


def read_frames(clip: ClipSpec, kinds: Mapping[str, FrameKind]) -> dict[str, list[bytes]]:
    """Reads a clip, cropped around the person frame by frame.

    Args:
        clip: rgb is a video of the whole scene, which needs depth, or a folder of frames that are cropped already.
        kinds: modality to its kind of frames.

    Returns:
        Modality to encoded frames: rgb as JPEG of 320x240, depth as PNG of at most that, in the kind it had.

    Raises:
        RawDataError: a frame is missing, cannot be decoded or is of another kind.
    """
    rgb, depth = clip.frames.get("rgb"), clip.frames.get("depth")
    encoded: dict[str, list[bytes]] = {modality: [] for modality in clip.frames}
    depth_files = frame_files(depth) if depth else []
    depth_frames = (decode_frame(file, file.read_bytes(), kinds["depth"]) for file in depth_files)
    if rgb and is_video(rgb.path):
        for number, frame in enumerate(video_frames(rgb)):
            image = next(depth_frames, None)
            if image is None:
                what = f"expected as many frames as {rgb.path.name} has, found only {number}"
                raise bad_clip(depth.path if depth else rgb.path, what, "unpaired")
            left, top, right, bottom = person_box_in_colour(image, frame.shape[1], frame.shape[0])
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
    if depth:
        encoded["depth"] = [_crop_depth(image) for image in depth_frames]
    return encoded


def _crop_depth(depth: np.ndarray) -> bytes:
    return encode_depth(np.ascontiguousarray(crop_person(depth)))
