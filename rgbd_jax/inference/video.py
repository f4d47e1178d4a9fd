"""Videos that every browser plays, H.264 in MP4; clips with the class and the evidence for it drawn over them."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import UInt8

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.inference.clips import LoadedClip, UserClip
from rgbd_jax.inference.drawing import Picture, overlay, resized
from rgbd_jax.inference.predictor import Prediction
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.ingest.videos import is_video, open_video, recorded_rate

QUALITY = {"crf": "18", "preset": "medium"}  # of x264: visually lossless
DEFAULT_FRAME_RATE = 15.0  # of folders of frames, which record none: slow enough to look at
CAPTION_HEIGHT, TEXT_SIZE, TEXT_WEIGHT = 28, 16, 400  # pixels, pixels, weight of the font


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], frame_rate: float) -> None:
    """Writes RGB frames, all of one size, as H.264, 4:2:0, with the index first; whole or not at all.

    A frame of odd height or width has its last row or column repeated, as 4:2:0 needs even ones.
    """
    options = {"movflags": "+faststart"}
    # "12:30.mp4" alone would be a protocol named 12.
    with atomic_write(path) as part, av.open(f"file:{part}", "w", format="mp4", options=options) as container:
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


def write_overlay(path: Path, loaded: LoadedClip, trained: TrainedModel, prediction: Prediction, index: int) -> None:
    """Writes clip `index` of an explained prediction as a video: all of its frames, modalities abreast."""
    probabilities = prediction.probabilities[index]
    caption = f"{trained.class_names[probabilities.argmax()]}  {probabilities.max():.1%}"
    assert loaded.record is not None
    frames, maps = loaded.record.frames, prediction.class_activation_map
    films = [overlay(frames[modality], modality, trained.config, maps[modality][index]) for modality in maps]
    write_video(path, (_captioned(abreast, caption) for abreast in zip(*films, strict=True)), frame_rate(loaded.clip))


def frame_rate(clip: UserClip) -> float:
    """Returns the frame rate that the clip's video records, 15 if none is plausible."""
    for path in (source for source in clip.sources.values() if isinstance(source, Path) and is_video(source)):
        with open_video(path) as video:
            if 1 <= (rate := recorded_rate(video)) <= 240:
                return rate
    return DEFAULT_FRAME_RATE


def _captioned(pictures: Sequence[Picture], caption: str) -> Picture:
    height = min(picture.shape[0] for picture in pictures)
    alike = [resized(x, (round(x.shape[1] * height / x.shape[0]), height)) for x in pictures]
    strip = np.zeros((CAPTION_HEIGHT, sum(x.shape[1] for x in alike), 3), np.uint8)
    white, font = (255, 255, 255), cv2.FontFace("sans")
    written = cv2.putText(strip, caption, (8, 20), white, font, TEXT_SIZE, TEXT_WEIGHT)[1]
    return np.concatenate([np.concatenate(alike, axis=1), written])
