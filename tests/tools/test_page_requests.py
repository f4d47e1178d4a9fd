"""The served page without a browser: files of several users, and requests under other names."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from rgbd_jax.inference.trained import load_trained
from rgbd_jax.inference.video import write_video
from rgbd_jax.tools.page.uploads import Limits
from tests.tiny import save_run, tiny_config

pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo')")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Address of the page of a network with random weights, and the folder of its files."""
    from rgbd_jax.tools.page.app import DemoPage

    folder = tmp_path_factory.mktemp("page").resolve()
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        trained = load_trained(save_run(tiny_config("unused", "rgb"), tmp_path_factory.mktemp("runs") / "run"))
        served = DemoPage(trained, Limits(5, 40, 640), {}, folder)
        yield served.launch("127.0.0.1", port, ["demo.example.org"]), folder
        served.close(5)


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "wave.mp4", [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(8)], 12)
    return tmp_path / "wave.mp4"


def upload(page, file):
    """Uploads a file; returns its path on the server."""
    (path,) = httpx.post(f"{page[0]}gradio_api/upload", files={"files": (file.name, file.read_bytes())}).json()
    return path


def recognise(page, path):
    """Asks for the prediction of a file on the server; returns its classes and the path of its video, or the error."""
    call = f"{page[0]}gradio_api/call/_recognise"
    data = [[{"path": path, "meta": {"_type": "gradio.FileData"}}], None]  # a file, and no recording
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    lines = httpx.get(f"{call}/{event}", timeout=300).text.splitlines()
    outputs = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
    return outputs[0], outputs[1] and outputs[1]["path"]


def test_the_same_file_of_two_users_is_two_files(page, clip):
    paths = [upload(page, clip) for _ in range(2)]
    assert len(set(paths)) == 2
    (first, video), (second, _) = (recognise(page, path) for path in paths)
    assert first == second
    assert first["label"]
    assert not any(Path(path).exists() for path in paths)  # uploads are deleted with the answer
    assert Path(video).stat().st_size


def test_a_file_that_is_no_upload_is_left_alone(page, clip):
    _, video = recognise(page, upload(page, clip))
    assert recognise(page, video)[1] is None  # another user's result
    assert Path(video).stat().st_size


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("localhost:{}", True),
        ("LOCALHOST", True),
        ("127.0.0.1:{}", True),
        ("[::1]:{}", True),
        ("192.168.1.7:{}", True),
        ("demo.example.org", True),
        ("evil.example.org:{}", False),
        ("localhost.evil.example.org", False),
        ("127.0.0.1.evil.example.org:{}", False),
        ("", False),
    ],
)
def test_the_page_answers_to_its_own_names_alone(page, host, accepted):
    url = httpx.URL(page[0])
    for path in ("/", "/config"):
        answer = httpx.get(url.join(path), headers={"host": host.format(url.port)})
        assert answer.status_code == (200 if accepted else 400)
        assert accepted or "--allow_host" in answer.text
