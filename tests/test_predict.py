"""`python -m rgbd_jax.tools.predict` as a user meets it: clips, streams, drawings, and what is said of wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from rgbd_jax.data.source import open_split
from rgbd_jax.evaluate import evaluate
from rgbd_jax.inference.clips import MOST_FRAMES, ClipError, UserClip, find_clips, load_clips, read_user_clip
from rgbd_jax.inference.drawing import shown_frame
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.streaming import stream_labels
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.metrics import softmax
from rgbd_jax.pytorch.convert import match_network, write_weights
from rgbd_jax.pytorch.weights import read_weights
from rgbd_jax.scores import Scores, scores_file
from tests.conftest import ROOT
from tests.tiny import save_run, tiny_config

CLIPS = 3


@pytest.fixture(scope="module")
def runs(small_demo, tmp_path_factory):
    """Stream -> workdir of a network with random weights."""
    root = tmp_path_factory.mktemp("runs")
    return {stream: save_run(tiny_config(small_demo, stream), root / stream) for stream in ("rgb", "depth", "fusion")}


@pytest.fixture(scope="module")
def raw(small_demo, tmp_path_factory):
    """RAW/rgb/NAME/0000.jpg ... and RAW/depth/NAME/0000.png ... of some validation clips, as files."""
    root = tmp_path_factory.mktemp("raw")
    split = open_split("rgbd_demo", small_demo, "validation")
    for place in range(CLIPS):
        for modality, frames in split[place].frames.items():
            for number, encoded in enumerate(frames):
                suffix = ".jpg" if encoded.startswith(b"\xff\xd8") else ".png"
                file = root / modality / split[place].name / f"{number:04}{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded)
    return root


def predict(*arguments, **options):
    command = [sys.executable, "-m", "rgbd_jax.tools.predict", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600, **options)


def lines(finished):
    assert finished.returncode == 0, finished.stderr.decode()
    return [json.loads(line) for line in finished.stdout.splitlines()]


def video(file: Path, clips: list[Path]) -> Path:
    """Writes the frames of folders, one after the other, as Motion JPEG: every frame as it is."""
    writer = None
    for folder in clips:
        for frame in sorted(folder.iterdir()):
            picture = cv2.imread(str(frame))
            writer = writer or cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 20, picture.shape[1::-1])
            writer.write(picture)
    writer.release()
    return file


@pytest.mark.parametrize("stream", ["rgb", "fusion"])
def test_clips_on_disk_get_what_the_evaluation_said_of_them(runs, raw, stream):
    workdir = runs[stream]
    config = tiny_config(load_trained(workdir).config.data.data_dir, stream)
    evaluate(config, workdir, "best")
    scores = Scores.load(scores_file(workdir, "validation"))
    paths = [f"--rgb={raw / 'rgb'}", f"--depth={raw / 'depth'}"] if stream == "fusion" else [f"--rgb={raw / 'rgb'}"]
    told = lines(predict(f"--workdir={workdir}", *paths, "--json", "--top=12", "--batch_size=2"))
    assert len(told) == CLIPS
    for line in told:
        place = scores.names.index(Path(line["clip"]).name)
        expected = softmax(scores.heads["logits"][place].astype(np.float64))
        found = {entry["class"]: entry["probability"] for entry in line["top"]}
        np.testing.assert_allclose([found[name] for name in CLASS_NAMES], expected, rtol=1e-4)
        assert [entry["label"] for entry in line["top"]] == np.argsort(-expected, kind="stable").tolist()


def test_a_table_a_list_and_a_drawing_of_each_clip(runs, raw, tmp_path):
    names = sorted(path.name for path in (raw / "depth").iterdir())
    listed = tmp_path / "clips.txt"
    listed.write_text("# two\n" + "\n".join(str(raw / "depth" / name) for name in names[:2]) + "\n\n")
    out = tmp_path / "drawn"
    trained = load_trained(runs["depth"])
    finished = predict(f"--workdir={runs['depth']}", f"--depth={listed}", "--top=2", f"--out={out}")
    assert finished.returncode == 0, finished.stderr.decode()
    table = finished.stdout.decode().splitlines()
    assert len(table) == 6
    assert [table[0], table[3]] == [str(raw / "depth" / name) for name in names[:2]]
    assert table[1].split()[0] in CLASS_NAMES
    assert float(table[1].split()[1].rstrip("%")) >= float(table[2].split()[1].rstrip("%"))
    for name in names[:2]:
        capture = cv2.VideoCapture(str(out / f"{name}.mp4"))
        pictures = []
        while (read := capture.read())[0]:
            pictures.append(read[1])
        originals = sorted((raw / "depth" / name).iterdir())
        assert len(pictures) == len(originals)
        # A caption below, and above it the frame, enlarged: depth in colours, of which the map hides at most 60 %.
        middle = len(pictures) // 2
        shown = shown_frame(originals[middle].read_bytes(), "depth", trained.config)
        drawn = cv2.cvtColor(pictures[middle][:240], cv2.COLOR_BGR2RGB)
        assert pictures[middle][240:].max() > 200
        small = cv2.resize(drawn, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), shown.ravel())[0, 1] > 0.7
        other = pictures[middle - 5][:240].astype(int) - pictures[middle][:240]
        assert np.abs(other).max() > 20  # the clip moves
    again = predict(f"--workdir={runs['depth']}", f"--depth={listed}", f"--out={out}")
    assert again.returncode == 1
    assert b"exists already" in again.stderr


def test_a_stream_is_labelled_as_a_clip_of_its_latest_frames(runs, raw, tmp_path):
    folders = sorted((raw / "rgb").iterdir())[:2]
    file = video(tmp_path / "stream.avi", folders)
    command = predict(
        f"--workdir={runs['rgb']}", "--rgb=-", "--window=12", "--hop=10", "--json", input=file.read_bytes()
    )
    told = lines(command)
    frames = sum(len(list(folder.iterdir())) for folder in folders)
    assert [line["frame"] for line in told] == list(range(11, frames, 10))
    assert all(line["latency_ms"] > 0 for line in told)
    assert b"frames a second" in command.stderr
    # The same frames as a clip of their own, through the other way in.
    predictor = Predictor(load_trained(runs["rgb"]), batch_size=1)
    capture = cv2.VideoCapture(str(file))
    every = [capture.read()[1] for _ in range(frames)]
    for line in (told[0], told[-1]):
        folder = tmp_path / f"window_{line['frame']}"
        folder.mkdir()
        for number in range(line["frame"] - 11, line["frame"] + 1):
            cv2.imwrite(str(folder / f"{number:04}.png"), every[number])
        (alone,) = stream_labels(predictor, {"rgb": str(folder)}, window=100, hop=1)
        assert alone.probabilities[line["label"]] == pytest.approx(line["probability"], abs=0.02)
    assert len({line["probability"] for line in told}) > 1


def test_of_a_list_bad_clips_are_told_and_the_others_done(runs, raw, tmp_path):
    good = sorted((raw / "rgb").iterdir())[0]
    for name, content in {"empty.mp4": b"", "text.mp4": b"not a video", "notes.pdf": b"%PDF"}.items():
        (tmp_path / name).write_bytes(content)
    torn = tmp_path / "torn"
    torn.mkdir()
    for frame in sorted(good.iterdir()):
        (torn / frame.name).write_bytes(frame.read_bytes()[:300])
    bad = [tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "notes.pdf", torn]
    before = sorted(tmp_path.rglob("*"))
    finished = predict(f"--workdir={runs['rgb']}", *(f"--rgb={path}" for path in (*bad, good)), "--json")
    assert finished.returncode == 1
    assert [json.loads(line)["clip"] for line in finished.stdout.splitlines()] == [str(good)]
    said = finished.stderr.decode()
    assert "Traceback" not in said
    for path, what in zip(
        bad, ("is empty", "no frame that can be decoded", "neither a folder", "damaged"), strict=True
    ):
        assert [line for line in said.splitlines() if str(path) in line and what in line], path
    assert "4 of the clips could not be used" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workdir=nowhere", "--rgb=x"], "nowhere"),
        (["--workdir={rgb}"], "give --rgb=PATH"),
        (["--workdir={rgb}", "--rgb=nowhere.mp4"], "nowhere.mp4: no such file or folder"),
        (["--workdir={rgb}", "--rgb=camera:x"], "expected a number"),
        (["--workdir={rgb}", "--rgb=-", "--out=x.mp4"], "--out draws clips"),
        (["--workdir={rgb}", "--rgb=a", "b"], "unexpected arguments: b"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(runs, arguments, said):
    finished = predict(*(argument.format(rgb=runs["rgb"]) for argument in arguments))
    assert finished.returncode == 1
    assert not finished.stdout
    assert said in finished.stderr.decode()
    assert "Traceback" not in finished.stderr.decode()


def test_depth_of_another_length_and_lone_clips_are_refused(raw, tmp_path):
    name = sorted(path.name for path in (raw / "rgb").iterdir())[0]
    longer = tmp_path / "longer"
    longer.mkdir()
    depth = sorted((raw / "depth" / name).iterdir())
    for number, frame in enumerate([*depth, depth[-1]]):
        (longer / f"{number:04}.png").write_bytes(frame.read_bytes())
    clip = UserClip("clip", {"rgb": raw / "rgb" / name, "depth": longer})
    with pytest.raises(ClipError, match=f"found {len(depth)} rgb and {len(depth) + 1} depth frames"):
        read_user_clip(clip)
    with pytest.raises(ClipError, match=f"found {CLIPS} rgb and 1 depth clips"):
        find_clips({"rgb": [str(raw / "rgb")], "depth": [str(longer)]}, "fusion")
    huge = tmp_path / "huge"
    huge.mkdir()
    for number in range(MOST_FRAMES + 1):
        (huge / f"{number}.jpg").touch()
    with pytest.raises(ClipError, match="a clip holds one motion"):
        read_user_clip(UserClip("huge", {"rgb": huge}))


def test_a_run_is_loaded_as_it_was_trained_and_with_no_other_config(runs, small_demo):
    trained = load_trained(runs["rgb"])
    assert trained.class_names == CLASS_NAMES
    assert (trained.epoch, trained.step) == (1, 3)
    config = tiny_config(small_demo, "rgb").copy_and_resolve_references()
    with config.unlocked():
        config.clip.frames = 10
    with pytest.raises(ValueError, match="another config"):
        load_trained(runs["rgb"], config=config)


def test_a_converted_checkpoint_needs_its_config_and_then_says_the_same(runs, raw, small_demo, tmp_path):
    converted = tmp_path / "converted"
    weights = read_weights(runs["rgb"])
    write_weights(converted, weights, match_network(weights), "a test")
    with pytest.raises(ValueError, match="give --config"):
        load_trained(converted)
    config = tiny_config(small_demo)
    clip = next(iter(load_clips(find_clips({"rgb": [str(raw / "rgb")]}, "rgb"), config)))
    said = [
        Predictor(trained, batch_size=1).of_clips([clip.frames]).heads["logits"]
        for trained in (load_trained(runs["rgb"]), load_trained(converted, config=config))
    ]
    np.testing.assert_array_equal(*said)
