"""Raw files that were made to do harm, or are none: nothing hangs, takes the memory or hides which file it is."""

import os
import socket
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rgbd_jax import cli
from rgbd_jax.data.frames import MAX_PIXELS
from rgbd_jax.inference.clips import UserClip, encoded_frames, find_clips, read_user_clip
from rgbd_jax.inference.video import frame_rate, write_video
from rgbd_jax.ingest.check import check_raw
from rgbd_jax.ingest.clip_files import COLOUR, FrameRange, check_headers, frame_bounds, read_clip
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.split_lists import MAX_CLASSES
from tests.datasets.conftest import frame

NOT_UTF_8 = os.fsdecode(b"gr\xffn")
SIDE = 5800  # of an image of a little more than MAX_PIXELS
assert SIDE**2 > MAX_PIXELS


def claiming(width: int, height: int, suffix: str) -> bytes:
    """An image whose header claims a size."""
    if suffix == ".jpg":
        content = bytearray(frame("a"))
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", height, width)
        return bytes(content)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    parts = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def folder_of(raw, path: str) -> None:
    """A clip whose path need not be text."""
    raw.clip("moved", depth=None)
    (raw.root / "rgb" / path).parent.mkdir(exist_ok=True)
    (raw.root / "rgb" / "moved").rename(raw.root / "rgb" / path)


def muxed(file: Path, codec: str, images: list[bytes], size: tuple[int, int] = (16, 12)) -> Path:
    """A video whose packets are encoded images, whatever these are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, 15)
        stream.width, stream.height = size
        stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}[codec]
        for number, image in enumerate(images):
            packet = av.Packet(image)
            packet.stream, packet.time_base = stream, Fraction(1, 15)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return file


@pytest.mark.parametrize(
    ("suffix", "size"),
    [(".jpg", (65500, 65500)), (".png", (50_000, 50_000)), (".png", (1 << 31, 3)), (".jpg", (SIDE,) * 2)],
)
def test_an_image_that_claims_to_be_huge_is_named_by_every_command(two_clips, suffix, size):
    file = two_clips.root / "rgb" / "a" / f"000003{suffix}"
    (two_clips.root / "rgb" / "a" / "000003.jpg").unlink()
    file.write_bytes(claiming(*size, suffix))
    claim = f"{file}: claims {size[0]}x{size[1]} pixels"
    two_clips.refused(claim)
    for decode in (False, True):
        (problem,) = check_raw("rgbd_folder", two_clips.root, decode=decode).problems
        assert str(problem).startswith(claim)
    with pytest.raises(ValueError, match=claim):
        read_user_clip(UserClip("a", {"rgb": file.parent}))
    with pytest.raises(ValueError, match=claim):
        list(encoded_frames(str(file.parent), "rgb"))
    info = two_clips.build(skip_bad_clips=True)
    assert info.clips == {"train": 1}


def test_an_image_with_a_side_that_opencv_refuses_is_no_traceback(two_clips):
    (two_clips.root / "rgb" / "b" / "000000.jpg").write_bytes(claiming(1 << 21, 1, ".png"))
    two_clips.refused("rgb/b/000000.jpg: cannot be decoded")


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mjpeg"), ("mov", "png")])
@pytest.mark.parametrize("position", [0, 5])
def test_frames_that_become_huge_in_a_video_are_not_decoded(tmp_path, suffix, codec, position):
    kind = ".png" if codec == "png" else ".jpg"
    images = [frame(str(i), suffix=kind) for i in range(8)]
    file = muxed(tmp_path / f"a.{suffix}", codec, images)
    assert len(read_clip(FrameRange(file), COLOUR)) == 8
    images[position] = claiming(SIDE, SIDE, kind)
    file = muxed(tmp_path / f"b.{suffix}", codec, images)
    message = f"(frame {position} cannot|no frame that can) be decoded: damaged, or larger than {MAX_PIXELS:,} pixels"
    with pytest.raises(RawDataError, match=message):
        read_clip(FrameRange(file), COLOUR)
    with pytest.raises(ValueError, match=rf"{file}: .* can(not)? be decoded: damaged, or larger"):
        list(encoded_frames(str(file), "rgb"))


def test_a_video_of_huge_frames_is_not_opened(tmp_path):
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    images = [cv2.imencode(".jpg", black)[1].tobytes()] * 2
    write_video(tmp_path / "b.mp4", [black], 12)
    for file in (muxed(tmp_path / "a.avi", "mjpeg", images, (SIDE, SIDE)), tmp_path / "b.mp4"):
        for read in (check_headers, lambda frames: read_clip(frames, COLOUR)):
            with pytest.raises(RawDataError, match=f"{file.name}: (holds no.*larger than|claims {SIDE}x{SIDE} pixels)"):
                read(FrameRange(file))


def test_videos_are_decoded_as_by_opencv_and_turned_upright(tmp_path):
    pictures = [np.roll(np.arange(48 * 64 * 3).reshape(48, 64, 3) % 251, 9 * i, 1).astype(np.uint8) for i in range(6)]
    write_video(tmp_path / "0.mp4", pictures, 12)
    content = (tmp_path / "0.mp4").read_bytes()
    matrix = content.index(b"tkhd") + 44
    for number, (a, b, c, d) in enumerate([(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], 1):
        turned = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        (tmp_path / f"{number}.mp4").write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    for number in range(4):
        file = tmp_path / f"{number}.mp4"
        capture = cv2.VideoCapture(str(file))
        expected = [
            cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            for _, x in iter(capture.read, (False, None))
        ]
        assert read_clip(FrameRange(file), COLOUR) == expected
        assert check_headers(FrameRange(file)) == capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
        assert frame_bounds(file) == (5, 7)
        assert frame_rate(UserClip("", {"rgb": file})) == 12


def test_names_that_are_not_utf_8_are_refused_by_a_build_and_read_by_predict(raw):
    raw.clip("train/wave/a", depth=None)
    video = raw.video("rgb/train/wave/b.avi").rename(raw.root / f"rgb/train/wave/{NOT_UTF_8}.avi")
    assert len(read_user_clip(UserClip("", {"rgb": video})).frames["rgb"]) == 10
    folder_of(raw, f"train/wave/{NOT_UTF_8}2")
    folder_of(raw, f"train/{NOT_UTF_8}3/c")
    raw.refused(r"gr\\udcffn: has a name that is not UTF-8", r"gr\\udcffn2: has", r"gr\\udcffn3: has")
    info = raw.build(skip_bad_clips=True)
    assert (info.clips, info.class_names, len(info.left_out)) == ({"train": 1}, ("wave",), 3)


def test_names_do_not_command_the_terminal(raw, capsys):
    raw.clip("train/wave/\x1b[31mred\x07\nforged", depth=None)
    (raw.root / "rgb/train/wave/\x1b[31mred\x07\nforged/000002.jpg").write_bytes(b"x")
    for command in ("check", "build"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(
                [
                    "data",
                    command,
                    "rgbd_folder",
                    "--raw_dir",
                    str(raw.root),
                    *(["--data_dir", str(raw.data_dir)] if command == "build" else []),
                ]
            )
        printed = capsys.readouterr()
        shown = printed.out + printed.err + str(stopped.value.code)
        assert r"\x1b[31mred\x07\nforged/000002.jpg: is neither JPEG nor PNG" in shown
        assert not set("\x1b\x07") & set(shown)


@pytest.mark.parametrize("kind", ["named pipe", "device", "socket"])
@pytest.mark.parametrize("name", ["a/000001.jpg", "v.mp4", "l.txt"])
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path, raw, monkeypatch, kind, name):
    raw.clip("a", depth=None)
    raw.clip("b", depth=None)
    monkeypatch.chdir(raw.root / "rgb")  # the path of a socket is short
    file = Path(name)
    file.unlink(missing_ok=True)
    {
        "named pipe": os.mkfifo,
        "device": lambda x: x.symlink_to("/dev/zero"),
        "socket": lambda x: socket.socket(socket.AF_UNIX).bind(str(x)),
    }[kind](file)
    clip = file.parent if name.startswith("a/") else file
    with pytest.raises(ValueError, match=rf"{name}: is a {kind}; expected a file"):
        read_user_clip(find_clips({"rgb": [str(clip)]}, ["rgb"])[0])
    if name.startswith("a/"):
        with pytest.raises(ValueError, match=f"is a {kind}"):
            list(encoded_frames("a", "rgb"))
        raw.lists(train=["a 4 0", "b 4 1"])
        for decode in (False, True):
            assert f"is a {kind}" in str(check_raw("rgbd_folder", raw.root, decode=decode).problems)
    elif name == "l.txt":
        file.rename(raw.root / "train.txt")
        raw.refused(f"train.txt: is a {kind}; expected a file")


def test_videos_are_opened_by_what_they_hold_and_not_by_their_names(raw, monkeypatch):
    raw.video("a.mp4", codec="mp4v").rename(raw.root / "12:30.mp4")
    raw.video("b.avi")
    monkeypatch.chdir(raw.root)
    assert len(read_user_clip(find_clips({"rgb": ["12:30.mp4"]}, ["rgb"])[0]).frames["rgb"]) == 10
    write_video(Path("12:31.mp4"), [np.zeros((8, 8, 3), np.uint8)], 12)
    Path("list.avi").write_text("ffconcat version 1.0\nfile b.avi\n")
    for read in (
        lambda: read_user_clip(UserClip("", {"rgb": Path("list.avi")})),
        lambda: list(encoded_frames("list.avi", "rgb")),
    ):
        with pytest.raises(ValueError, match=r"list\.avi: cannot be opened as a video"):
            read()


@pytest.mark.parametrize("label", [str(MAX_CLASSES), "1000000000", "9" * 5000])
def test_a_huge_label_is_named_with_its_line(raw, label):
    raw.clip("a", depth=None)
    raw.clip("b", depth=None)
    raw.lists(train=["a 4 0", f"b 4 {label}"])
    expected = f"a label from 0 to 65535, found {label}" if len(label) < 4300 else "`path frame_count label` with two"
    raw.refused(rf"train\.txt:2: expected {expected}")


def test_lists_of_too_many_classes_or_too_long_lines_are_refused(raw):
    raw.clip("a", depth=None)
    raw.lists(train=["a 4 0"], classes=map(str, range(MAX_CLASSES + 1)))
    raw.refused("classes.txt: names 65,537 classes; expected at most 65,536")
    raw.lists(train=["a 4 0", "x" * 10_000], classes=["a"])
    raw.refused(r"train\.txt:2: has 10,000 bytes in a line")


def test_paths_in_lists_may_hold_blanks(raw):
    raw.clip("wave  of a hand/1", depth=None)
    raw.lists(train=["wave  of a hand/1 4 0"])
    raw.build()
    assert [clip.name for clip in raw.records()] == ["wave  of a hand/1"]
    lists = raw.root / "clips.txt"
    lists.write_text("rgb/wave  of a hand/1\n")
    assert [clip.name for clip in find_clips({"rgb": [str(lists)]}, ["rgb"])] == [
        str(raw.root / "rgb/wave  of a hand/1")
    ]
