"""Raw clips for the builders' tests, written on the spot."""

import functools
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_jax.data.source import ClipRecord, open_split, prepared_directory
from rgbd_jax.ingest.build import PreparedInfo, dataset_names, prepare
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.shard_build import run_locally


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


class RawFolder:
    """A raw data set under construction."""

    def __init__(self, root: Path):
        self.root = root

    def clip(self, path: str, frames: int = 4, depth: str | None = "colour", rgb: str | None = "colour") -> None:
        """Writes a clip as folders of frames; a modality that is None is left out."""
        for modality, kind in (("rgb", rgb), ("depth", depth)):
            if kind is None:
                continue
            folder = self.root / modality / path
            folder.mkdir(parents=True)
            for i in range(frames):
                suffix = ".png" if kind == "16 bit" else ".jpg"
                (folder / f"{i:06d}{suffix}").write_bytes(frame(f"{modality}/{path}/{i}", kind))

    def video(self, path: str, frames: int = 10, grey: bool = False, codec: str = "MJPG") -> Path:
        """Writes a video of blocks that stay apart under compression; `path` is relative to the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*codec), 25, (64, 48))
        for i in range(frames):
            image = np.full((48, 64, 3), 60, np.uint8)
            image[:, 4 * i : 4 * i + 8] = 200 if grey else (20, 90, 230)
            writer.write(image)
        writer.release()
        return file

    def lists(self, folder: str = ".", **lines: list[str]) -> None:
        """Writes split lists: `lists(train=["a 4 0"])`."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for split, content in lines.items():
            (self.root / folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in content))

    @property
    def data_dir(self) -> Path:
        return self.root.parent / "data"

    def build(self, dataset: str = "rgbd_folder", **options) -> PreparedInfo:
        options = {"runner": functools.partial(run_locally, workers=1), **options}
        return prepare(dataset, raw_dir=self.root, data_dir=self.data_dir, **options)

    def records(self, split: str = "train", dataset: str = "rgbd_folder") -> list[ClipRecord]:
        return list(open_split(dataset, self.data_dir, split))

    def refused(self, dataset: str, pattern: str, error: type[Exception] = RawDataError, **options) -> None:
        """Builds a data set, and checks that it is refused for this reason."""
        with pytest.raises(error, match=pattern):
            self.build(dataset, **options)

    def refuse(self, *expected: str, **options) -> RawDataError:
        """Builds, and checks that it is refused for these reasons and that nothing looks prepared."""
        with pytest.raises(RawDataError) as error:
            self.build(**options)
        for text in expected:
            assert text in str(error.value)
        self.check_that_nothing_looks_prepared()
        return error.value

    def check_that_nothing_looks_prepared(self) -> None:
        """Makes sure that there are no files but those of finished shards, for the next run."""
        for dataset in dataset_names():
            assert prepared_directory(dataset, self.data_dir) is None
        for folder in self.data_dir.glob("*/*"):
            assert folder.name == "incomplete.1.0.0"
            shards = [file for file in folder.iterdir() if file.is_file()]
            assert shards
            assert all(".array_record-" in file.name for file in shards), shards


@pytest.fixture
def two_clips(raw) -> RawFolder:
    """Two clips of 4 frames, `a` and `b`, in one split list."""
    for name in ("a", "b"):
        raw.clip(name)
    raw.lists(train=["a 4 0", "b 4 1"])
    return raw


@pytest.fixture
def raw(tmp_path) -> RawFolder:
    root = tmp_path / "raw"
    root.mkdir()
    return RawFolder(root)
