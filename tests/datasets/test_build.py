"""Builds: the command, bad clips left out, killed and resumed, on one core, several and Beam, on a full disk."""

import argparse
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgbd_jax.data.source import ClipInfo, open_split, prepared_directory, read_index
from rgbd_jax.ingest import build, shard_build, shards
from rgbd_jax.ingest.build import prepare
from rgbd_jax.ingest.shard_build import run_locally, run_on_beam
from tests.datasets.conftest import RawFolder, frame

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
BUILD_ONE_CLIP_A_SHARD = """
import functools, sys
from rgbd_jax.ingest import build, shard_build

if __name__ == "__main__":
    raw_dir, data_dir, workers = sys.argv[1:]
    shard_build.CLIPS_PER_SHARD = 1
    runner = functools.partial(shard_build.run_locally, workers=int(workers))
    build.prepare("rgbd_folder", raw_dir=raw_dir, data_dir=data_dir, runner=runner)
"""


@pytest.fixture
def eight_clips(raw, monkeypatch) -> RawFolder:
    """Five training and three validation clips of 4 frames, each of which gets a shard of its own."""
    for i in range(8):
        raw.clip(f"c{i}", depth="16 bit")
    raw.lists(train=[f"c{i} 4 {i % 2}" for i in range(5)], valid=[f"c{i} 4 {i % 2}" for i in range(5, 8)])
    monkeypatch.setattr(shard_build, "CLIPS_PER_SHARD", 1)
    return raw


class Reading:
    """Records which clips are read in this process; `stop_at` interrupts the build at one."""

    def __init__(self, monkeypatch):
        self.clips: list[str] = []
        self.stop_at: str | None = None
        original = shards.read_example

        def read(clip, *rest):
            if clip.name == self.stop_at:
                raise KeyboardInterrupt
            self.clips.append(clip.name)
            return original(clip, *rest)

        monkeypatch.setattr(shards, "read_example", read)


@pytest.fixture
def reading(monkeypatch) -> Reading:
    return Reading(monkeypatch)


def prepared(raw: RawFolder, data_dir: Path, runner=None) -> dict[str, bytes]:
    """Builds, and returns the files of the prepared data set; no others are left."""
    runner = runner or functools.partial(run_locally, workers=1)
    folder = prepare("rgbd_folder", raw_dir=raw.root, data_dir=data_dir, runner=runner).directory
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(raw: RawFolder, reading: Reading, clip: str, **options) -> None:
    reading.stop_at = clip
    with pytest.raises(KeyboardInterrupt):
        raw.build(**options)
    reading.stop_at = None
    reading.clips.clear()


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def run_command(raw: RawFolder, *options: str) -> None:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    build.run(parser.parse_args(["rgbd_folder", f"--raw_dir={raw.root}", f"--data_dir={raw.data_dir}", *options]))


def test_the_command_describes_what_it_built_in_one_line(two_clips, capsys, caplog):
    two_clips.lists(train=["a 4 0", "b 4 1", "c 4 1"])
    run_command(two_clips, "--skip_bad_clips")
    assert capsys.readouterr().out == (
        "rgbd_folder built: 2 train clips, 2 classes, rgb and depth, 1 problems left out, "
        f"in {two_clips.data_dir}/rgbd_folder/1.0.0\n"
    )
    assert "left out" in caplog.text
    assert "train.txt:3: there is no clip" in caplog.text
    run_command(two_clips)
    assert capsys.readouterr().out.startswith("rgbd_folder was there already: ")
    assert "leaves out 1 bad clips" in caplog.text
    with pytest.raises(ValueError, match="--workers=0: expected 1 or more"):
        run_command(two_clips, "--workers=0")


def test_bad_clips_are_listed_and_left_out(raw, caplog):
    for i in range(4):
        raw.clip(f"c{i}")
    (raw.root / "depth" / "c0" / "000000.jpg").write_text("no image")
    (raw.root / "rgb" / "c2" / "000003.jpg").unlink()
    raw.lists(train=["c0 4 0", "c1 4 0", "c2 4 0", "c3 4", "c3 4 1"], valid=["c3 4 1"])
    info = raw.build(skip_bad_clips=True)
    assert [clip.name for clip in raw.records()] == ["c1", "c3"]
    expected = ["train.txt:4: expected", "rgb/c2: expected 4 frames, found 3", "c0/000000.jpg: is neither JPEG nor PNG"]
    for problem, text in zip(info.left_out, expected, strict=True):
        assert text in problem
        assert f"left out: {problem}" in caplog.messages
    assert "1 clips of split validation are in split train too" in caplog.text


def test_a_split_without_a_good_clip(two_clips):
    two_clips.lists(train=["a 4 0"], valid=["b 9 1"])
    two_clips.refuse("split validation: has no good clip", "expected 9 frames, found 4", skip_bad_clips=True)
    (two_clips.root / "rgb" / "b" / "000000.jpg").write_text("no image")
    two_clips.lists(valid=["b 4 1"])
    two_clips.refuse("has no good clip in split validation", skip_bad_clips=True)


def test_what_is_prepared_is_neither_built_again_nor_taken_for_other_raw_data(two_clips, tmp_path):
    two_clips.build()
    before = {path: path.stat().st_mtime_ns for path in two_clips.data_dir.rglob("*")}
    (two_clips.root / "rgb" / "a" / "000000.jpg").unlink()
    assert not two_clips.build().built
    assert {path: path.stat().st_mtime_ns for path in two_clips.data_dir.rglob("*")} == before
    other = tmp_path / "other"
    shutil.copytree(two_clips.root, other)
    with pytest.raises(ValueError, match=rf"was built from {two_clips.root}, not from {other}: name another data_dir"):
        prepare("rgbd_folder", raw_dir=other, data_dir=two_clips.data_dir)


@pytest.mark.parametrize(
    ("dataset", "raw_dir", "expected"),
    [
        ("rgbd_foldr", "raw", "unknown data set 'rgbd_foldr'; there are isogd, jester, ntu_rgbd, nvgesture, rgbd_demo"),
        ("rgbd_folder", "", "raw_dir must name the folder"),
        ("rgbd_demo", "raw", "rgbd_demo is generated: it takes no raw_dir, found 'raw'"),
    ],
)
def test_an_unknown_data_set_and_raw_folders_that_do_not_fit(tmp_path, dataset, raw_dir, expected):
    with pytest.raises(ValueError, match=expected):
        prepare(dataset, raw_dir=raw_dir, data_dir=tmp_path)


def test_the_index_lists_the_clips_of_every_split(eight_clips, small_demo):
    (eight_clips.root / "rgb/c1/000002.jpg").write_bytes(b"\xff\xd8\xff")
    (eight_clips.root / "valid.txt").write_text("c5 4 0\nc6 3 0\n")
    built = eight_clips.build(skip_bad_clips=True).directory
    for directory in (built, prepared_directory("rgbd_demo", small_demo)):
        for split in ("train", "validation"):
            clips = open_split(directory.parent.name, directory.parents[1], split)
            assert read_index(directory, split) == [
                ClipInfo(clip.name, clip.label, {modality: len(clip.frames[modality]) for modality in clip.frames})
                for clip in clips
            ]


def test_a_script_without_a_main_guard_is_an_error_instead_of_a_deadlock(two_clips, tmp_path):
    two_clips.lists(train=["a 4 0"], valid=["b 4 1"])  # a shard each, so that two processes write them
    script = tmp_path / "script.py"
    script.write_text(BUILD_ONE_CLIP_A_SHARD.replace('__name__ == "__main__"', "True"))
    command = [sys.executable, script, two_clips.root, two_clips.data_dir, "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert 'put what the script does under `if __name__ == "__main__":`' in done.stderr
    assert not (two_clips.data_dir / "rgbd_folder" / "1.0.0").exists()


def test_a_killed_build_resumes_and_gives_the_same_bytes(eight_clips, reading, tmp_path):
    undisturbed = prepared(eight_clips, tmp_path / "undisturbed")
    reading.clips.clear()
    pipe = eight_clips.root / "rgb" / "c3" / "000001.jpg"  # reading stops at a pipe into which nobody writes
    pipe.unlink()
    os.mkfifo(pipe)
    script = tmp_path / "build.py"
    script.write_text(BUILD_ONE_CLIP_A_SHARD)
    folder = eight_clips.data_dir / "rgbd_folder" / "incomplete.1.0.0"
    process = subprocess.Popen([sys.executable, script, eight_clips.root, eight_clips.data_dir, "2"], env=ENVIRONMENT)
    try:
        wait_until(lambda: len(list(folder.glob("reports/*.array_record-*.json"))) == 7)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not any(alive(int(pid)) for pid in children))  # one of them was waiting for work, one reads
    assert list(folder.glob(".*.tmp"))
    assert prepared_directory("rgbd_folder", eight_clips.data_dir) is None
    pipe.unlink()
    pipe.write_bytes(frame("rgb/c3/1"))
    assert prepared(eight_clips, eight_clips.data_dir) == undisturbed
    assert reading.clips == ["c3"]


def test_two_processes_and_beam_write_the_same_bytes_as_one_process(eight_clips, tmp_path):
    one = prepared(eight_clips, tmp_path / "one")
    assert sum(".array_record-" in name for name in one) == 8
    assert prepared(eight_clips, tmp_path / "two", functools.partial(run_locally, workers=2)) == one
    beam = functools.partial(run_on_beam, options=["--runner=DirectRunner"])
    assert prepared(eight_clips, tmp_path / "beam", beam) == one
    assert [clip.name for clip in open_split("rgbd_folder", tmp_path / "two", "train")] == [f"c{i}" for i in range(5)]


def test_shards_are_small_and_not_too_many():
    clips = list(range(56_880))
    cut = shard_build.cut(clips, len(clips))
    assert [clip for part in cut for clip in part] == clips
    assert 500 <= len(cut) <= 512
    assert max(map(len, shard_build.cut(clips[:1050], 1532))) == 16


def test_without_beam_the_error_tells_how_to_install_it(two_clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[beam\]'"):
        run_command(two_clips, "--beam=--runner=DirectRunner")


def test_a_refused_build_resumes_without_its_bad_clips_which_do_not_pass_the_next_time(eight_clips, reading):
    for clip in ("c0", "c6"):
        (eight_clips.root / "rgb" / clip / "000002.jpg").write_bytes(b"\xff\xd8\xff")
    interrupt(eight_clips, reading, "c7", skip_bad_clips=True)
    two_processes = functools.partial(run_locally, workers=2)
    eight_clips.refuse("rgb/c0/000002.jpg: cannot be decoded", "rgb/c6/000002.jpg", runner=two_processes)
    info = eight_clips.build(skip_bad_clips=True)
    assert not reading.clips
    assert info.clips == {"train": 4, "validation": 2}
    assert [clip.name for clip in eight_clips.records()] == ["c1", "c2", "c3", "c4"]  # the first shard is empty
    assert [clip.name for clip in eight_clips.records("validation")] == ["c5", "c7"]


def test_an_interrupted_build_keeps_finished_shards_of_raw_files_that_did_not_change(
    eight_clips, reading, caplog, tmp_path
):
    interrupt(eight_clips, reading, "c0")
    assert not list(eight_clips.data_dir.rglob("[!.]*.*"))
    interrupt(eight_clips, reading, "c6")
    eight_clips.check_that_nothing_looks_prepared()
    folder = eight_clips.data_dir / "rgbd_folder" / "incomplete.1.0.0"
    assert f"6 of 8 shards are finished and kept in {folder}: build again to resume" in caplog.text
    (eight_clips.root / "rgb/c1/000000.jpg").write_bytes(frame("another"))
    (eight_clips.root / "valid.txt").write_text("c5 4 0\nc6 4 0\nc7 4 1\n")  # another label for c5
    (eight_clips.root / "rgb/c4/000003.jpg").touch()
    shutil.copytree(eight_clips.data_dir, tmp_path / "copy")
    resumed = prepared(eight_clips, eight_clips.data_dir)
    assert reading.clips == ["c1", "c4", "c5", "c6", "c7"]
    assert resumed == prepared(eight_clips, tmp_path / "undisturbed")
    reading.clips.clear()
    other = RawFolder(tmp_path / "other")
    shutil.copytree(eight_clips.root, other.root)
    prepared(other, tmp_path / "copy")  # uses nothing that was built from another raw folder
    assert set(reading.clips) == {f"c{i}" for i in range(8)}


def cut_off(task) -> None:
    task.file.write_bytes(task.file.read_bytes()[:-65536])


def overwrite(task) -> None:
    content = bytearray(task.file.read_bytes())
    content[-65536:] = bytes(65536)
    task.file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda task: task.report_file.unlink(), "the shard was lost; build again"),
        (lambda task: task.file.unlink(), "expected a shard of .* bytes, found none; build again"),
        (cut_off, "expected a shard of .* bytes, found .*; build again"),
        (overwrite, "expected 1 records in the shard, which cannot be read; build again"),
    ],
    ids=["report lost", "shard lost", "cut off", "overwritten"],
)
def test_a_shard_that_is_lost_or_damaged_is_noticed(eight_clips, reading, damage, expected):
    def runner(tasks):
        yield from run_locally(tasks, workers=1)
        damage(tasks[3])

    with pytest.raises(OSError, match=f"{expected}.*00003-of-00005"):
        eight_clips.build(runner=runner)
    assert prepared_directory("rgbd_folder", eight_clips.data_dir) is None
    reading.clips.clear()
    eight_clips.build()
    assert reading.clips == ["c3"]
    assert [clip.name for clip in eight_clips.records()] == [f"c{i}" for i in range(5)]


@pytest.mark.parametrize("finished", [0, 3])
def test_a_full_disk_is_reported_and_the_build_resumes_when_there_is_room(eight_clips, reading, monkeypatch, finished):
    class FullDisk(shards.ArrayRecordWriter):
        def write(self, record):
            if len(reading.clips) > finished:
                raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; at byte 8388608")  # as it was seen
            super().write(record)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", FullDisk)
        needed = r", about .* GB needed" if finished else ""
        expected = (
            rf"No space left on device; the disk is full: .* GB free{needed}; {finished} of 8 shards are finished"
        )
        with pytest.raises(OSError, match=expected) as error:
            eight_clips.build()
    assert error.value.errno == errno.ENOSPC
    assert bool(list(eight_clips.data_dir.rglob("[!.]*.*"))) == bool(finished)
    reading.clips.clear()
    assert eight_clips.build().clips == {"train": 5, "validation": 3}
    assert len(reading.clips) == 8 - finished


def test_a_build_waits_for_another_one_of_the_same_data_set(two_clips, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD_ONE_CLIP_A_SHARD)
    command = [sys.executable, script, two_clips.root, two_clips.data_dir, "1"]
    builds = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait() for process in builds] == [0, 0]
    assert [path.name for path in (two_clips.data_dir / "rgbd_folder").iterdir()] == ["1.0.0"]
    assert len(two_clips.records()) == 2
