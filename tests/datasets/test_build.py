"""Builds: the command, bad clips left out, killed and resumed, with one worker, several and Beam, on a full disk."""

import errno
import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgbd_jax.data.source import open_split, prepared_directory
from rgbd_jax.ingest import build, shards
from rgbd_jax.ingest.build import prepare
from rgbd_jax.ingest.shards import run_locally, run_on_beam
from tests import tiny
from tests.conftest import ROOT
from tests.datasets.conftest import RawFolder, frame

ONE_WORKER, TWO_WORKERS = (functools.partial(run_locally, workers=count) for count in (1, 2))
BUILD_ONE_CLIP_A_SHARD = """
import sys
from rgbd_jax.ingest import build, shards

shards.CLIPS_PER_SHARD = 1
build.prepare("rgbd_folder", raw_dir=sys.argv[1], data_dir=sys.argv[2])
"""


def building(raw: RawFolder) -> subprocess.Popen:
    """Starts a build in another process."""
    command = [sys.executable, "-c", BUILD_ONE_CLIP_A_SHARD, raw.root, raw.data_dir]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def eight_clips(raw, monkeypatch) -> RawFolder:
    """Five training and three validation clips of 4 frames, each of which gets a shard of its own."""
    for i in range(8):
        raw.clip(f"c{i}", depth="16 bit")
    raw.lists(train=[f"c{i} 4 {i % 2}" for i in range(5)], valid=[f"c{i} 4 {i % 2}" for i in range(5, 8)])
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 1)
    return raw


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of clips that are read, in order."""
    names: list[str] = []
    original = shards.read_example
    monkeypatch.setattr(shards, "read_example", lambda clip, *rest: names.append(clip.name) or original(clip, *rest))
    return names


def interrupt(raw: RawFolder, reads: list[str], stop_at: str, **options) -> None:
    """Interrupts a build when it reads a clip."""
    original = shards.read_example

    def read(clip, *rest):
        if clip.name == stop_at:
            raise KeyboardInterrupt
        return original(clip, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "read_example", read)
        with pytest.raises(KeyboardInterrupt):
            raw.build(**options)
    reads.clear()


def prepared(raw: RawFolder, data_dir: Path, runner=ONE_WORKER, **options) -> dict[str, bytes]:
    """Builds, and returns the files of the prepared data set; no others are left."""
    folder = prepare("rgbd_folder", raw_dir=raw.root, data_dir=data_dir, runner=runner, **options).directory
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_command(raw: RawFolder, *options: str) -> None:
    tiny.run_command(build, "rgbd_folder", f"--raw_dir={raw.root}", f"--data_dir={raw.data_dir}", *options)


def test_the_command_describes_what_it_built_in_one_line(two_clips, capsys, caplog, monkeypatch):
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
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    shutil.rmtree(two_clips.data_dir)
    two_clips.lists(train=["a 4 0", "b 4 1"])
    with pytest.raises(ValueError, match=r"pip install -e '.\[beam\]'"):
        run_command(two_clips, "--beam=--runner=DirectRunner")


def test_bad_clips_are_listed_and_left_out(raw, caplog):
    for i in range(4):
        raw.clip(f"c{i}")
    (raw.root / "depth/c0/000000.jpg").write_text("no image")
    (raw.root / "rgb/c2/000003.jpg").unlink()
    raw.lists(train=["c0 4 0", "c1 4 0", "c2 4 0", "c3 4", "c3 4 1"], valid=["c3 4 1"])
    info = raw.build(skip_bad_clips=True)
    assert [clip.name for clip in raw.records()] == ["c1", "c3"]
    expected = ["train.txt:4: expected", "rgb/c2: expected 4 frames, found 3", "c0/000000.jpg: is neither JPEG nor PNG"]
    for problem, text in zip(info.left_out, expected, strict=True):
        assert text in problem
        assert {f"left out: {problem}", f"bad clip: {problem}"} & set(caplog.messages)
    assert "1 clips of split validation are in split train too" in caplog.text


def test_a_split_without_a_good_clip(two_clips):
    two_clips.lists(train=["a 4 0"], valid=["b 9 1"])
    two_clips.refused("split validation: has no good clip", "expected 9 frames, found 4", skip_bad_clips=True)
    (two_clips.root / "rgb/b/000000.jpg").write_text("no image")
    two_clips.lists(valid=["b 4 1"])
    two_clips.refused("has no good clip in split validation", skip_bad_clips=True)


def test_what_is_prepared_is_neither_built_again_nor_taken_for_other_raw_data(two_clips, tmp_path):
    two_clips.build()
    before = {path: path.stat().st_mtime_ns for path in two_clips.data_dir.rglob("*")}
    (two_clips.root / "rgb/a/000000.jpg").unlink()
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


def test_a_killed_build_resumes_and_gives_the_same_bytes(eight_clips, reads, tmp_path):
    undisturbed = prepared(eight_clips, tmp_path / "undisturbed")
    reads.clear()
    folder = eight_clips.data_dir / "rgbd_folder/incomplete.1.0.0"
    end = time.monotonic() + 300
    process = building(eight_clips)
    try:
        while not list(folder.glob("reports/*.array_record-*.json")):
            assert time.monotonic() < end
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(list(folder.glob("reports/*.array_record-*.json")))
    assert 1 <= done < 8
    assert prepared_directory("rgbd_folder", eight_clips.data_dir) is None
    assert prepared(eight_clips, eight_clips.data_dir) == undisturbed
    assert len(reads) == len(set(reads)) == 8 - done


def test_two_workers_and_beam_write_the_same_bytes_as_one(eight_clips, tmp_path):
    one = prepared(eight_clips, tmp_path / "one")
    assert sum(".array_record-" in name for name in one) == 8
    assert prepared(eight_clips, tmp_path / "two", TWO_WORKERS) == one
    beam = functools.partial(run_on_beam, options=["--runner=DirectRunner"])
    assert prepared(eight_clips, tmp_path / "beam", beam) == one


def test_depth_stored_for_speed_gives_the_same_clips(eight_clips, tmp_path):
    fast = prepared(eight_clips, tmp_path / "fast", depth_storage="fast")
    assert prepared(eight_clips, tmp_path / "two", TWO_WORKERS, depth_storage="fast") == fast
    assert sum(name.endswith(".depth") for name in fast) == 8
    compact = prepared(eight_clips, tmp_path / "compact")
    assert not any(name.endswith(".depth") for name in compact)
    for split in ("train", "validation"):
        clips, expected = (open_split("rgbd_folder", tmp_path / name, split) for name in ("fast", "compact"))
        assert clips.clips == expected.clips
        for clip, other in zip(pickle.loads(pickle.dumps(clips)), expected, strict=True):
            frames, others = ({m: list(f) for m, f in each.frames.items()} for each in (clip, other))
            assert (clip.name, clip.label, frames) == (other.name, other.label, others)
            assert list(clip.frames["depth"][1:3]) == frames["depth"][1:3]
    (cut,) = (tmp_path / "fast").rglob("*validation*00002-of-00003.depth")
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{cut} ends 1 bytes too early"):
        list(open_split("rgbd_folder", tmp_path / "fast", "validation")[2].frames["depth"])


def test_a_build_goes_on_with_shards_of_the_same_depth_storage_only(eight_clips, reads, tmp_path):
    interrupt(eight_clips, reads, "c3", depth_storage="fast")
    resumed = prepared(eight_clips, eight_clips.data_dir, depth_storage="fast")
    assert reads == ["c3", "c4", "c5", "c6", "c7"]
    shutil.rmtree(eight_clips.data_dir)
    interrupt(eight_clips, reads, "c3", depth_storage="fast")
    assert prepared(eight_clips, eight_clips.data_dir) == prepared(eight_clips, tmp_path / "compact")
    assert reads[:8] == [f"c{i}" for i in range(8)]
    shutil.rmtree(eight_clips.data_dir)
    interrupt(eight_clips, reads, "c3")
    assert prepared(eight_clips, eight_clips.data_dir, depth_storage="fast") == resumed


@pytest.mark.parametrize("there", ["compact", "fast"])
def test_what_is_prepared_is_not_taken_for_another_depth_storage(eight_clips, there):
    eight_clips.build(depth_storage=there)
    other = {"compact": "fast", "fast": "compact"}[there]
    with pytest.raises(ValueError, match=f"was built with depth_storage={there}, not {other}: name another data_dir"):
        run_command(eight_clips, f"--depth_storage={other}")
    assert not eight_clips.build().built


def test_depth_that_is_not_there_cannot_be_stored_for_speed(raw, tmp_path):
    raw.clip("a", depth=None)
    raw.lists(train=["a 4 0"])
    raw.refused("the clips in .* have no depth: leave it out", error=ValueError, depth_storage="fast")
    with pytest.raises(ValueError, match="rgbd_demo is generated: it takes no depth_storage, found 'fast'"):
        prepare("rgbd_demo", data_dir=tmp_path, depth_storage="fast")


def test_a_refused_build_resumes_without_its_bad_clips_which_do_not_pass_the_next_time(eight_clips, reads):
    for clip in ("c0", "c6"):
        (eight_clips.root / f"rgb/{clip}/000002.jpg").write_bytes(b"\xff\xd8\xff")
    interrupt(eight_clips, reads, "c7", skip_bad_clips=True)
    eight_clips.refused("rgb/c0/000002.jpg: cannot be decoded", "rgb/c6/000002.jpg", runner=TWO_WORKERS)
    assert set(reads) == {"c0", "c6", "c7"}
    reads.clear()
    info = eight_clips.build(skip_bad_clips=True)
    assert not reads
    assert info.clips == {"train": 4, "validation": 2}
    assert [clip.name for clip in eight_clips.records()] == ["c1", "c2", "c3", "c4"]  # the first shard is empty
    assert [clip.name for clip in eight_clips.records("validation")] == ["c5", "c7"]


def test_an_interrupted_build_keeps_finished_shards_of_raw_files_that_did_not_change(
    eight_clips, reads, caplog, tmp_path
):
    interrupt(eight_clips, reads, "c0")
    assert not list(eight_clips.data_dir.rglob("[!.]*.*"))
    interrupt(eight_clips, reads, "c6")
    eight_clips.check_that_nothing_looks_prepared()
    folder = eight_clips.data_dir / "rgbd_folder/incomplete.1.0.0"
    assert f"6 of 8 shards are finished and kept in {folder}: build again to resume" in caplog.text
    (eight_clips.root / "rgb/c1/000000.jpg").write_bytes(frame("another"))
    eight_clips.lists(valid=["c5 4 0", "c6 4 0", "c7 4 1"])  # another label for c5
    (eight_clips.root / "rgb/c4/000003.jpg").touch()
    shutil.copytree(eight_clips.data_dir, tmp_path / "copy")
    resumed = prepared(eight_clips, eight_clips.data_dir)
    assert reads == ["c1", "c4", "c5", "c6", "c7"]
    assert resumed == prepared(eight_clips, tmp_path / "undisturbed")
    reads.clear()
    other = RawFolder(tmp_path / "other")
    shutil.copytree(eight_clips.root, other.root)
    prepared(other, tmp_path / "copy")  # uses nothing that was built from another raw folder
    assert set(reads) == {f"c{i}" for i in range(8)}


def cut_off(task) -> None:
    task.file.write_bytes(task.file.read_bytes()[:-65536])


def overwrite(task) -> None:
    content = bytearray(task.file.read_bytes())
    content[-65536:] = bytes(65536)
    task.file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda task: task.report_file.unlink(), "the shard is not finished"),
        (lambda task: task.file.unlink(), "expected 1 records in the shard"),
        (cut_off, "expected 1 records in the shard"),
        (overwrite, "expected 1 records in the shard"),
        (lambda task: task.depth_file.unlink(), "expected 1 records in the shard and [0-9]+ bytes of depth"),
    ],
    ids=["report lost", "shard lost", "cut off", "overwritten", "depth lost"],
)
def test_a_shard_that_is_lost_or_damaged_is_noticed(eight_clips, reads, damage, expected):
    def runner(tasks):
        yield from run_locally(tasks, workers=1)
        damage(tasks[3])

    with pytest.raises(OSError, match=f"{expected}.*; build again.*00003-of-00005"):
        eight_clips.build(runner=runner, depth_storage="fast")
    assert prepared_directory("rgbd_folder", eight_clips.data_dir) is None
    reads.clear()
    eight_clips.build(depth_storage="fast")
    assert reads == ["c3"]
    assert [clip.name for clip in eight_clips.records()] == [f"c{i}" for i in range(5)]


@pytest.mark.parametrize("finished", [0, 3])
def test_a_full_disk_is_reported_and_the_build_resumes_when_there_is_room(
    eight_clips, reads, monkeypatch, caplog, finished
):
    class FullDisk(shards.ArrayRecordWriter):
        def write(self, record):
            if len(reads) > finished:
                raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; at byte 8388608")  # as it was seen
            super().write(record)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", FullDisk)
        with pytest.raises(OSError, match=r"the shard cannot be written: .*No space left on device"):
            eight_clips.build()
    assert f"{finished} of 8 shards are finished" in caplog.text
    assert " GB free" in caplog.text
    assert ("GB needed" in caplog.text) == bool(finished)
    assert bool(list(eight_clips.data_dir.rglob("[!.]*.*"))) == bool(finished)
    reads.clear()
    assert eight_clips.build().clips == {"train": 5, "validation": 3}
    assert len(reads) == 8 - finished


def test_a_build_waits_for_another_one_of_the_same_data_set(two_clips):
    builds = [building(two_clips) for _ in range(2)]
    assert [process.wait() for process in builds] == [0, 0]
    assert [path.name for path in (two_clips.data_dir / "rgbd_folder").iterdir()] == ["1.0.0"]
    assert len(two_clips.records()) == 2
