"""What the page accepts: limits of uploads and requests, and files that mean harm."""

import argparse
import random
import shutil
import struct
import sys
import tracemalloc
import zipfile

import cv2
import numpy as np
import pytest

from rgbd_jax.inference.clips import read_user_clip
from rgbd_jax.inference.video import write_video
from rgbd_jax.tools import serve
from rgbd_jax.tools.page.uploads import Limits, clip_of_uploads
from tests import fuzz

LIMITS = Limits(megabytes=1, frames=5, side=64)


def png(width=64, height=48):
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def video(folder, count=5, width=64, height=48):
    write_video(folder / "x.mp4", [np.full((height, width, 3), 20 * i, np.uint8) for i in range(count)], 12)
    return (folder / "x.mp4").read_bytes()


def archive(folder, *names, content=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(folder / "x.zip", "w", compression) as packed:
        for name in names:
            packed.writestr(name, content or png())
    return (folder / "x.zip").read_bytes()


def accept(tmp_path, contents):
    """Uploads files, name -> content, and reads the clip that they make."""
    uploaded, moved = tmp_path / "uploaded", tmp_path / "moved"
    uploaded.mkdir()
    moved.mkdir()
    for name, content in contents.items():
        (uploaded / name).write_bytes(content)
    files = [str(uploaded / name) for name in contents]
    record = read_user_clip(clip_of_uploads({"rgb": files}, moved, LIMITS))
    assert not list(uploaded.iterdir())
    return len(record.frames["rgb"])


@pytest.mark.parametrize(
    "contents",
    [
        lambda _: {"0.png": png(), "1.png": png()},
        lambda folder: {"x.zip": archive(folder, "a/0.png", "a/1.png")},
        lambda folder: {"x.mp4": video(folder, 2)},
    ],
)
def test_clips_within_the_limits_are_moved_and_accepted(tmp_path, contents):
    assert accept(tmp_path, contents(tmp_path)) == 2


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (lambda _: {f"{i}.png": png() for i in range(6)}, "0.png: more than 5 frames"),
        (lambda _: {"0.png": png(64, 65)}, "0.png has frames of 64x65 pixels; up to 64"),
        (lambda _: {f"{i}.png": png() + bytes(600_000) for i in range(2)}, "0.png: 1.1 MB of files, more than 1 MB"),
        (lambda folder: {"0.png": png(), "x.mp4": video(folder)}, "cannot be used together"),
        (lambda _: {"0.png": b"no picture"}, "0.png is neither JPEG nor PNG"),
        (lambda folder: {"x.mp4": video(folder, 6)}, "x.mp4: more than 5 frames"),
        (lambda folder: {"x.mp4": video(folder, 2, 66, 2)}, "x.mp4 has frames of 66x2 pixels"),
        (lambda folder: {"x.mp4": video(folder)[:1200]}, "x.mp4"),
        (lambda _: {"x.mp4": b""}, "x.mp4 cannot be opened as a video"),
        (lambda _: {"x.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://example.org/a.ts\n"}, "cannot be opened as a video"),
        (lambda _: {"x.mp4": png()}, "x.mp4 cannot be opened as a video"),  # although FFmpeg could
        (lambda _: {"x.mkv": b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40}, "x.mkv cannot be opened as a video"),
        (lambda _: {"x.zip": b"PK\x03\x04 no archive"}, "x.zip cannot be unpacked: damaged"),
        (lambda folder: {"x.zip": archive(folder, "a/0.png", "a/../../letter.txt")}, "letter.txt is no frame"),
        (lambda folder: {"x.zip": archive(folder, *(f"{i}.png" for i in (0, 1, 3, 4)))}, "frame 2 is missing"),
        (lambda folder: {"x.zip": archive(folder, "a/0.png", "b/0.png")}, "expected those of one clip"),
        (lambda folder: {"x.zip": archive(folder, *(f"{i}.png" for i in range(6)))}, "x.zip: more than 5 frames"),
        (lambda folder: {"x.zip": archive(folder, "0.png", content=bytes(9 << 20))}, "more than 4 MB"),
        (
            lambda folder: {"x.zip": archive(folder, "0.png", compression=zipfile.ZIP_BZIP2)},
            "another way than by deflate",
        ),
        (
            lambda folder: {"x.zip": archive(folder, "0.png", compression=zipfile.ZIP_LZMA)},
            "another way than by deflate",
        ),
    ],
)
def test_what_is_no_clip_or_too_large_is_named(tmp_path, contents, message):
    with pytest.raises(ValueError, match=message):
        accept(tmp_path, contents(tmp_path))
    assert not list(tmp_path.rglob("letter.txt"))


def lying_archive(folder, compression):
    """A small file whose one entry unpacks to 100 MB, which its directory calls 100 bytes."""
    content = bytearray(archive(folder, "0.png", content=bytes(100 << 20), compression=compression))
    size = content.rindex(b"PK\1\2") + 24
    content[size : size + 4] = (100).to_bytes(4, "little")
    return bytes(content)


def large_directory(_):
    """Entries of 50 bytes, none of which has a content."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, *[0] * 8, 5, *[0] * 6)
    directory = b"".join(entry + b"%05d" % number for number in range(100_000))
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        lambda folder: lying_archive(folder, zipfile.ZIP_DEFLATED),
        lambda folder: lying_archive(folder, zipfile.ZIP_BZIP2),
        large_directory,
    ],
)
def test_what_is_unpacked_is_bounded_before_it_is(tmp_path, content):
    upload, moved = tmp_path / "y.zip", tmp_path / "moved"
    upload.write_bytes(content(tmp_path))
    moved.mkdir()
    peaks = []
    for files in ([str(tmp_path / "none.zip")], [str(upload)]):
        tracemalloc.start()
        with pytest.raises(ValueError, match="zip"):
            clip_of_uploads({"rgb": files}, moved, Limits(megabytes=50, frames=600, side=64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        shutil.rmtree(moved / "rgb")
    assert peaks[1] - peaks[0] < 2 << 20


@fuzz.examples
def test_damaged_archives_are_refused_or_hold_a_clip(tmp_path, examples):
    rng, upload, peaks = random.Random(22), tmp_path / "y.zip", []
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    whole = [archive(tmp_path, "a/0.png", "a/1.png", compression=kind) for kind in kinds]
    refused = 0
    for number in range(examples):
        content = bytearray(whole[number % len(whole)])
        for _ in range(rng.randrange(1, 4)):
            # Half of the changes are in the directory at the end.
            at = rng.randrange(content.rfind(b"PK\1\2") % len(content) if rng.random() < 0.5 else 0, len(content))
            content[at] = rng.randrange(256)
        upload.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)
        moved = tmp_path / "moved"
        moved.mkdir()
        tracemalloc.start()
        try:
            clip_of_uploads({"rgb": [str(upload)]}, moved, LIMITS)
        except (ValueError, OSError):
            refused += 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(path.stat().st_size for path in moved.rglob("*")) < 5 << 20
        shutil.rmtree(moved)
    assert examples / 2 < refused < examples
    assert max(peaks) < 8 << 20


@pytest.mark.parametrize("announced", [True, False])
def test_requests_beyond_the_limit_or_without_a_length_are_refused(announced):
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo')")
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from rgbd_jax.tools.page.app import RequestCheck

    async def count(request):
        return PlainTextResponse(str(len(await request.body())))

    largest = (2 << 20) + 1_000_000  # bytes: of files, and beside them
    app = RequestCheck(Starlette(routes=[Route("/", count, methods=["POST"])]), ["testserver"], 2 << 20)
    with TestClient(app) as client:
        for size, accepted in ((1, announced), (largest, announced), (largest + 1, False)):
            answer = client.post("/", content=b"x" * size if announced else iter([b"x" * size]))
            assert answer.status_code == (200 if accepted else 413)
            assert answer.text == str(size) if accepted else "up to 2 MB are accepted" in answer.text
        assert client.post("/", content=b"abc", headers={"content-length": "-1"}).status_code == 413


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="the extra 'demo'"):
        serve.run(argparse.Namespace())
