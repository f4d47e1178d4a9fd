"""Raw clips for the builders' tests, written on the spot."""

import functools
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_jax.data.source import ClipRecord, open_split, prepared_directory
from rgbd_jax.ingest.build import PreparedInfo, prepare
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.shards import run_locally
from tests.made_raw_data import lines_of, video_of


def frame(name: str, kind: str = "colour", suffix: str = ".jpg") -> bytes:
    """Encodes a frame whose content is a function of its name; kind is "colour", "grey" or "16 bit"."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = (12, 16, 3) if kind == "colour" else (12, 16)
    dtype, highest = (np.uint16, 4500) if kind == "16 bit" else (np.uint8, 255)
    image = rng.integers(0, highest, shape, dtype)
    return cv2.imencode(".png" if kind == "16 bit" else suffix, image)[1].tobytes()


def decoded(content: bytes) -> np.ndarray:
    """Decodes a frame as it is (h w or h w c)."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def jpeg(image: np.ndarray) -> bytes:
    """Encodes a frame as those of videos are stored."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def video_frames(file: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    return [image for _, image in iter(capture.read, (False, None))]


class RawFolder:
    """A raw data set under construction; `dataset` is what is built of it."""

    def __init__(self, root: Path, dataset: str = "rgbd_folder"):
        self.root, self.dataset = root, dataset
        self.data_dir = root.parent / "data"
        self.prepared = self.data_dir / dataset / "1.0.0"

    def frames(self, path: str, frames: int = 4, kind: str = "colour", first: int = 0, width: int = 6) -> None:
        """Writes a folder of frames, each a function of path and number."""
        folder, suffix = self.root / path, ".png" if kind == "16 bit" else ".jpg"
        folder.mkdir(parents=True)
        for i in range(frames):
            (folder / f"{i + first:0{width}d}{suffix}").write_bytes(frame(f"{path}/{i}", kind))

    def clip(self, path: str, frames: int = 4, depth: str | None = "colour", rgb: str | None = "colour") -> None:
        """Writes a clip as folders of frames; a modality that is None is left out."""
        for modality, kind in (("rgb", rgb), ("depth", depth)):
            if kind is not None:
                self.frames(f"{modality}/{path}", frames, kind)

    def video(self, path: str, frames: int = 10, grey: bool = False, codec: str = "MJPG") -> Path:
        """Writes a video of blocks that stay apart under compression; `path` is relative to the root."""
        images = np.full((frames, 48, 64, 3), 60, np.uint8)
        for i in range(frames):
            images[i, :, 4 * i : 4 * i + 8] = 200 if grey else (20, 90, 230)
        video_of(self.root / path, images, codec)
        return self.root / path

    def lists(self, folder: str = ".", pattern: str = "{}.txt", **lines: Iterable[str]) -> None:
        """Writes split lists: `lists(train=["a 4 0"])`."""
        for split, content in lines.items():
            lines_of(self.root / folder / pattern.format(split), content)

    def build(self, **options) -> PreparedInfo:
        options = {"runner": functools.partial(run_locally, workers=1), **options}
        return prepare(self.dataset, raw_dir=self.root, data_dir=self.data_dir, **options)

    def records(self, split: str = "train") -> list[ClipRecord]:
        return list(open_split(self.dataset, self.data_dir, split))

    def refused(self, *patterns: str, error: type[Exception] = RawDataError, **options) -> Exception:
        """Builds, and checks that it is refused for these reasons and that nothing looks prepared."""
        with pytest.raises(error) as raised:
            self.build(**options)
        for pattern in patterns:
            assert re.search(pattern, str(raised.value)), str(raised.value)
        self.check_that_nothing_looks_prepared()
        return raised.value

    def check_that_nothing_looks_prepared(self) -> None:
        """Makes sure that there are no files but those of finished shards, for the next run."""
        assert prepared_directory(self.dataset, self.data_dir) is None
        for folder in self.data_dir.glob("*/*"):
            assert folder.name == "incomplete.1.0.0"
            shards = [file for file in folder.iterdir() if file.is_file()]
            assert shards
            assert all(".array_record-" in file.name for file in shards), shards


@pytest.fixture
def raw(tmp_path, request) -> RawFolder:
    """An empty raw folder of the data set that the test's module names as DATASET, or else of `rgbd_folder`."""
    root = tmp_path / "raw"
    root.mkdir()
    return RawFolder(root, getattr(request.module, "DATASET", "rgbd_folder"))


@pytest.fixture
def two_clips(raw) -> RawFolder:
    """Two clips of 4 frames, `a` and `b`, in one split list."""
    for name in ("a", "b"):
        raw.clip(name)
    raw.lists(train=["a 4 0", "b 4 1"])
    return raw
