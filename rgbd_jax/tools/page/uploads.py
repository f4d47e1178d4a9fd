"""Uploaded files to a clip: looked at before anything is decoded, as whoever sent them may mean harm."""

import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import av
from PIL import Image

from rgbd_jax.inference.clips import ClipError, UserClip
from rgbd_jax.inference.overlay import FRAMES_A_SECOND
from rgbd_jax.ingest.clip_files import FRAME_SUFFIXES, VIDEO_SUFFIXES, is_video
from rgbd_jax.tools.page.limits import MEGABYTE, Limits

UPLOAD_SUFFIXES = (*VIDEO_SUFFIXES, ".zip", *FRAME_SUFFIXES)
EXPECTED = f"a video ({', '.join(VIDEO_SUFFIXES)}), frames ({', '.join(FRAME_SUFFIXES)}), or one .zip of frames"
_UNPACKED = 4  # times the limit of an upload: what a .zip file may unpack to
_BLOCK = 1 << 20  # bytes
# A video is handed to FFmpeg only if it starts as one: FFmpeg opens play lists too, which name other files.
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # MP4 and QuickTime
_MATROSKA = b"\x1a\x45\xdf\xa3"


def clip_of_uploads(uploads: Mapping[str, Sequence[Path]], folder: Path, limits: Limits) -> tuple[UserClip, float]:
    """Makes a clip of uploaded files, which stay where they are.

    Args:
        uploads: modality -> a video, frames, or a .zip file of frames; every modality that the network needs.
        folder: an empty folder, for what is needed of the files.
        limits: the largest clip that is taken.

    Returns:
        The clip, and how many frames it has a second.

    Raises:
        ClipError: the files are not such, damaged, or more than the limits allow; names the file as the user does.
        OSError: a file cannot be read or written.
    """
    missing = [modality for modality, files in uploads.items() if not files]
    if missing:
        raise ClipError(f"there is no {' and no '.join(missing)} clip yet: choose {EXPECTED}")
    gone = [file.name for files in uploads.values() for file in files if not file.exists()]
    if gone:
        raise ClipError(f"{gone[0]} has been deleted, as nobody asked about it for a while: choose it again")
    paths, speeds = {}, []
    for modality, files in uploads.items():
        size = sum(file.stat().st_size for file in files)
        if size > limits.size:
            raise ClipError(
                f"{_named(files)}: {size / MEGABYTE:.1f} MB, more than {limits.megabytes} MB; take a shorter clip"
            )
        place = folder / modality
        place.mkdir()
        if len(files) == 1 and is_video(files[0]):
            paths[modality], speed = _video(files[0], place, limits)
            speeds.append(speed)
        else:
            paths[modality] = _frames(files, place, limits)
    return UserClip(_named(next(iter(uploads.values()))), paths), speeds[0] if speeds else FRAMES_A_SECOND


def _named(files: Sequence[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more files"


def _video(file: Path, place: Path, limits: Limits) -> tuple[Path, float]:
    with file.open("rb") as content:
        start = content.read(12)
    if not start:
        raise ClipError(f"{file.name} is empty")
    riff = start[:4] == b"RIFF" and start[8:12] == b"AVI "
    if not (riff or start.startswith(_MATROSKA) or start[4:8] in _BOXES):
        raise ClipError(f"{file.name} does not start as a video does ({', '.join(VIDEO_SUFFIXES)}); is it damaged?")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ClipError(f"{file.name} holds no picture, only sound")
            stream = container.streams.video[0]
            _check_size(file.name, stream.width, stream.height, limits)
            # The header may say nothing, or lie; packets are counted without decoding them.
            count = 0
            for packet in container.demux(stream):
                count += packet.size > 0
                if count > limits.frames:
                    raise _too_many(file.name, f"more than {limits.frames}", limits)
            rate = stream.average_rate or stream.guessed_rate
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, ClipError):
            raise
        raise ClipError(f"{file.name} cannot be read as a video: truncated or damaged") from error
    copy = place / file.name
    shutil.copyfile(file, copy)
    return copy, min(max(float(rate), 1.0), 240.0) if rate else FRAMES_A_SECOND


def _frames(files: Sequence[Path], place: Path, limits: Limits) -> Path:
    """Puts the frames into a folder of their own under `place`, which gives them a name in messages."""
    folder = place / "frames"
    folder.mkdir()
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".zip"} and len(files) == 1:
        each = _unpacked(files[0], folder, limits)
    elif suffixes <= set(FRAME_SUFFIXES):
        each = _copied(files, folder)
    else:
        odd = next(file for file in files if file.suffix.lower() not in FRAME_SUFFIXES)
        what = "must be alone" if odd.suffix.lower() in UPLOAD_SUFFIXES else "cannot be used"
        raise ClipError(f"{odd.name} {what}; expected {EXPECTED}")
    for count, frame in enumerate(each, 1):
        if count > limits.frames:
            raise _too_many(_named(files), f"more than {limits.frames}", limits)
        _check_image(frame, limits)
    if not any(folder.iterdir()):
        raise ClipError(f"{_named(files)} holds no frame ({', '.join(FRAME_SUFFIXES)})")
    return folder


def _copied(files: Sequence[Path], folder: Path) -> Iterator[Path]:
    for file in files:
        copy = folder / file.name
        if copy.exists():
            raise ClipError(f"{file.name} is there twice; frames are ordered by their names, so each needs its own")
        shutil.copyfile(file, copy)
        yield copy


def _unpacked(file: Path, folder: Path, limits: Limits) -> Iterator[Path]:
    left = _UNPACKED * limits.size
    parent = None
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                inner = PurePosixPath(entry.filename)
                if entry.is_dir() or inner.name.startswith(".") or "__MACOSX" in inner.parts:
                    continue
                if inner.suffix.lower() not in FRAME_SUFFIXES:
                    raise ClipError(f"{file.name}: {entry.filename} is no frame ({', '.join(FRAME_SUFFIXES)})")
                parent = parent or inner.parent
                if inner.parent != parent:
                    raise ClipError(
                        f"{file.name} has frames in {parent}/ and {inner.parent}/; expected one clip's frames"
                    )
                target = folder / inner.name  # the last part alone: no entry can lead out of the folder
                with archive.open(entry) as packed, target.open("xb") as unpacked:
                    while block := packed.read(_BLOCK):
                        left -= len(block)
                        if left < 0:
                            raise ClipError(f"{file.name} unpacks to more than {_UNPACKED * limits.megabytes} MB")
                        unpacked.write(block)
                yield target
    except FileExistsError as error:
        raise ClipError(f"{file.name} holds two files named {Path(str(error.filename)).name}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ClipError(f"{file.name} cannot be unpacked: damaged, encrypted, or no .zip file") from error


def _check_image(file: Path, limits: Limits) -> None:
    """Looks at the header alone: a small file can hold a picture that no memory holds."""
    if not file.stat().st_size:
        raise ClipError(f"{file.name} is empty")
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ClipError(f"{file.name} is a picture of too many pixels; {limits.side} a side are taken") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ClipError(f"{file.name} is neither JPEG nor PNG by its content; is it damaged?") from error
    _check_size(file.name, width, height, limits)


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if not 0 < max(width, height) <= limits.side:
        raise ClipError(f"{name} has frames of {width}x{height} pixels; up to {limits.side} a side are taken")


def _too_many(name: str, count: str, limits: Limits) -> ClipError:
    return ClipError(f"{name} has {count} frames; up to {limits.frames} are taken: cut it to the one motion it shows")
