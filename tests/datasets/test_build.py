"""Preparing data sets: bad clips left out, builds that end early, data that is there already, the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rgbd_jax.ingest.build import prepare

REPOSITORY = Path(__file__).resolve().parents[2]


def test_bad_clips_are_listed_and_left_out(raw, caplog):
    for i in range(4):
        raw.clip(f"c{i}")
    (raw.root / "depth" / "c0" / "000000.jpg").write_text("no image")
    (raw.root / "rgb" / "c2" / "000003.jpg").unlink()
    raw.lists(train=["c0 4 0", "c1 4 0", "c2 4 0", "c3 4", "c3 4 1"])
    with caplog.at_level("WARNING", logger="rgbd_jax"):
        info = raw.build(skip_bad_clips=True)
    assert [clip.name for clip in raw.records()] == ["c1", "c3"]
    expected = ["train.txt:4: expected", "rgb/c2: expected 4 frames, found 3", "c0/000000.jpg: is neither JPEG nor PNG"]
    assert len(info.left_out) == 3
    for problem, text in zip(info.left_out, expected, strict=True):
        assert text in problem
        assert f"left out: {problem}" in caplog.messages


def test_a_split_without_a_good_clip(two_clips):
    two_clips.lists(train=["a 4 0"], valid=["b 9 1"])
    two_clips.refuse("split validation: has no good clip", "expected 9 frames, found 4", skip_bad_clips=True)
    (two_clips.root / "rgb" / "b" / "000000.jpg").write_text("no image")
    two_clips.lists(valid=["b 4 1"])
    two_clips.refuse("has no good clip in split validation", skip_bad_clips=True)


def test_a_build_that_is_interrupted_in_its_first_shard_leaves_nothing(two_clips, monkeypatch):
    def interrupt(recording, kind):
        if recording.path.name == "b":
            raise KeyboardInterrupt
        return [b"frame"]

    monkeypatch.setattr("rgbd_jax.ingest.builder.read_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two_clips.build()
    assert not [path for path in (two_clips.root.parent / "data").rglob("*") if path.is_file()]


def test_what_is_prepared_is_not_built_again(two_clips):
    two_clips.build()
    before = {path: path.stat().st_mtime_ns for path in (two_clips.root.parent / "data").rglob("*")}
    (two_clips.root / "rgb" / "a" / "000000.jpg").unlink()
    assert not two_clips.build().built
    assert {path: path.stat().st_mtime_ns for path in (two_clips.root.parent / "data").rglob("*")} == before


def test_two_raw_folders_do_not_share_prepared_data(two_clips, tmp_path):
    two_clips.build()
    other = tmp_path / "other"
    shutil.copytree(two_clips.root, other)
    with pytest.raises(ValueError, match=rf"was built from {two_clips.root}, not from {other}: name another data_dir"):
        prepare("rgbd_folder", raw_dir=other, data_dir=tmp_path / "data")


def test_a_data_set_without_its_bad_clips_says_so_later(two_clips, caplog):
    two_clips.lists(train=["a 4 0", "b 9 1"])
    two_clips.build(skip_bad_clips=True)
    with caplog.at_level("WARNING", logger="rgbd_jax"):
        assert len(two_clips.build().left_out) == 1
    assert "leaves out 1 bad clips" in caplog.text


def test_clips_in_two_splits_are_warned_of(two_clips, caplog):
    two_clips.lists(valid=["b 4 1"])
    with caplog.at_level("WARNING", logger="rgbd_jax"):
        two_clips.build()
    assert "1 clips of split validation are in split train too" in caplog.text


@pytest.mark.parametrize(
    ("dataset", "raw_dir", "expected"),
    [
        (
            "rgbd_foldr",
            "raw",
            "unknown data set 'rgbd_foldr'; there are isogd, jester, ntu_rgbd, nvgesture, rgbd_demo, rgbd_folder",
        ),
        ("rgbd_folder", "", "raw_dir must name the folder"),
        ("rgbd_demo", "raw", "rgbd_demo is generated: it takes no raw_dir, found 'raw'"),
    ],
)
def test_an_unknown_data_set_and_raw_folders_that_do_not_fit(tmp_path, dataset, raw_dir, expected):
    with pytest.raises(ValueError, match=expected):
        prepare(dataset, raw_dir=raw_dir, data_dir=tmp_path)


def command(raw, *options: str) -> subprocess.CompletedProcess:
    script = REPOSITORY / "scripts" / "build_dataset.py"
    folders = ["--raw_dir", str(raw.root), "--data_dir", str(raw.root.parent / "data")]
    return subprocess.run(
        [sys.executable, script, "rgbd_folder", *folders, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_the_command_says_in_one_line_what_it_built(two_clips):
    two_clips.lists(train=["a 4 0", "b 4 1", "c 4 1"])
    done = command(two_clips, "--skip_bad_clips")
    assert done.returncode == 0
    assert done.stdout == (
        "rgbd_folder built: 2 train clips, 2 classes, rgb and depth, 1 problems left out, "
        f"in {two_clips.root.parent}/data/rgbd_folder/1.0.0\n"
    )
    assert "left out" in done.stderr
    assert "train.txt:3: there is no clip" in done.stderr
    metadata = json.loads((two_clips.root.parent / "data/rgbd_folder/1.0.0/metadata.json").read_text())
    assert metadata["raw_dir"] == str(two_clips.root)


def test_the_command_fails_on_bad_data(two_clips):
    (two_clips.root / "rgb" / "b" / "000000.jpg").write_bytes(b"\xff\xd8\xff")
    done = command(two_clips)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"error: {two_clips.root}/rgb/b/000000.jpg: cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_without_a_main_guard_is_told_so_instead_of_waiting_for_itself(two_clips, tmp_path):
    two_clips.lists(train=["a 4 0"], valid=["b 4 1"])  # a shard each, so that two processes write them
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom rgbd_jax.ingest.build import prepare\nfrom rgbd_jax.ingest.runners import LocalRunner\n"
        "prepare('rgbd_folder', data_dir=sys.argv[1], raw_dir=sys.argv[2], runner=LocalRunner(2))\n"
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path / "data", two_clips.root],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert 'put what the script does under `if __name__ == "__main__":`' in done.stderr
    assert not (tmp_path / "data" / "rgbd_folder" / "1.0.0").exists()
