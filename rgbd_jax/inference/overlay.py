"""A clip as a video, with what the network says of it and where it looked drawn over it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.inference.clips import ClipError, LoadedClip, UserClip
from rgbd_jax.inference.drawing import place_in_view, relative, resized, shown_frame, tinted
from rgbd_jax.inference.predictor import Prediction
from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.inference.video import write_video
from rgbd_jax.ingest.clip_files import is_video, open_video
from rgbd_jax.sampling import sample_frames

SUFFIX = ".mp4"
FRAMES_A_SECOND = 15.0  # of folders of frames, which do not tell: slow enough to look at
_SMALLEST = 320  # pixels of the longer side: smaller frames are enlarged
_CAPTION_HEIGHT = 28  # pixels
_TEXT_SIZE, _TEXT_WEIGHT = 16, 400  # pixels, and how bold


def drawn_file(out: Path, clip: UserClip, clips: Sequence[UserClip]) -> Path:
    """Returns where a clip is drawn: `out` itself for one clip, if it ends in .mp4; else a file in the folder `out`.

    Raises:
        ClipError: several clips for one file, or there is something already.
    """
    out = out.expanduser()
    if out.suffix.lower() == SUFFIX:
        if len(clips) > 1:
            raise ClipError(f"--out={out} is one file, for {len(clips)} clips; give a folder")
        target = out
    else:
        target = out / f"{Path(clip.name).stem}{SUFFIX}"
        if sum(Path(other.name).stem == Path(clip.name).stem for other in clips) > 1:
            target = out / f"{Path(clip.name).parent.name}_{Path(clip.name).stem}{SUFFIX}"
    if target.exists():
        raise ClipError(f"--out: {target} exists already; give another name, or remove it")
    return target


def write_overlay(
    target: Path, loaded: LoadedClip, trained: TrainedNetwork, prediction: Prediction, place: int
) -> None:
    """Writes one clip as a video; the network must have been asked for class-activation maps, of one view.

    Args:
        target: the file, MP4 with H.264.
        loaded: the clip.
        trained: the network.
        prediction: what it says of a batch.
        place: place of the clip in that batch.

    Raises:
        OSError: the file cannot be written.
    """
    label = int(prediction.probabilities[place].argmax())
    caption = f"{trained.class_names[label]}  {prediction.probabilities[place, label]:.1%}"
    pictures = overlay_frames(loaded, trained, prediction, place)
    write_video(target, (_captioned(picture, caption) for picture in pictures), frames_a_second(loaded.clip))


def overlay_frames(
    loaded: LoadedClip, trained: TrainedNetwork, prediction: Prediction, place: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields all frames of a clip, not only those that the network saw, with the class-activation maps over them.

    Modalities lie side by side.
    """
    assert loaded.record is not None
    count = min(len(loaded.record.frames[modality]) for modality in prediction.activation)
    films = [
        overlaid(loaded.record.frames[modality][:count], modality, trained.config, relative(activation[place]))
        for modality, activation in prediction.activation.items()
    ]
    for pictures in zip(*films, strict=True):
        height = min(picture.shape[0] for picture in pictures)
        yield np.concatenate([_of_height(picture, height) for picture in pictures], axis=1)


def overlaid(
    encoded: Sequence[bytes],
    modality: str,
    config: ConfigDict,
    activation: Float[np.ndarray, "t h2 w2"],
    longest: tuple[float, float] = (_SMALLEST, np.inf),
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields all frames of one modality, with the map over them, all in the size that suits the first.

    Between two frames that the network saw, the map goes over from the one's to the other's.

    Args:
        encoded: the frames, JPEG or PNG.
        modality: "rgb" or "depth".
        config: the experiment's config.
        activation: shares from 0 to 1, of the frames that an evaluation sees.
        longest: pixels of the longer side: smaller frames are enlarged, larger ones shrunk.
    """
    numbers = sample_frames(len(encoded), config.clip.frames, None)
    seen, first = np.unique(numbers, return_index=True)
    places = np.interp(np.arange(len(encoded)), seen, first)
    shape = None
    for content, place in zip(encoded, places, strict=True):
        frame = shown_frame(content, modality, config)
        height, width = frame.shape[:2]
        if shape is None:
            scale = float(np.clip(max(height, width), *longest)) / max(height, width)
            shape = max(2, round(width * scale)), max(2, round(height * scale))
        view = place_in_view(config, width, height)
        frame = resized(frame, shape)
        before, share = int(place), place - int(place)
        after = min(before + 1, len(activation) - 1)
        yield tinted(frame, (1 - share) * activation[before] + share * activation[after], view)


def frames_a_second(clip: UserClip) -> float:
    """Returns how fast a clip was recorded, as far as a video tells."""
    for path in clip.paths.values():
        if is_video(path):
            capture = open_video(path)
            rate = capture.get(cv2.CAP_PROP_FPS)
            capture.release()
            if 1 <= rate <= 240:
                return float(rate)
    return FRAMES_A_SECOND


def _of_height(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    if picture.shape[0] == height:
        return picture
    width = round(picture.shape[1] * height / picture.shape[0])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _captioned(picture: UInt8[np.ndarray, "h w 3"], caption: str) -> UInt8[np.ndarray, "h2 w 3"]:
    strip = np.zeros((_CAPTION_HEIGHT, picture.shape[1], 3), np.uint8)
    font = cv2.FontFace("sans")
    written = cv2.putText(strip, caption, (8, 20), (255, 255, 255), font, _TEXT_SIZE, _TEXT_WEIGHT)[1]
    return np.concatenate([picture, written])
