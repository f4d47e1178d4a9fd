"""Makes the README's animation: clips in colour and depth, and the predictions for their frames so far.

python scripts/animation.py demo-fusion --out docs/recognition.webp
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import rgbd_jax
from rgbd_jax.inference.drawing import shown_frame

MOTIONS = (("swipe_left", "push"), ("turn_to_back", "pull"))  # row by row
FIRST, HOLD = 6, 12  # frames of the first prediction; how often the last picture is repeated
WIDTH, HEIGHT, GAP, LINE, TOP = 160, 120, 4, 17, 3  # pixels of a frame, between frames and of a line; classes shown
MILLISECONDS = 90
MAX_BYTES = 600_000
INK, BAR, RIGHT, WRONG, PAPER = (36, 41, 47), (208, 215, 222), (26, 127, 55), (207, 34, 46), (255, 255, 255)


def main() -> None:
    """Writes the animation that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a fusion network of the demo: a run or a registered name")
    parser.add_argument("--out", type=Path, required=True, help="the animation: .webp")
    args = parser.parse_args()
    try:
        pictures = animation(rgbd_jax.load(args.weights))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    pictures[0].save(args.out, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, quality=50)
    if args.out.stat().st_size > MAX_BYTES:
        sys.exit(f"error: {args.out} has {args.out.stat().st_size} bytes, expected at most {MAX_BYTES}")


def animation(classifier: rgbd_jax.Classifier) -> list[Image.Image]:
    """Returns the pictures of the animation: `MOTIONS` in rows, frame by frame."""
    clips = [[clip_pictures(classifier, motion, rgbd_jax.example(motion)) for motion in row] for row in MOTIONS]
    length = max(len(pictures) for row in clips for pictures in row) + HOLD
    shown = [[[pictures[min(i, len(pictures) - 1)] for pictures in row] for row in clips] for i in range(length)]
    return [Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])) for rows in shown]


def clip_pictures(classifier: rgbd_jax.Classifier, motion: str, clip: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the pictures of one clip: its frames in colour and depth over the predictions for the frames so far."""
    count, config = len(clip["rgb"]), classifier.trained.config
    prefixes = [{modality: frames[: i + 1] for modality, frames in clip.items()} for i in range(FIRST - 1, count)]
    batches = {modality: [prefix[modality] for prefix in prefixes] for modality in clip}
    predictions = classifier.predict(**batches)
    assert isinstance(predictions, list)  # as the clips
    pictures = []
    for i in range(count):
        frames = [shown_frame(encoded(clip[modality][i]), modality, config) for modality in ("rgb", "depth")]
        picture = Image.new("RGB", (2 * WIDTH + 4 * GAP, HEIGHT + (TOP + 2) * LINE), PAPER)
        draw = ImageDraw.Draw(picture)
        draw.text((GAP, 0), motion, INK, ImageFont.load_default(13))
        for place, frame in enumerate(frames):
            large = cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            picture.paste(Image.fromarray(large), (GAP + place * (WIDTH + GAP), LINE))
        if i >= FIRST - 1:
            bars(draw, motion, predictions[i - FIRST + 1].top(TOP))
        pictures.append(np.asarray(picture))
    return pictures


def encoded(frame: np.ndarray) -> bytes:
    """Returns a frame, RGB or depth, as a PNG."""
    return cv2.imencode(".png", frame[..., ::-1] if frame.ndim == 3 else frame)[1].tobytes()


def bars(draw: ImageDraw.ImageDraw, motion: str, classes: list[tuple[str, float]]) -> None:
    """Draws the most probable classes; the first one is green where it is the true class, else red."""
    for rank, (name, probability) in enumerate(classes):
        top = HEIGHT + (rank + 1) * LINE + GAP
        colour = BAR if rank else (RIGHT if name == motion else WRONG)
        draw.rectangle((GAP, top, GAP + round(probability * (2 * WIDTH + GAP)), top + LINE - 3), colour)
        ink = PAPER if not rank and probability > 0.5 else INK
        draw.text((2 * GAP, top), f"{name} {probability:.0%}", ink, ImageFont.load_default(12))


if __name__ == "__main__":
    main()
