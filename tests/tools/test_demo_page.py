"""The page in a real browser, served by a process of its own."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from rgbd_jax.data import loader
from rgbd_jax.data.codec import decode_frame
from rgbd_jax.data.source import open_split
from rgbd_jax.inference.clips import UserClip, read_user_clip
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.inference.video import write_video
from tests.conftest import ROOT
from tests.tiny import save_run, tiny_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.optional,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed (the extra 'demo')"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="Playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]


class Server:
    """The page of a network with random weights, whose temporary files all lie in one folder."""

    def __init__(self, data_dir, modality, folder, *flags):
        self.workdir, self.folder = save_run(tiny_config(data_dir, modality), folder / "run"), folder / "temporary"
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "rgbd_jax", "serve", f"--workdir={self.workdir}", f"--port={port}", *flags]
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if ready := re.search(r"ready at (\S+)", line):
                self.address = ready[1]
                break

    def files(self):
        """Names of the files with content."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size)

    def stop(self, number):
        """Stops the server and returns what it logged since it was ready."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def rgb(small_demo, tmp_path_factory):
    server = Server(small_demo, "rgb", tmp_path_factory.mktemp("page"), "--max_megabytes=1", "--max_frames=40")
    yield server
    server.process.kill()


@pytest.fixture
def visit():
    """Opens pages of a server, in which nothing may fail, and which may contact no other host."""
    from playwright.sync_api import sync_playwright

    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        failures = []

        def open_page(server, width=1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.set_default_timeout(30_000)
            page.on("console", lambda line: failures.append(line.text) if line.type == "error" else None)
            page.on("pageerror", lambda error: failures.append(str(error)))
            own = (server.address, "data:", "blob:")
            page.on("request", lambda sent: None if sent.url.startswith(own) else failures.append(sent.url))
            page.goto(server.address)
            page.locator("#recognise").wait_for()
            return page

        yield open_page
        browser.close()
    assert [failure for failure in failures if "413" not in failure] == []


def upload(page, **files):
    """Uploads files, modality -> files, and presses the button."""
    for modality, paths in files.items():
        page.locator(f"#clip-{modality} input[type=file]").set_input_files([str(path) for path in paths])
        page.locator(f"#clip-{modality}").get_by_text(paths[0].stem[:6]).first.wait_for()
    page.locator("#recognise").click()


def assert_prediction(page, server, paths):
    """The page shows the five classes that the network predicts for a clip of files, and plays its videos."""
    page.locator("#predictions h2").wait_for()
    trained = load_trained(server.workdir)
    frames = loader.load_clip(read_user_clip(UserClip("clip", paths)), trained.config)
    probabilities = Predictor(trained, batch_size=1)({name: x[None] for name, x in frames.items()}).probabilities[0]
    best = np.argsort(-probabilities)[:5]
    assert page.locator("#predictions dt").all_inner_texts() == [trained.class_names[label] for label in best]
    percentages = [float(text.rstrip("%")) for text in page.locator("#predictions dd").all_inner_texts()]
    np.testing.assert_allclose(percentages, 100 * probabilities[best], atol=0.51)
    heads = page.inner_text("#heads")
    assert all(title in heads for title in trained.model.family.heads.values())
    page.wait_for_function(
        "count => [...document.querySelectorAll('video')].filter(each => each.videoWidth == 320).length == count",
        arg=len(paths),
    )


def frames_of(small_demo, index):
    record = open_split("rgbd_demo", small_demo, "validation")[index]
    return [decode_frame(encoded, "rgb") for encoded in record.frames["rgb"]]


def test_an_uploaded_video_is_recognised_and_deleted(rgb, visit, small_demo, tmp_path):
    clip = tmp_path / "my wave.mp4"
    write_video(clip, frames_of(small_demo, 2), 12)
    page = visit(rgb)
    assert "1 MB, 40 frames and 1920 pixels" in page.inner_text("body")
    upload(page, rgb=[clip])
    assert_prediction(page, rgb, {"rgb": clip})
    details = page.locator("#details textarea").input_value()
    assert re.search(r"my wave.mp4: \d+ frames; loading \d+ ms, inference \d+ ms", details)
    page.wait_for_function("document.querySelector('video').currentTime > 0.1")
    assert rgb.files() == ["image.webp", "rgb.mp4"]  # the results


def test_an_example_on_a_phone(rgb, visit):
    page = visit(rgb, width=375)
    example = page.locator("#examples button").nth(1)
    class_name, clip = example.inner_text().split(": ")
    example.click()
    page.locator("#predictions h2").wait_for()
    assert class_name in clip
    assert clip in page.locator("#details textarea").input_value()
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_uploads_that_cannot_be_used_are_named_and_deleted(rgb, visit, tmp_path):
    page, before = visit(rgb), rgb.files()
    for name, content in (("text.mp4", b"#EXTM3U\n"), ("cut.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
        upload(page, rgb=[tmp_path / name])
        message = page.locator(".toast-wrap").get_by_text(name)
        message.wait_for()
        assert str(rgb.folder) not in message.inner_text()
        assert rgb.files() == before
    (tmp_path / "large.mp4").write_bytes(bytes((1 << 20) + 1))
    page.locator("#clip-rgb input[type=file]").set_input_files(str(tmp_path / "large.mp4"))
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    page.locator("#clip-rgb").get_by_label("Clear").click()
    many = [tmp_path / f"{number}.jpg" for number in range(5)]  # too large together
    for number, path in enumerate(many):
        path.write_bytes(bytes(500_000 + number))
    page.locator("#clip-rgb input[type=file]").set_input_files([str(path) for path in many])
    page.get_by_text("up to 1 MB are accepted, all files together").first.wait_for()
    assert rgb.files() == before
    upload_left = tmp_path / "left.png"  # and the end of the server deletes an upload that nobody used
    upload_left.write_bytes(b"left")
    page.reload()
    page.locator("#clip-rgb input[type=file]").set_input_files(str(upload_left))
    page.locator("#clip-rgb").get_by_text("left").first.wait_for()
    assert "left.png" in rgb.files()
    logged = rgb.stop(signal.SIGTERM)
    assert rgb.process.returncode == 0
    assert "Traceback" not in logged
    assert list(rgb.folder.iterdir()) == []


def test_a_fusion_network_and_the_end_by_ctrl_c(visit, small_demo, tmp_path):
    server = Server(small_demo, "fusion", tmp_path / "server", "--examples=0")
    record = open_split("rgbd_demo", small_demo, "validation")[5]
    paths = {modality: tmp_path / modality for modality in ("rgb", "depth")}
    for modality, suffix in (("rgb", "jpg"), ("depth", "png")):
        paths[modality].mkdir()
        for number, encoded in enumerate(record.frames[modality]):
            (paths[modality] / f"{modality}_{number}.{suffix}").write_bytes(encoded)
    with zipfile.ZipFile(tmp_path / "depth.zip", "w") as archive:
        for file in paths["depth"].iterdir():
            archive.write(file, f"some folder/{file.name}")
    page = visit(server)
    upload(page, rgb=sorted(paths["rgb"].iterdir()), depth=[tmp_path / "depth.zip"])
    assert_prediction(page, server, paths)
    logged = server.stop(signal.SIGINT)
    assert server.process.returncode == 0
    assert "Traceback" not in logged
    assert list(server.folder.iterdir()) == []
