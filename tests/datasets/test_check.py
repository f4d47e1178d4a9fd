"""The check of raw clips, before and after they are built, through its command."""

import re
import shutil

import pytest

from rgbd_jax.data.source import write_index
from rgbd_jax.ingest import check
from tests.datasets.conftest import RawFolder
from tests.tiny import run_command

KINDS = ["missing", "unreadable", "unpaired", "mislabelled", "duplicated"]


@pytest.fixture
def command(capsys):
    """Runs `data check rgbd_folder` on a raw folder; returns the exit status and what it prints."""

    def run(raw: RawFolder, *options) -> tuple[int, str]:
        capsys.readouterr()
        status = 0
        try:
            run_command(check, "rgbd_folder", "--raw_dir", raw.root, *options)
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().out

    return run


def table(output: str) -> dict[str, dict[str, int]]:
    """Split to its row of the table, by column."""
    header, *rows = [re.split("  +", line.strip()) for line in output.split("\n\n")[0].splitlines()]
    return {row[0]: dict(zip(header[1:], map(int, row[1:]), strict=True)) for row in rows}


@pytest.fixture
def good(raw) -> RawFolder:
    """Three training clips of 20 frames, one of them a video, and one of 4 for validation."""
    for name in ("a", "b"):
        raw.clip(name, frames=20)
    raw.video("rgb/c.avi", frames=20)
    raw.video("depth/c.avi", frames=20)
    raw.clip("short", frames=4)
    raw.lists(train=["a 20 0", "b 18 1", "c 20 1"], valid=["short 4 0"])
    return raw


@pytest.fixture
def bad(good) -> RawFolder:
    """One problem of each kind, and some that only decoding finds."""
    for name in ("lost", "lonely", "empty", "truncated", "grown"):
        good.clip(name, frames=20)
    for modality in ("rgb", "depth"):
        shutil.rmtree(good.root / modality / "lost")
    shutil.rmtree(good.root / "depth" / "lonely")
    (good.root / "depth" / "empty" / "000007.jpg").write_bytes(b"")
    (good.root / "rgb" / "empty" / "000003.jpg").write_text("no image")
    file = good.root / "rgb" / "truncated" / "000009.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    (good.root / "rgb" / "grown" / "000019.jpg").unlink()
    lines = ["a 20 0", "b 18 9", "lost 20 0", "lonely 20 0", "empty 20 0", "truncated 20 1", "grown 20 1", "a 20 0"]
    good.lists(train=lines, classes=["grab", "wave"])
    return good


def test_good_clips_are_counted_and_short_ones_noted(good, command):
    for options in ((), ("--decode",)):
        status, output = command(good, *options)
        assert status == 0
        none = dict.fromkeys(KINDS, 0)
        assert table(output) == {
            "train": {"good clips": 3, "frames": 58, **none, "too short": 0},
            "validation": {"good clips": 1, "frames": 4, **none, "too short": 1},
        }
        assert "0 problems; " + ("every frame was decoded" if options else "no frame was decoded") in output
        assert f"{good.root}/valid.txt:1: short has 4 frames only" in output


def test_every_problem_is_listed_with_its_kind_file_and_line(bad, command):
    status, output = command(bad)
    assert status == 1
    expected = [
        f"mislabelled: {bad.root}/train.txt:2: expected a label from 0 to 1, found 9",
        f"missing: {bad.root}/train.txt:3: there is no clip {bad.root}/rgb/lost or {bad.root}/depth/lost",
        f"unpaired: {bad.root}/train.txt:4: there is no clip {bad.root}/depth/lonely; it is in rgb only",
        f"missing: {bad.root}/rgb/grown: expected 20 frames, found 19",
        f"duplicated: {bad.root}/train.txt:8: names a a second time; the first is {bad.root}/train.txt:1",
        f"unreadable: {bad.root}/rgb/empty/000003.jpg: is neither JPEG nor PNG",
    ]
    for problem in expected:
        assert problem in output
    assert "6 problems; no frame was decoded" in output
    row = {"missing": 2, "unreadable": 1, "unpaired": 1, "mislabelled": 1, "duplicated": 1, "too short": 0}
    assert table(output)["train"] == {"good clips": 2, "frames": 40, **row}  # a, and the truncated one


def test_decoding_finds_what_headers_do_not_tell(bad, command):
    video = bad.root / "rgb/c.avi"
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    bad.lists(test=["c 20 0"])
    status, output = command(bad, "--decode", "--workers", "2")
    assert status == 1
    assert f"unreadable: {bad.root}/rgb/truncated/000009.jpg: cannot be decoded: truncated or damaged" in output
    assert re.search(rf"missing: {video}: expected 20 frames, found \d+\n", output)
    rows = table(output)
    assert rows["train"]["good clips"] == 1
    assert (rows["test"]["good clips"], rows["test"]["missing"]) == (0, 1)


def test_what_was_built_is_what_the_raw_data_say(good, command):
    good.build()
    status, output = command(good, "--data_dir", good.data_dir)
    assert status == 0, output
    assert f"{good.prepared}: 0 differences from the raw data" in output
    write_index(good.prepared, "train", ["a"], [0], {"rgb": [20], "depth": [20]})
    status, output = command(good, "--data_dir", good.data_dir)
    assert status == 1
    assert "train: 3 records, but 1 clips in its index" in output


def test_differences_from_what_was_built_are_listed(good, command):
    file = good.root / "rgb/b/000004.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    good.build(skip_bad_clips=True)
    good.clip("new", frames=20)
    good.lists(train=["a 20 1", "b 18 1", "new 20 0"], valid=["short 4 0", "c 20 0"])
    status, output = command(good, "--data_dir", good.data_dir)
    assert status == 1
    assert output.split("differences from the raw data\n")[1].splitlines() == [
        "train: 3 good raw clips, 2 prepared",
        f"{good.root}/train.txt:1: a has label 1 here, 0 where it is prepared",
        f"{good.root}/train.txt:2: b is not prepared in split train",
        f"{good.root}/train.txt:3: new is not prepared in split train",
        "train: c is prepared, but is no good raw clip",
        "validation: 2 good raw clips, 1 prepared",
        f"{good.root}/valid.txt:2: c is not prepared in split validation",
        "1 problems were left out when it was built",
    ]


def test_nothing_to_check(good, command):
    with pytest.raises(FileNotFoundError, match=f"rgbd_folder is not prepared in {good.data_dir}"):
        command(good, "--data_dir", good.data_dir)
    with pytest.raises(ValueError, match="rgbd_demo is generated"):
        check.check_raw("rgbd_demo", good.root, decode=False)
    good.root = good.root / "nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        command(good)
