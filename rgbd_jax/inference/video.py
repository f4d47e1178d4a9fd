"""Videos that every browser plays: H.264 in MP4."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import UInt8

from rgbd_jax.atomic_write import atomic_write

QUALITY = {"crf": "18", "preset": "medium"}  # of x264: visually lossless


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], frame_rate: float) -> None:
    """Writes RGB frames, all of one size, as H.264, 4:2:0, with the index first; whole or not at all.

    A frame of odd height or width has its last row or column repeated, as 4:2:0 needs even ones.

    Raises:
        ValueError: there is no frame, or one is not uint8 h w 3.
        OSError: the file cannot be written; names it.
    """
    options = {"movflags": "+faststart"}
    with atomic_write(path) as unfinished, av.open(str(unfinished), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", Fraction(frame_rate).limit_denominator(1001), options=QUALITY)
        stream.pix_fmt = "yuv420p"
        # Untagged, players guess the colour space from the size of the frame, and not all of them alike.
        context = stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        count = 0
        for count, frame in enumerate(frames, 1):
            height, width = frame.shape[:2]
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if count == 1:
                stream.height, stream.width = even.shape[:2]
            target = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
            picture = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p", **target)
            container.mux(stream.encode(picture))
        if not count:
            raise ValueError(f"{path}: there is no frame to write")
        container.mux(stream.encode(None))
