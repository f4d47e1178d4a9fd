"""What the page accepts: limits of uploads and requests, and files that mean harm."""

import argparse
import sys
import zipfile

import cv2
import numpy as np
import pytest

from rgbd_jax.inference.clips import read_user_clip
from rgbd_jax.inference.video import write_video
from rgbd_jax.tools import serve
from rgbd_jax.tools.page.uploads import Limits, clip_of_uploads

LIMITS = Limits(megabytes=1, frames=5, side=64)


def png(width=64, height=48):
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def video(folder, count=5, width=64, height=48):
    write_video(folder / "x.mp4", [np.full((height, width, 3), 20 * i, np.uint8) for i in range(count)], 12)
    return (folder / "x.mp4").read_bytes()


def archive(folder, *names, content=None):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
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
        (lambda _: {"x.mp4": b""}, "x.mp4 cannot be read as a video .*: empty"),
        (lambda _: {"x.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://example.org/a.ts\n"}, "cannot be read as a video"),
        (lambda _: {"x.mp4": png()}, "x.mp4 cannot be read as a video"),  # although FFmpeg could
        (lambda _: {"x.mkv": b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40}, "x.mkv cannot be read as a video"),
        (lambda _: {"x.zip": b"PK\x03\x04 no archive"}, "x.zip cannot be unpacked: damaged"),
        (lambda folder: {"x.zip": archive(folder, "a/0.png", "a/../../letter.txt")}, "letter.txt is no frame"),
        (lambda folder: {"x.zip": archive(folder, *(f"{i}.png" for i in (0, 1, 3, 4)))}, "frame 2 is missing"),
        (lambda folder: {"x.zip": archive(folder, "a/0.png", "b/0.png")}, "expected those of one clip"),
        (lambda folder: {"x.zip": archive(folder, *(f"{i}.png" for i in range(6)))}, "x.zip: more than 5 frames"),
        (lambda folder: {"x.zip": archive(folder, "0.png", content=bytes(9 << 20))}, "more than 4 MB"),
    ],
)
def test_what_is_no_clip_or_too_large_is_named(tmp_path, contents, message):
    with pytest.raises(ValueError, match=message):
        accept(tmp_path, contents(tmp_path))
    assert not list(tmp_path.rglob("letter.txt"))


@pytest.mark.parametrize("announced", [True, False])
def test_requests_beyond_the_limit_or_without_a_length_are_refused(announced):
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo')")
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from rgbd_jax.tools.page.app import BodyLimit

    async def count(request):
        return PlainTextResponse(str(len(await request.body())))

    largest = (2 << 20) + 1_000_000  # bytes: of files, and beside them
    app = BodyLimit(Starlette(routes=[Route("/", count, methods=["POST"])]), 2 << 20)
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
