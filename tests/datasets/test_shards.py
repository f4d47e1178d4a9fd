"""Builds in shards: killed and resumed, on one core and several, on Beam, on a full disk, with shards lost."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rgbd_jax.ingest.runners import BeamRunner, LocalRunner

from rgbd_jax.data.source import open_split
from rgbd_jax.ingest import runners, shard_plan, shards
from rgbd_jax.ingest.build import prepare
from rgbd_jax.ingest.problems import RawDataError
from tests.datasets.conftest import RawFolder, frame

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
BUILD_ONE_CLIP_A_SHARD = """
import sys
from rgbd_jax.ingest import build, shard_plan, runners

if __name__ == "__main__":
    raw_dir, data_dir, workers = sys.argv[1:]
    shard_plan.SHARD_BYTES = 1
    build.prepare("rgbd_folder", raw_dir=raw_dir, data_dir=data_dir, runner=runners.LocalRunner(int(workers)))
"""


@pytest.fixture
def eight_clips(raw) -> RawFolder:
    """Five training and three validation clips of 4 frames."""
    for i in range(8):
        raw.clip(f"c{i}", depth="16 bit")
    raw.lists(train=[f"c{i} 4 {i % 2}" for i in range(5)], valid=[f"c{i} 4 {i % 2}" for i in range(5, 8)])
    return raw


@pytest.fixture
def clip_a_shard(monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_BYTES", 1)


@pytest.fixture
def clips_read(monkeypatch) -> list[str]:
    """The names of the clips that shards read in this process."""
    read: list[str] = []
    record_reading(monkeypatch, read)
    return read


def record_reading(monkeypatch, names: list[str]) -> None:
    monkeypatch.setattr(shards, "read_example", lambda clip, *rest: names.append(clip.name) or original(clip, *rest))


original = shards.read_example


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(raw: RawFolder, data_dir: Path, runner=None) -> dict[str, bytes]:
    info = prepare("rgbd_folder", raw_dir=raw.root, data_dir=data_dir, runner=runner or LocalRunner(1))
    assert [path.name for path in info.directory.parent.iterdir()] == ["1.0.0"]
    return files(info.directory)


def break_frame(raw: RawFolder, clip: str) -> None:
    (raw.root / "rgb" / clip / "000002.jpg").write_bytes(b"\xff\xd8\xff")


def mend_frame(raw: RawFolder, clip: str) -> None:
    (raw.root / "rgb" / clip / "000002.jpg").write_bytes(frame(f"rgb/{clip}/2"))


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_killed_build_goes_on_and_gives_the_same_bytes(eight_clips, clip_a_shard, clips_read, tmp_path):
    undisturbed = prepared(eight_clips, tmp_path / "undisturbed")
    clips_read.clear()
    # Reading stops at a pipe into which nobody writes. The clip is none of the sample that is read for the plan.
    pipe = eight_clips.root / "rgb" / "c3" / "000001.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    script = tmp_path / "build.py"
    script.write_text(BUILD_ONE_CLIP_A_SHARD)
    folder = eight_clips.data_dir / "rgbd_folder" / "incomplete.1.0.0"
    build = subprocess.Popen([sys.executable, script, eight_clips.root, eight_clips.data_dir, "2"], env=ENVIRONMENT)
    try:
        wait_until(lambda: len(list(folder.glob("reports/*.array_record-*.json"))) == 7)
        children = Path(f"/proc/{build.pid}/task/{build.pid}/children").read_text().split()
        assert len(children) >= 2
    finally:
        build.send_signal(signal.SIGKILL)
        build.wait()
    wait_until(lambda: not any(alive(int(pid)) for pid in children))  # one of them was waiting for work, one reads
    assert [file for file in folder.iterdir() if file.name.startswith(".writing-")]
    eight_clips.check_that_nothing_looks_prepared()
    pipe.unlink()
    pipe.write_bytes(frame("rgb/c3/1"))
    assert prepared(eight_clips, eight_clips.data_dir) == undisturbed
    assert clips_read == ["c3"]


def test_two_processes_write_the_same_bytes_as_one(eight_clips, clip_a_shard, tmp_path):
    one = prepared(eight_clips, tmp_path / "one")
    assert sum(".array_record-" in name for name in one) == 8
    assert prepared(eight_clips, tmp_path / "two", LocalRunner(2)) == one
    names = [clip.name for clip in open_split("rgbd_folder", tmp_path / "two", "train")]
    assert names == [f"c{i}" for i in range(5)]


def test_beam_writes_the_same_bytes(eight_clips, clip_a_shard, tmp_path):
    beam = prepared(eight_clips, tmp_path / "beam", BeamRunner(("--runner=DirectRunner",)))
    assert beam == prepared(eight_clips, tmp_path / "one")


def test_without_beam_its_runner_says_how_to_install_it(two_clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[beam\]'"):
        two_clips.build(runner=BeamRunner(()))


def test_a_refused_build_goes_on_when_the_clip_is_mended(eight_clips, clip_a_shard, clips_read, tmp_path):
    undisturbed = prepared(eight_clips, tmp_path / "undisturbed")
    break_frame(eight_clips, "c2")
    eight_clips.refuse("rgb/c2/000002.jpg: cannot be decoded")
    clips_read.clear()
    mend_frame(eight_clips, "c2")
    assert prepared(eight_clips, eight_clips.data_dir) == undisturbed
    assert clips_read == ["c2"]


def test_a_refused_build_goes_on_without_its_bad_clips(eight_clips, clip_a_shard, clips_read):
    for clip in ("c0", "c6"):
        break_frame(eight_clips, clip)
    eight_clips.refuse("rgb/c0/000002.jpg: cannot be decoded", "rgb/c6/000002.jpg")
    clips_read.clear()
    info = eight_clips.build(skip_bad_clips=True)
    assert clips_read == ["c0", "c6"]
    assert info.clips == {"train": 4, "validation": 2}
    assert [clip.name for clip in eight_clips.records()] == ["c1", "c2", "c3", "c4"]  # the first shard is empty
    assert [clip.name for clip in eight_clips.records("validation")] == ["c5", "c7"]


def test_bad_clips_that_were_left_out_do_not_pass_the_next_time(eight_clips, clip_a_shard, monkeypatch):
    break_frame(eight_clips, "c1")
    stop_at(monkeypatch, "c7")
    with pytest.raises(KeyboardInterrupt):
        eight_clips.build(skip_bad_clips=True)
    monkeypatch.undo()
    eight_clips.refuse("rgb/c1/000002.jpg: cannot be decoded")


def stop_at(monkeypatch, name: str) -> None:
    def read(clip, *rest):
        if clip.name == name:
            raise KeyboardInterrupt
        return original(clip, *rest)

    monkeypatch.setattr(shards, "read_example", read)


def test_an_interrupted_build_keeps_finished_shards_and_says_so(eight_clips, clip_a_shard, monkeypatch, caplog):
    stop_at(monkeypatch, "c6")
    with caplog.at_level("WARNING", logger="rgbd_jax"), pytest.raises(KeyboardInterrupt):
        eight_clips.build()
    eight_clips.check_that_nothing_looks_prepared()
    folder = eight_clips.data_dir / "rgbd_folder" / "incomplete.1.0.0"
    assert f"6 of 8 shards are finished and kept in {folder}: build again to go on from there" in caplog.text


def test_raw_files_that_changed_since_are_read_again(eight_clips, clip_a_shard, monkeypatch, tmp_path):
    stop_at(monkeypatch, "c6")
    with pytest.raises(KeyboardInterrupt):
        eight_clips.build()
    clips_read: list[str] = []
    record_reading(monkeypatch, clips_read)
    (eight_clips.root / "rgb/c1/000000.jpg").write_bytes(frame("another"))
    (eight_clips.root / "valid.txt").write_text("c5 4 0\nc6 4 0\nc7 4 1\n")  # another label for c5
    (eight_clips.root / "rgb/c4/000003.jpg").touch()
    resumed = prepared(eight_clips, eight_clips.data_dir)
    assert clips_read == ["c1", "c4", "c5", "c6", "c7"]
    assert resumed == prepared(eight_clips, tmp_path / "undisturbed")


def test_what_another_raw_folder_has_left_is_not_used(eight_clips, clip_a_shard, clips_read, monkeypatch, tmp_path):
    break_frame(eight_clips, "c7")
    eight_clips.refuse("c7")
    clips_read.clear()
    mend_frame(eight_clips, "c7")
    other = RawFolder(tmp_path / "other")
    shutil.copytree(eight_clips.root, other.root)
    prepared(other, eight_clips.data_dir)
    assert set(clips_read) == {f"c{i}" for i in range(8)}


class _Losing:
    """A runner that loses a shard without a word, or damages one."""

    def __init__(self, damage):
        self._damage = damage

    def run(self, tasks, on_clips, on_shard):
        LocalRunner(1).run(tasks, on_clips, on_shard)
        self._damage(tasks[3])


def cut_off(task) -> None:
    task.file.write_bytes(task.file.read_bytes()[:-65536])


def overwrite(task) -> None:
    content = bytearray(task.file.read_bytes())
    content[-65536:] = bytes(65536)
    task.file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda task: task.report_file.unlink(),
            "1 of 8 shards were lost, the first is rgbd_folder-train.*00003-of-00005",
        ),
        (lambda task: task.file.unlink(), "expected a shard of .* bytes, found none; build again.*00003-of-00005"),
        (cut_off, "expected a shard of .* bytes, found .*00003-of-00005"),
        (overwrite, "the shard cannot be written, or read again: .*00003-of-00005"),
    ],
    ids=["report lost", "shard lost", "cut off", "overwritten"],
)
def test_a_shard_that_is_lost_or_damaged_is_noticed(eight_clips, clip_a_shard, clips_read, damage, expected):
    with pytest.raises(OSError, match=expected):
        eight_clips.build(runner=_Losing(damage))
    eight_clips.check_that_nothing_looks_prepared()
    clips_read.clear()
    eight_clips.build()
    assert clips_read == ["c3"]
    assert [clip.name for clip in eight_clips.records()] == [f"c{i}" for i in range(5)]


def test_a_plan_has_shards_of_some_128_mb_and_not_too_many():
    clips = list(range(56_880))
    ntu = shard_plan.Plan("raw", len(clips), 3_400_000)
    cut = ntu.cut(clips)
    assert [clip for part in cut for clip in part] == clips
    assert 500 <= len(cut) <= 512
    nvgesture = shard_plan.Plan("raw", 1532, 1_600_000).cut(clips[:1050])
    assert all(100 * 2**20 < len(part) * 1_600_000 < 150 * 2**20 for part in nvgesture)
    assert len(shard_plan.Plan("raw", 2, 10).cut(clips[:2])) == 1


def test_a_full_disk_is_told_and_the_build_goes_on_when_there_is_room(raw, tmp_path):
    rng = np.random.default_rng(0)
    noise = frame("rgb/c0/0") + rng.bytes(200_000)  # what follows the end of a JPEG does not matter
    for i in range(12):
        raw.clip(f"c{i}", frames=2, depth=None)
        for file in (raw.root / "rgb" / f"c{i}").iterdir():
            file.write_bytes(noise)
    raw.lists(train=[f"c{i} 2 0" for i in range(12)])
    script, disk = tmp_path / "build.py", tmp_path / "disk"
    script.write_text(BUILD_ONE_CLIP_A_SHARD)
    disk.mkdir()
    build = f"{sys.executable} {script} {raw.root} {disk} 1"
    commands = [
        f"mount -t tmpfs -o size=2m tmpfs {disk} || exit 99",
        f"{build} && exit 98",
        f"find {disk}/rgbd_folder -type f -name '*-of-00012' | wc -l",
        f"mount -o remount,size=20m {disk}",
        build,
        f"ls {disk}/rgbd_folder",
    ]
    # A file system of its own, in a name space of its own: it is gone when the command ends.
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not there to make a small disk with")
    run = subprocess.run(
        [*unshare, "sh", "-c", "\n".join(commands)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if run.returncode == 99 or "unshare failed" in run.stderr:
        pytest.skip("a small disk cannot be mounted here")
    assert run.returncode == 0, run.stderr
    kept, directory = run.stdout.split()
    assert 3 <= int(kept) <= 9
    assert directory == "1.0.0"
    assert "No space left on device" in run.stderr
    assert "the disk is full: " in run.stderr
    assert f"{kept} of 12 shards are finished and kept in {disk}/rgbd_folder/incomplete.1.0.0" in run.stderr


def test_a_full_disk_in_the_first_shard(two_clips, monkeypatch):
    class FullDisk:
        def __init__(self, file, options):
            Path(file).touch()

        def write(self, record):
            raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; at byte 8388608")  # as it was seen

    monkeypatch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(OSError, match=r"No space left on device; .* GB free; 0 of 0 shards .*sample") as error:
        two_clips.build()
    assert error.value.errno == errno.ENOSPC
    assert not [path for path in two_clips.data_dir.rglob("*") if path.is_file()]


def test_a_worker_that_fails_ends_the_build(eight_clips, clip_a_shard):
    shutil.rmtree(eight_clips.root / "rgb" / "c4")
    eight_clips.lists(train=[f"c{i} 4 0" for i in range(4)])
    break_frame(eight_clips, "c2")
    with pytest.raises(RawDataError, match=r"c2/000002\.jpg"):
        eight_clips.build(runner=LocalRunner(2))


def test_progress_is_told_where_there_is_no_terminal(eight_clips, monkeypatch, caplog):
    monkeypatch.setattr("rgbd_jax.ingest.progress._SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level("INFO", logger="rgbd_jax"):
        eight_clips.build()
    lines = [message for message in caplog.messages if message.startswith("building rgbd_folder: ")]
    assert len(lines) == 8
    assert " 3 of 8 clips, " in lines[2]
    assert lines[2].endswith(" s left")


def test_all_cores_are_used_by_default(monkeypatch):
    used = []
    monkeypatch.setattr(runners, "available_cores", lambda: 7)
    monkeypatch.setattr(runners, "ProcessPoolExecutor", lambda workers, *rest: used.append(workers) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LocalRunner().run([None] * 20, None, None)
    assert used == [7]


def test_a_build_waits_for_another_one_of_the_same_data_set(two_clips, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD_ONE_CLIP_A_SHARD)
    builds = [
        subprocess.Popen([sys.executable, script, two_clips.root, two_clips.data_dir, "1"], env=ENVIRONMENT)
        for _ in range(2)
    ]
    assert [build.wait() for build in builds] == [0, 0]
    assert [path.name for path in (two_clips.data_dir / "rgbd_folder").iterdir()] == ["1.0.0"]
    assert len(two_clips.records()) == 2
