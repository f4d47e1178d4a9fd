"""`rgbd predict`: clips, streams, drawings, and input that cannot be used."""

import json
import logging
import os
import re
import shutil
import threading
from pathlib import Path

import av
import cv2
import jax
import numpy as np
import pytest
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from rgbd_jax.data.source import open_split
from rgbd_jax.evaluation import evaluate
from rgbd_jax.inference import clips
from rgbd_jax.inference.clips import UserClip, encoded_frames, find_clips, read_user_clip
from rgbd_jax.inference.drawing import shown_frame
from rgbd_jax.inference.predictor import Predictor, stream
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.metrics import softmax
from rgbd_jax.model import Model
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.step import new_state
from rgbd_jax.tools import predict as tool
from rgbd_jax.tools import stream as stream_tool
from rgbd_jax.tools.arguments import NOT_FINITE
from tests.tiny import run_command, save_run, tiny_config

CLIPS = 3


@pytest.fixture(scope="module")
def runs(small_demo, tmp_path_factory):
    """Modality -> workdir of a network with random weights."""
    root = tmp_path_factory.mktemp("runs")
    names = ("rgb", "depth", "umdr_rgb")
    return {name: save_run(tiny_config(small_demo, name), root / name) for name in names}


@pytest.fixture(scope="module")
def raw(small_demo, tmp_path_factory):
    """RAW/rgb/NAME/0000.jpg ... and RAW/depth/NAME/0000.png ... of some validation clips, as files."""
    root = tmp_path_factory.mktemp("raw")
    split = open_split("rgbd_demo", small_demo, "validation")
    for index in range(CLIPS):
        for modality, frames in split[index].frames.items():
            for number, encoded in enumerate(frames):
                suffix = ".jpg" if encoded.startswith(b"\xff\xd8") else ".png"
                file = root / modality / split[index].name / f"{number:04}{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded)
    return root


@pytest.fixture
def predict(capsys, caplog, monkeypatch):
    """Runs the tool; returns what it prints, and logs into `caplog`."""
    monkeypatch.setattr(logging.getLogger("rgbd_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "rgbd_jax")

    def run(*arguments):
        try:
            run_command(tool, *arguments)
        finally:
            run.printed = capsys.readouterr().out.splitlines()
        return run.printed

    return run


def frames_of(video):
    capture = cv2.VideoCapture(str(video))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_clips_on_disk_get_the_probabilities_of_the_evaluation(runs, raw, small_demo, predict):
    workdir = runs["umdr_rgb"]
    evaluate(tiny_config(small_demo, "umdr_rgb"), workdir, "best")
    scores = Scores.load(scores_file(workdir, "validation"))
    lines = predict(f"--weights={workdir}", f"--rgb={raw / 'rgb'}", "--json", "--top=12", "--batch_size=2")
    assert len(lines) == CLIPS
    for line in map(json.loads, lines):
        index = scores.names.index(Path(line["clip"]).name)
        expected = softmax(scores.heads["logits"][index].astype(np.float64))
        probabilities = {entry["class"]: entry["probability"] for entry in line["top"]}
        np.testing.assert_allclose([probabilities[name] for name in CLASS_NAMES], expected, rtol=1e-4)
        assert [entry["label"] for entry in line["top"]] == np.argsort(-expected, kind="stable").tolist()


def test_a_table_a_list_and_a_drawing_of_each_clip(runs, raw, tmp_path, predict):
    names = sorted(path.name for path in (raw / "depth").iterdir())[:2]
    listed, out = tmp_path / "clips.txt", tmp_path / "drawn"
    listed.write_text("# two\n" + "\n".join(str(raw / "depth" / name) for name in names) + "\n\n")
    arguments = f"--weights={runs['depth']}", f"--depth={listed}", "--top=2", f"--out={out}"
    table = predict(*arguments)
    assert [table[0], table[3]] == [str(raw / "depth" / name) for name in names]
    (first, share), (_, second) = (row.split() for row in table[1:3])
    assert first in CLASS_NAMES
    assert float(share.rstrip("%")) >= float(second.rstrip("%"))
    for name in names:
        pictures = frames_of(out / f"{name}.mp4")
        originals = sorted((raw / "depth" / name).iterdir())
        assert len(pictures) == len(originals)
        # A caption below, and above it the frame, enlarged: depth in colours, of which the map hides at most 60 %.
        middle = len(pictures) // 2
        shown = shown_frame(originals[middle].read_bytes(), "depth", tiny_config("", "depth"))
        drawn = cv2.cvtColor(pictures[middle][:240], cv2.COLOR_BGR2RGB)
        assert pictures[middle][240:].max() > 200
        small = cv2.resize(drawn, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), shown.ravel())[0, 1] > 0.7
    with pytest.raises(ValueError, match="exists already"):
        predict(*arguments)


def test_a_stream_gets_the_predictions_of_clips_of_its_latest_frames(runs, raw, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rgbd_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "rgbd_jax")
    file, folders = tmp_path / "stream.avi", sorted((raw / "rgb").iterdir())[:2]
    pictures = [cv2.imread(str(frame)) for folder in folders for frame in sorted(folder.iterdir())]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 20, pictures[0].shape[1::-1])
    for picture in pictures:
        writer.write(picture)
    writer.release()
    saved = os.dup(0)
    with file.open("rb") as standard_input:
        os.dup2(standard_input.fileno(), 0)
        try:
            run_command(stream_tool, f"--weights={runs['rgb']}", "--rgb=-", "--window=12", "--hop=10", "--json")
        finally:
            os.dup2(saved, 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(11, len(pictures), 10))
    assert all(line["latency_ms"] > 0 for line in lines)
    assert len({line["probability"] for line in lines}) > 1
    assert "frames a second" in caplog.text
    predictor = Predictor(load_trained(runs["rgb"]), batch_size=1)
    decoded = frames_of(file)
    for line in (lines[0], lines[-1]):
        folder = tmp_path / f"window_{line['frame']}"
        folder.mkdir()
        for number in range(line["frame"] - 11, line["frame"] + 1):
            cv2.imwrite(str(folder / f"{number:04}.png"), decoded[number])
        (alone,) = stream(predictor, {"rgb": encoded_frames(str(folder), "rgb")}, window=100, hop=1)
        assert alone.probabilities[line["label"]] == pytest.approx(line["probability"], abs=0.02)


def test_a_pipe_carries_an_mpeg_transport_stream(tmp_path):
    file, pipe = tmp_path / "stream.ts", tmp_path / "pipe"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg2video", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    writer.start()
    assert len([*encoded_frames(str(pipe), "rgb")]) == 12
    writer.join()


def test_a_network_that_overflows_predicts_nothing(small_demo, raw, tmp_path, predict, caplog):
    config, clip = tiny_config(small_demo), sorted((raw / "rgb").iterdir())[0]
    model = Model(config, len(CLASS_NAMES))
    huge = jax.tree.map(lambda values: np.full_like(values, 1e30), model.init(0)[0])
    weights = save_run(config, tmp_path / "run", new_state(model, huge, model.init(0)[1]))
    with pytest.raises(ValueError, match="1 of 1 clips could not be used"):
        predict(f"--weights={weights}", f"--rgb={clip}", "--json")
    assert (predict.printed, NOT_FINITE in caplog.text) == ([], True)
    with pytest.raises(ValueError, match=NOT_FINITE):
        run_command(stream_tool, f"--weights={weights}", f"--rgb={clip}", "--hop=1", "--window=8")


def test_bad_clips_are_reported_and_the_others_predicted(runs, raw, tmp_path, predict, caplog):
    good, torn = sorted((raw / "rgb").iterdir())[0], tmp_path / "torn"
    problems = {
        "torn": "damaged",
        "empty.mp4": "is it empty",
        "text.mp4": "cannot be opened as a video",
        "notes.pdf": "neither a folder",
    }
    for name, content in (("empty.mp4", b""), ("text.mp4", b"not a video"), ("notes.pdf", b"%PDF")):
        (tmp_path / name).write_bytes(content)
    shutil.copytree(good, torn)
    for frame in torn.iterdir():
        frame.write_bytes(frame.read_bytes()[:300])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="4 of 5 clips could not be used"):
        predict(
            f"--weights={runs['rgb']}", *(f"--rgb={tmp_path / name}" for name in problems), f"--rgb={good}", "--json"
        )
    assert [json.loads(line)["clip"] for line in predict.printed] == [str(good)]
    for name, problem in problems.items():
        assert re.search(f"{tmp_path / name}.*{problem}", caplog.text)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=nowhere", "--rgb=x"], "nowhere"),
        (["--weights={rgb}"], "give --rgb PATH"),
        (["--weights={rgb}", "--rgb=nowhere.mp4"], r"nowhere\.mp4: no such file or folder"),
        (["--weights={rgb}", "--rgb=-"], "- is a stream, not a clip: use `rgbd stream`"),
    ],
)
def test_wrong_arguments_are_named(runs, predict, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        predict(*(argument.format(rgb=runs["rgb"]) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--rgb=camera:x"], "expected a number"), (["--depth=-"], "reads rgb: give --rgb")]
)
def test_wrong_streams_are_named(runs, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_command(stream_tool, f"--weights={runs['rgb']}", *arguments)


def test_clips_of_other_lengths_and_lone_clips_are_refused(raw, tmp_path, monkeypatch):
    rgb, longer = sorted((raw / "rgb").iterdir())[0], tmp_path / "longer"
    shutil.copytree(raw / "depth" / rgb.name, longer)
    count = len(list(longer.iterdir()))
    shutil.copy(longer / "0000.png", longer / f"{count:04}.png")
    with pytest.raises(ValueError, match=f"found {count} rgb and {count + 1} depth frames"):
        read_user_clip(UserClip("clip", {"rgb": rgb, "depth": longer}))
    monkeypatch.setattr(clips, "MAX_FRAMES", count - 1)
    with pytest.raises(ValueError, match=f"has {count} frames, more than {count - 1}: cut it to one motion"):
        read_user_clip(UserClip("clip", {"rgb": rgb}))
    with pytest.raises(ValueError, match=f"found {CLIPS} rgb and 1 depth clips"):
        find_clips({"rgb": [str(raw / "rgb")], "depth": [str(longer)]}, ("rgb", "depth"))
