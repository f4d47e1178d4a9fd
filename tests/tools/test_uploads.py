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


def png(height=48, width=64):
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def zipped(path, *names, content=None, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, content or png())


def files_of(folder, case):
    """Writes the files of one upload."""
    frames = [folder / f"{number}.png" for number in range(6)]
    video = folder / "clip.mp4"
    count, height, width = {"long.mp4": (6, 48, 64), "wide.mp4": (2, 2, 66)}.get(case, (5, 48, 64))
    write_video(video, [np.full((height, width, 3), 20 * number, np.uint8) for number in range(count)], 12)
    for frame in frames:
        frame.write_bytes(png(*{"wide": (48, 65), "high": (65, 64)}.get(case, (48, 64))))
    archive = folder / "frames.zip"
    if case == "large":  # together
        for frame in frames[:2]:
            frame.write_bytes(frame.read_bytes() + bytes(600_000))
    zips = {
        "zip": ("clip/0.png", "clip/1.png"),
        "letter.zip": ("clip/0.png", "clip/../../letter.txt"),
        "gap.zip": [f"{number}.png" for number in (0, 1, 3, 4)],
        "two.zip": ("a/0.png", "b/0.png"),
        "long.zip": [f"{number}.png" for number in range(6)],
    }
    if case in zips:
        zipped(archive, *zips[case])
    elif case == "bomb.zip":
        zipped(archive, "0.png", content=bytes(9 << 20), compression=zipfile.ZIP_DEFLATED)
    contents = {
        "empty.mp4": b"",
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://example.org/a.ts\n",
        "rubbish.mkv": b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40,
        "truncated.mp4": video.read_bytes()[: video.stat().st_size // 2],
        "text.png": b"no picture",
        "text.zip": b"PK\x03\x04 no archive",
    }
    if case in contents:
        (folder / case).write_bytes(contents[case])
        return [folder / case]
    if case.endswith("zip"):
        return [archive]
    if case.endswith("mp4"):
        return [video]
    return {"long": frames, "mixed": [frames[0], video], "gone": [folder / "x.png"]}.get(case, frames[:2])


@pytest.mark.parametrize("case", ["frames", "zip", "mp4"])
def test_a_clip_within_the_limits_is_moved_and_accepted(tmp_path, case):
    files = files_of(tmp_path, case)
    (tmp_path / "moved").mkdir()
    record = read_user_clip(clip_of_uploads({"rgb": list(map(str, files))}, tmp_path / "moved", LIMITS))
    assert len(record.frames["rgb"]) == (5 if case == "mp4" else 2)
    assert not any(file.exists() for file in files)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("long", "0.png: more than 5 frames"),
        ("wide", "0.png has frames of 65x48 pixels; up to 64"),
        ("high", "0.png has frames of 64x65 pixels"),
        ("large", "0.png: 1.1 MB of files, more than 1 MB"),
        ("mixed", "cannot be used together"),
        ("gone", "x.png has been deleted"),
        ("long.mp4", "clip.mp4: more than 5 frames"),
        ("wide.mp4", "clip.mp4 has frames of 66x2 pixels"),
        ("empty.mp4", "empty.mp4 is empty"),
        ("playlist.mp4", "does not begin as a video"),
        ("rubbish.mkv", "damaged"),
        ("truncated.mp4", "truncated.mp4"),
        ("text.png", "neither JPEG nor PNG"),
        ("text.zip", "cannot be unpacked: damaged"),
        ("letter.zip", "letter.txt is no frame"),
        ("gap.zip", "frame 2 is missing"),
        ("two.zip", "expected those of one clip"),
        ("long.zip", "frames.zip: more than 5 frames"),
        ("bomb.zip", "more than 4 MB"),
    ],
)
def test_what_is_no_clip_or_too_large_is_named(tmp_path, case, message):
    (tmp_path / "moved").mkdir()
    files = [str(file) for file in files_of(tmp_path, case)]
    with pytest.raises(ValueError, match=message):
        read_user_clip(clip_of_uploads({"rgb": files}, tmp_path / "moved", LIMITS))
    assert not list(tmp_path.rglob("letter.txt"))


@pytest.mark.parametrize("announced", [True, False])
def test_requests_beyond_the_limit_or_without_a_length_are_refused(announced):
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo')")
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from rgbd_jax.tools.page.body_limit import BodyLimit

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
