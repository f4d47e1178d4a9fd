"""Uploaded files as a clip. Whoever sent them may mean harm: only headers are read here, nothing is decoded."""

import dataclasses
import io
import itertools
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import av
from PIL import Image

from rgbd_jax.inference.clips import UserClip
from rgbd_jax.ingest.clip_files import FRAME_SUFFIXES
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.videos import VIDEO_SUFFIXES, is_video, open_video

SUFFIXES = (*VIDEO_SUFFIXES, ".zip", *FRAME_SUFFIXES)
EXPECTED = f"a video ({', '.join(VIDEO_SUFFIXES)}), frames ({', '.join(FRAME_SUFFIXES)}), or one .zip of frames"
UNPACKED = 4  # times the limit of an upload: what a .zip file may unpack to
DIRECTORY = 4 << 20  # bytes of the directory of a .zip file, more than that of 20,000 frames
PART = 1 << 16  # bytes of an entry that are unpacked at once
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack in one piece, whatever its size


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest clip that is accepted: megabytes of all its files, frames, pixels a side of a frame."""

    megabytes: int
    frames: int
    side: int

    @property
    def size(self) -> int:
        return self.megabytes << 20


def clip_of_uploads(uploads: Mapping[str, Sequence[str]], folder: Path, limits: Limits) -> UserClip:
    """Moves uploaded files (modality -> paths) into an empty folder and returns the clip that they make.

    Raises:
        ValueError: files are missing, of another kind, damaged or too large; names them as the user does.
        OSError: a file cannot be read or written.
    """
    if missing := [modality for modality, files in uploads.items() if not files]:
        raise ValueError(f"there is no {' and no '.join(missing)} clip: choose {EXPECTED}")
    clip = {modality: _moved(list(map(Path, files)), folder / modality) for modality, files in uploads.items()}
    paths = {modality: _checked(files, limits) for modality, files in clip.items()}
    return UserClip(next(iter(clip.values()))[0].name, paths)


def _moved(files: Sequence[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    for file in files:
        if not file.exists():
            raise ValueError(f"{file.name} has been deleted, as it was not used for a while: choose it again")
        if (folder / file.name).exists():
            raise ValueError(f"there are two files named {file.name}; frames are ordered by their names")
        shutil.move(file, folder)
    return [folder / file.name for file in files]


def _checked(files: list[Path], limits: Limits) -> Path:
    """Returns the video, or the folder of the frames."""
    first, suffixes = files[0], {file.suffix.lower() for file in files}
    size = sum(file.stat().st_size for file in files)
    if size > limits.size:
        raise ValueError(f"{first.name}: {size / (1 << 20):.1f} MB of files, more than {limits.megabytes} MB")
    if len(files) == 1 and is_video(first):
        _check_video(first, limits)
        return first
    if len(files) == 1 and suffixes == {".zip"}:
        files = _unpacked(first, limits)
    elif not suffixes <= set(FRAME_SUFFIXES):
        raise ValueError(f"{', '.join(sorted(suffixes))} files cannot be used together; expected {EXPECTED}")
    _check_count(first.name, len(files), limits)
    for file in files:
        try:
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise ValueError(f"{file.name} has too many pixels; up to {limits.side} a side are accepted") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{file.name} is neither JPEG nor PNG by its content; is it empty or damaged?") from error
        _check_size(file.name, width, height, limits)
    return files[0].parent


def _check_video(file: Path, limits: Limits) -> None:
    try:
        with open_video(file) as container:
            stream = container.streams.video[0]
            _check_size(file.name, stream.width, stream.height, limits)
            # The header may omit the number of frames, or lie: packets are counted, without decoding them.
            packets = (packet for packet in container.demux(stream) if packet.size)
            _check_count(file.name, sum(1 for _ in itertools.islice(packets, limits.frames + 1)), limits)
    except RawDataError as error:
        raise ValueError(f"{file.name} {error.problems[0].what}") from error
    except av.FFmpegError as error:
        raise ValueError(f"{file.name} cannot be read as a video: truncated or damaged") from error


class _Archive(io.FileIO):
    """A file of which little is read at once: `zipfile` would read a directory of any size, of millions of entries."""

    def read(self, size: int | None = -1) -> bytes:
        """Reads up to `size` bytes, by default the rest."""
        count = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if count > DIRECTORY:
            raise zipfile.BadZipFile("a part of it is too large")
        return super().read(count) or b""


def _unpacked(file: Path, limits: Limits) -> list[Path]:
    folder = file.with_name("frames")
    folder.mkdir()
    try:
        with _Archive(file) as opened, zipfile.ZipFile(opened) as archive:
            files = [x for x in archive.infolist() if not x.is_dir() and "__MACOSX" not in x.filename]
            entries = {PurePosixPath(entry.filename): entry for entry in files}
            if odd := [str(path) for path in entries if path.suffix.lower() not in FRAME_SUFFIXES]:
                raise ValueError(f"{file.name}: {odd[0]} is no frame ({', '.join(FRAME_SUFFIXES)})")
            if len({path.parent for path in entries}) != 1:
                raise ValueError(f"{file.name} holds {len(entries)} frames; expected those of one clip in one folder")
            _check_count(file.name, len(entries), limits)
            if sum(entry.file_size for entry in entries.values()) > UNPACKED * limits.size:  # never more is unpacked
                raise ValueError(f"{file.name} unpacks to more than {UNPACKED * limits.megabytes} MB")
            if any(entry.compress_type not in PACKED for entry in entries.values()):
                raise ValueError(f"{file.name} is compressed in another way than by deflate: pack it again with zip")
            for path, entry in entries.items():
                # The name alone cannot lead out of the folder.
                with archive.open(entry) as packed, (folder / path.name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, PART)
            return [folder / path.name for path in entries]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{file.name} cannot be unpacked: damaged, encrypted, or no .zip file") from error


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if not 0 < max(width, height) <= limits.side:
        raise ValueError(f"{name} has frames of {width}x{height} pixels; up to {limits.side} a side are accepted")


def _check_count(name: str, count: int, limits: Limits) -> None:
    if count > limits.frames:
        raise ValueError(f"{name}: more than {limits.frames} frames; cut the clip to the one motion it shows")
