"""A clip as a video, with the predicted class and the evidence for it drawn over it."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rgbd_jax.inference.clips import LoadedClip, UserClip
from rgbd_jax.inference.drawing import Picture, overlay, resized
from rgbd_jax.inference.predictor import Prediction
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.inference.video import write_video
from rgbd_jax.ingest.clip_files import is_video, open_video

DEFAULT_FRAME_RATE = 15.0  # of folders of frames, which record none: slow enough to look at
CAPTION_HEIGHT, TEXT_SIZE, TEXT_WEIGHT = 28, 16, 400  # pixels, pixels, weight of the font


def write_overlay(path: Path, loaded: LoadedClip, trained: TrainedModel, prediction: Prediction, index: int) -> None:
    """Writes clip `index` of an explained prediction as a video (MP4, H.264): all of its frames, modalities abreast.

    Raises:
        OSError: the file cannot be written.
    """
    probabilities = prediction.probabilities[index]
    label = int(probabilities.argmax())
    caption = f"{trained.class_names[label]}  {probabilities[label]:.1%}"
    assert loaded.record is not None
    frames, maps = loaded.record.frames, prediction.class_activation_map
    films = [overlay(frames[modality], modality, trained.config, maps[modality][index]) for modality in maps]
    pictures = (_captioned(abreast, caption) for abreast in zip(*films, strict=True))
    write_video(path, pictures, frame_rate(loaded.clip))


def frame_rate(clip: UserClip) -> float:
    """Returns the frame rate that the clip's video records, 15 if none is plausible."""
    for path in filter(is_video, clip.paths.values()):
        capture = open_video(path)
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        capture.release()
        if 1 <= rate <= 240:
            return rate
    return DEFAULT_FRAME_RATE


def _captioned(pictures: Sequence[Picture], caption: str) -> Picture:
    height = min(picture.shape[0] for picture in pictures)
    alike = [resized(x, (round(x.shape[1] * height / x.shape[0]), height)) for x in pictures]
    strip = np.zeros((CAPTION_HEIGHT, sum(x.shape[1] for x in alike), 3), np.uint8)
    white, font = (255, 255, 255), cv2.FontFace("sans")
    written = cv2.putText(strip, caption, (8, 20), white, font, TEXT_SIZE, TEXT_WEIGHT)[1]
    return np.concatenate([np.concatenate(alike, axis=1), written])
