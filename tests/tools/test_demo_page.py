"""The page in a real browser, served by a process of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from rgbd_jax.data import loader
from rgbd_jax.data.frames import decode_frame
from rgbd_jax.data.source import open_split
from rgbd_jax.inference.clips import UserClip, read_user_clip
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.inference.video import write_video
from tests.conftest import ROOT
from tests.tiny import save_run, tiny_config

pytestmark = pytest.mark.optional
pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo')")


@pytest.fixture
def serve(small_demo, tmp_path):
    """Serves a network with random weights, or None: what is served by default; `stop` ends it by a signal.

    All temporary files are in one folder.
    """
    with contextlib.ExitStack() as stack:

        def start(modality, *flags):
            weights, folder = "demo-fusion", tmp_path / "temporary"
            folder.mkdir()
            if modality:
                weights = save_run(tiny_config(small_demo, modality), tmp_path / "run")
                flags = (f"--weights={weights}", *flags)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [sys.executable, "-m", "rgbd_jax", "serve", f"--port={port}", *flags]
            environment = {**os.environ, "TMPDIR": str(folder)}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
            stack.callback(process.kill)
            address = next(found[1] for line in process.stderr if (found := re.search(r"ready at (\S+)", line)))

            def files():
                return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size)

            def stop(number):
                process.send_signal(number)
                assert "Traceback" not in process.communicate(timeout=300)[1]
                assert process.returncode == 0
                assert list(folder.iterdir()) == []

            trained = load_trained(weights)
            return SimpleNamespace(address=address, trained=trained, folder=folder, files=files, stop=stop)

        yield start


@pytest.fixture
def visit(browser):
    """Opens pages of a server; `failures` collects errors in them, and requests to other hosts."""
    failures, pages = [], []

    def report(line):
        # Small files may have arrived before Gradio requests the progress; it logs the response then too.
        late = "upload_progress" in line.location["url"] or line.text.startswith("Response")
        if line.type == "error" and not late:
            failures.append(f"{line.text} {line.location}")

    def open_page(server, width=1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.set_default_timeout(180_000)
        page.on("console", report)
        page.on("pageerror", lambda error: failures.append(str(error)))
        own = (server.address, "data:", "blob:")
        page.on("request", lambda sent: None if sent.url.startswith(own) else failures.append(sent.url))
        page.goto(server.address)
        page.locator("#recognise").wait_for()
        return page

    open_page.failures = failures
    yield open_page
    for page in pages:
        page.close()


def upload(page, modality, *paths):
    page.locator(f"#clip-{modality} input[type=file]").set_input_files([str(path) for path in paths])


def recognise(page, **files):
    """Uploads files, modality -> files, and presses the button."""
    for modality, paths in files.items():
        upload(page, modality, *paths)
        page.locator(f"#clip-{modality}").get_by_text(paths[0].stem[:4]).first.wait_for()
    page.locator("#recognise").click()


def assert_prediction(page, trained, paths):
    """The page shows the five classes that the network predicts for a clip of files, and plays its videos."""
    page.locator("#predictions h2").wait_for()
    frames = loader.load_clip(read_user_clip(UserClip("clip", paths)), trained.config)
    probabilities = Predictor(trained, batch_size=1)({name: x[None] for name, x in frames.items()}).probabilities[0]
    best = np.argsort(-probabilities)[:5]
    assert page.locator("#predictions dt").all_inner_texts() == [trained.class_names[label] for label in best]
    percentages = [float(text.rstrip("%")) for text in page.locator("#predictions dd").all_inner_texts()]
    np.testing.assert_allclose(percentages, 100 * probabilities[best], atol=0.51)
    heads = page.inner_text("#heads")
    assert all(title in heads for title in trained.model.family.heads.values())
    playing = "count => [...document.querySelectorAll('video')].filter(x => x.currentTime > 0.1).length == count"
    page.wait_for_function(playing, arg=len(paths))


def test_uploads_and_examples_are_recognised_and_what_is_no_clip_is_named(serve, visit, small_demo, tmp_path):
    server = serve("rgb", "--max_megabytes=1", "--max_frames=40", f"--data_dir={small_demo}")
    clip = tmp_path / "wave.mp4"
    record = open_split("rgbd_demo", small_demo, "validation")[2]
    write_video(clip, [decode_frame(encoded, "rgb") for encoded in record.frames["rgb"]], 12)
    page = visit(server)
    assert "1 MB, 40 frames and 1920 pixels" in page.inner_text("body")
    recognise(page, rgb=[clip])
    assert_prediction(page, server.trained, {"rgb": clip})
    details = page.locator("#details textarea").input_value()
    assert re.search(r"wave.mp4: \d+ frames; loading \d+ ms, inference \d+ ms", details)
    results = server.files()
    assert results == ["image.webp", "rgb.mp4"]

    for name, content in (("text.mp4", b"#EXTM3U\n"), ("torn.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
        recognise(page, rgb=[tmp_path / name])
        message = page.locator(".toast-wrap").get_by_text(name)
        message.wait_for()
        assert str(server.folder) not in message.inner_text()
        page.locator("#clip-rgb").get_by_text(name[:4]).first.wait_for(state="detached")
        assert server.files() == results
    assert visit.failures == []
    for number in range(5):  # too large together
        (tmp_path / f"{number}.jpg").write_bytes(bytes(500_000 + number))
    upload(page, "rgb", *(tmp_path / f"{number}.jpg" for number in range(5)))
    page.get_by_text("up to 1 MB are accepted, all files together").first.wait_for()
    assert server.files() == results

    page.reload()
    (tmp_path / "large.mp4").write_bytes(bytes((1 << 20) + 1))
    upload(page, "rgb", tmp_path / "large.mp4")
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    visit.failures.clear()  # the refused requests

    phone = visit(server, width=375)
    phone.locator("#examples").get_by_text("push: push_").first.click()
    phone.locator("#predictions h2").wait_for()
    assert "push_" in phone.locator("#details textarea").input_value()
    assert phone.evaluate("document.documentElement.scrollWidth") == 375
    with phone.expect_response(re.compile(r"/upload\?")):
        upload(phone, "rgb", clip)
    assert visit.failures == []
    assert "wave.mp4" in server.files()  # the end of the server deletes what nobody used
    server.stop(signal.SIGTERM)


def test_a_fusion_network_and_the_end_by_ctrl_c(serve, visit, small_demo, tmp_path):
    server = serve("fusion", "--examples=0")
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
    recognise(page, rgb=sorted(paths["rgb"].iterdir()), depth=[tmp_path / "depth.zip"])
    assert_prediction(page, server.trained, paths)
    assert visit.failures == []
    server.stop(signal.SIGINT)


def test_the_bundled_network_answers_by_keyboard_and_on_a_phone(serve, visit):
    server = serve(None)
    page = visit(server, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip() == "push":
            break
    started = time.monotonic()
    page.keyboard.press("Enter")
    page.locator("#predictions h2").wait_for()
    print(f"answer after {time.monotonic() - started:.1f} s")
    assert page.inner_text("#predictions h2") == "push"
    assert page.locator("video").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert visit.failures == []
    server.stop(signal.SIGINT)


def test_the_camera_is_an_input(serve, visit):
    page = visit(serve("rgb"))
    camera = page.locator("#camera")
    for button in ("Access Webcam", "Record", "Stop"):
        camera.locator("button").get_by_text(button).click()
        page.wait_for_timeout(2000)
    camera.get_by_label("Trim video").wait_for()  # the recording has arrived
    page.locator("#recognise").click()
    page.locator("#predictions h2").wait_for()
    frames = re.search(r"webm: (\d+) frames", page.locator("#details textarea").input_value())
    assert 1 < int(frames[1]) < 300  # of two seconds, or of some more on a busy machine
    shape = "x => [x.videoWidth, x.videoHeight]"
    assert page.locator("video:not([data-testid=webcam-video])").evaluate(shape) == [480, 360]  # the camera's 640 x 480
    assert visit.failures == []
