"""The page to try a network on, as a browser shows it: a real server, a real Chromium."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_jax.data import loader
from rgbd_jax.data.codec import decode_frame
from rgbd_jax.data.source import open_split
from rgbd_jax.inference.clips import UserClip, read_user_clip
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.inference.video import write_video
from tests.tiny import save_run, tiny_config

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.optional,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed (the extra 'demo')"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="Playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]


class Server:
    """A page in a process of its own, whose temporary files all lie in one folder."""

    def __init__(self, workdir, folder, *flags):
        self.workdir, self.folder = workdir, folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rgbd_jax.tools.serve", "--workdir", workdir, "--port", str(port), *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        self.ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self.ready.wait(120), self.said
        self.address = next(found[1] for line in self.said if (found := re.search(r"ready at (\S+)", line)))

    def _listen(self):
        for line in self.process.stderr:
            self.said.append(line)
            if "ready at" in line:
                self.ready.set()

    def files(self):
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def rgb(small_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    workdir = save_run(tiny_config(small_demo, "rgb"), folder / "rgb")
    server = Server(workdir, folder / "temporary", "--max_megabytes=1", "--max_frames=40")
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def fusion(small_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    workdir = save_run(tiny_config(small_demo, "fusion"), folder / "fusion")
    server = Server(workdir, folder / "temporary", "--examples=0")
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens pages of a server; nothing may go wrong in them, and they may ask nobody else for anything."""
    opened = []

    def open_it(server, width=1280):
        page = chromium.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(15_000)
        page.wrong = []
        page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        own = (server.address, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else page.wrong.append(asked.url))
        page.goto(server.address)
        page.locator("#ask").wait_for()
        opened.append(page)
        return page

    yield open_it
    for page in opened:
        page.close()


def recognise(page, **files):
    """Uploads files, modality -> files, presses the button, and returns what the page says."""
    for modality, paths in files.items():
        page.locator(f"#clip-{modality} input[type=file]").set_input_files([str(path) for path in paths])
        page.locator(f"#clip-{modality}").get_by_text(paths[0].stem[:8]).first.wait_for()
    page.evaluate("document.querySelectorAll('#result .rj-card').forEach(each => each.dataset.old = 'yes')")
    page.locator("#ask").click()
    page.locator("#result .rj-card:not([data-old])").wait_for()
    return page.locator("#result")


def frames_of(small_demo, number, modality="rgb"):
    record = open_split("rgbd_demo", small_demo, "validation")[number]
    return [decode_frame(encoded, modality) for encoded in record.frames[modality]]


def expected_top(workdir, paths):
    """The five classes that a network names for a clip of files, with their probabilities."""
    trained = load_trained(workdir)
    frames = loader.load_clip(read_user_clip(UserClip("clip", paths)), trained.config)
    said = Predictor(trained, batch_size=1)({modality: x[None] for modality, x in frames.items()})
    best = np.argsort(-said.probabilities[0])[:5]
    return [(trained.class_names[k], 100 * said.probabilities[0][k]) for k in best]


def assert_top(result, expected):
    names = result.locator(".rj-class").all_inner_texts()
    shares = [float(text.split()[0]) for text in result.locator(".rj-confidence").all_inner_texts()]
    assert names == [name for name, _ in expected]
    np.testing.assert_allclose(shares, [share for _, share in expected], atol=0.06)


def wait_until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


def test_uploaded_video(rgb, visit, small_demo, tmp_path):
    clip = tmp_path / "my wave <b>.mp4"
    write_video(clip, frames_of(small_demo, 2), 12)
    page = visit(rgb)
    assert "1 MB, 40 frames and 1920 pixels" in page.inner_text("body")
    result = recognise(page, rgb=[clip])
    expected = expected_top(rgb.workdir, {"rgb": clip})
    assert_top(result, expected)
    assert result.locator("h2").inner_text() == expected[0][0]
    assert clip.stem[:7] in result.inner_text()
    assert result.locator("b").count() == 0  # names are text, not HTML
    for branch in ("all branches together", "branch of 2 frames", "branch of 4 frames", "branch of 6 frames"):
        assert branch in result.inner_text()
    assert re.search(r"It took .*the network [\d.]+ m?s", result.inner_text())
    video = result.locator("video")
    page.wait_for_function("document.querySelector('#result video').currentTime > 0.1")
    assert video.evaluate("each => [each.videoWidth, each.videoHeight, each.error]") == [320, 240, None]
    assert video.evaluate("each => each.duration") == pytest.approx(len(frames_of(small_demo, 2)) / 12, abs=0.05)
    assert result.locator("img").evaluate("each => each.complete && each.naturalWidth") > 600
    # Of all files, the video that is shown is left while it is shown.
    assert [path.name for path in rgb.files()] == ["rgb.mp4"]
    page.close()
    wait_until(lambda: rgb.files() == [])
    assert page.wrong == []


def test_examples_and_keyboard_on_a_phone(rgb, visit, small_demo):
    page = visit(rgb, width=375)
    page.locator("#example input").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#ask-example").focus()
    page.keyboard.press("Enter")
    page.locator("#result article").wait_for()
    name = page.locator("#example input").input_value()
    said = page.inner_text("#result")
    class_name, clip = name.split(": ")
    assert clip in said
    right = page.inner_text("#result h2") == class_name
    assert f"{'Right' if right else 'Wrong'}: it is an example of {class_name}." in said
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    split = open_split("rgbd_demo", small_demo, "validation")
    classes = {split.class_names[split[place].label] for place in range(len(split)) if split[place].name == clip}
    assert classes == {class_name}
    assert page.wrong == []


def faulty_files(folder, small_demo):
    """Files that are no clip -> what the page has to say of them."""
    frames = frames_of(small_demo, 0)
    good = folder / "good.mp4"
    write_video(good, frames, 12)
    content = good.read_bytes()
    bad = {}

    def file(name, content, *said):
        (folder / name).write_bytes(content)
        bad[folder / name] = said

    file("empty.mp4", b"", "empty.mp4", "empty")
    file("text.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://example.org/a.ts\n", "text.mp4", "does not start as a video")
    file("truncated.mp4", content[: len(content) // 2], "truncated.mp4", "damaged")
    file("rubbish.mkv", b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40, "rubbish.mkv", "damaged")
    file("picture.png", b"no picture", "picture.png", "neither JPEG nor PNG")
    file("packed.zip", b"PK\x03\x04 no archive", "packed.zip", "damaged")
    with zipfile.ZipFile(folder / "letter.zip", "w") as archive:
        archive.writestr("frames/../../letter.txt", "hello")
    bad[folder / "letter.zip"] = ("letter.zip", "letter.txt is no frame")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000.png", bytes(9 << 20))
    bad[folder / "bomb.zip"] = ("bomb.zip", "more than 4 MB")
    with zipfile.ZipFile(folder / "gap.zip", "w") as archive:
        for number in (0, 1, 2, 4, 5):
            archive.writestr(f"clip/{number:03}.jpg", cv2.imencode(".jpg", frames[0])[1].tobytes())
    bad[folder / "gap.zip"] = ("frame 3 is missing",)
    write_video(folder / "long.mp4", (frames * 3)[:41], 12)
    bad[folder / "long.mp4"] = ("long.mp4", "more than 40 frames")
    write_video(folder / "wide.mp4", [np.zeros((2, 1922, 3), np.uint8)], 12)
    bad[folder / "wide.mp4"] = ("wide.mp4", "1922x2 pixels", "1920")
    return bad


def test_what_is_no_clip_is_told_and_deleted(rgb, visit, small_demo, tmp_path):
    page = visit(rgb)
    told = recognise(page)
    assert "no rgb clip yet" in told.get_by_role("alert").inner_text()
    for path, said in faulty_files(tmp_path, small_demo).items():
        message = recognise(page, rgb=[path]).get_by_role("alert").inner_text()
        for text in said:
            assert text in message
        assert str(rgb.folder) not in message
        assert rgb.files() == [], path
    clip = tmp_path / "good.mp4"  # and the page goes on
    assert_top(recognise(page, rgb=[clip]), expected_top(rgb.workdir, {"rgb": clip}))
    assert page.wrong == []
    assert not [line for line in rgb.said if "ready at" not in line and "compiling" not in line]


def test_files_that_are_too_large_are_refused(rgb, visit, tmp_path):
    page = visit(rgb)
    (tmp_path / "large.mp4").write_bytes(bytes((1 << 20) + 1))
    page.locator("#clip-rgb input[type=file]").set_input_files(str(tmp_path / "large.mp4"))
    page.get_by_text(re.compile(r"exceed the maximum allowed size of (1\.0 Mb|1024\.0 Kb)")).first.wait_for()
    # So are many that are too large together.
    page.locator("#clip-rgb").get_by_label("Clear").click()
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(500_000 + number))
    page.locator("#clip-rgb input[type=file]").set_input_files([str(tmp_path / f"{n}.jpg") for n in range(5)])
    page.get_by_text("up to 1 MB are taken, all files together").first.wait_for()
    assert rgb.files() == []


def test_fusion_network_and_the_end_by_ctrl_c(fusion, visit, small_demo, tmp_path):
    page = visit(fusion)
    record = open_split("rgbd_demo", small_demo, "validation")[5]
    paths = {}
    for modality, suffix in (("rgb", "jpg"), ("depth", "png")):
        paths[modality] = tmp_path / modality
        paths[modality].mkdir()
        for number, encoded in enumerate(record.frames[modality]):
            (paths[modality] / f"{modality}_{number}.{suffix}").write_bytes(encoded)
    with zipfile.ZipFile(tmp_path / "depth.zip", "w") as archive:
        for file in paths["depth"].iterdir():
            archive.write(file, f"some folder/{file.name}")
    frames = [paths["rgb"] / f"rgb_{number}.jpg" for number in range(len(record.frames["rgb"]))]
    message = recognise(page, rgb=frames[:-1], depth=[tmp_path / "depth.zip"]).get_by_role("alert").inner_text()
    count = len(frames)
    assert f"found {count - 1} rgb and {count} depth frames" in message
    assert fusion.files() == []
    result = recognise(page, rgb=frames, depth=[tmp_path / "depth.zip"])
    assert_top(result, expected_top(fusion.workdir, paths))
    assert result.locator("video").count() == result.locator("img").count() == 2
    page.wait_for_function("[...document.querySelectorAll('#result video')].every(each => each.videoWidth == 320)")
    for stream in ("both streams, fused", "RGB stream", "depth stream"):
        assert stream in result.inner_text()
    assert page.wrong == []
    assert fusion.stop(signal.SIGINT) == 0
    assert list(fusion.folder.iterdir()) == []
    assert "Traceback" not in "".join(fusion.said)


def test_end_by_signal_leaves_nothing(rgb, visit, small_demo, tmp_path):
    """The last test of this server."""
    clip = tmp_path / "clip.mp4"
    write_video(clip, frames_of(small_demo, 3), 12)
    page = visit(rgb)
    recognise(page, rgb=[clip])
    page.locator("#clip-rgb input[type=file]").set_input_files(str(clip))  # an upload that nobody asks about
    page.locator("#clip-rgb").get_by_text("clip").first.wait_for()
    wait_until(lambda: len(rgb.files()) == 2)
    assert rgb.stop(signal.SIGTERM) == 0
    assert list(rgb.folder.iterdir()) == []
    assert "Traceback" not in "".join(rgb.said)


def run(*arguments, before="pass"):
    code = f"import runpy, sys; {before}; runpy.run_module('rgbd_jax.tools.serve', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_what_keeps_the_page_from_starting_is_told_in_a_line(tmp_path):
    without = run("--workdir", tmp_path, before="sys.modules['gradio'] = None")
    told = "error: the page needs Gradio (the extra 'demo'), which is not installed: run ./scripts/setup.sh\n"
    assert without.stderr == told
    assert without.returncode == 1
    absent = run("--workdir", tmp_path / "absent")
    assert "absent" in absent.stderr
    for finished in (without, absent, run("--workdir", tmp_path, "--max_frames=0"), run()):
        assert finished.returncode != 0
        assert finished.stdout == ""
        assert "Traceback" not in finished.stderr
