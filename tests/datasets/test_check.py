"""The check of raw clips, before and after they are built, through its command."""

import argparse
import re
import shutil
from typing import NamedTuple

import pytest

from rgbd_jax.data.source import write_index
from rgbd_jax.ingest import check
from tests.datasets.conftest import RawFolder

KINDS = ["missing", "unreadable", "unpaired", "mislabelled", "duplicated"]


class Done(NamedTuple):
    returncode: int
    stdout: str


@pytest.fixture
def command(capsys):
    """Runs `data check rgbd_folder` on a raw folder."""

    def run(raw: RawFolder, *options) -> Done:
        parser = argparse.ArgumentParser()
        check.add_arguments(parser)
        arguments = parser.parse_args(["rgbd_folder", "--raw_dir", str(raw.root), *map(str, options)])
        capsys.readouterr()
        try:
            check.run(arguments)
        except SystemExit as error:
            return Done(error.code, capsys.readouterr().out)
        return Done(0, capsys.readouterr().out)

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
        done = command(good, *options)
        assert done.returncode == 0
        none = dict.fromkeys(KINDS, 0)
        assert table(done.stdout) == {
            "train": {"good clips": 3, "frames": 58, **none, "too short": 0},
            "validation": {"good clips": 1, "frames": 4, **none, "too short": 1},
        }
        assert "0 problems; " + ("every frame was decoded" if options else "no frame was decoded") in done.stdout
        assert f"{good.root}/valid.txt:1: short has 4 frames only" in done.stdout


def test_short_clips_are_listed_up_to_twenty_or_all_of_them(raw, command):
    names = [f"clip{number:02d}" for number in range(23)]
    for name in names:
        raw.clip(name, frames=2)
    raw.lists(train=[f"{name} 2 0" for name in names])
    for options, listed in (((), names[:20]), (("--all",), names)):
        done = command(raw, *options)
        assert done.returncode == 0
        assert [name for name in names if f"{name} has 2 frames only" in done.stdout] == listed
        assert ("and 3 more short clips (--all lists them)" in done.stdout) == (not options)
    (raw.root / "train.txt").write_bytes(b"\xff\n")
    done = command(raw)
    assert done.returncode == 1
    assert table(done.stdout)["(no split)"]["unreadable"] == 1
    assert "train.txt:1: is not UTF-8 text" in done.stdout


def test_every_problem_is_listed_with_its_kind_file_and_line(bad, command):
    done = command(bad)
    assert done.returncode == 1
    expected = [
        f"mislabelled: {bad.root}/train.txt:2: expected a label from 0 to 1, found 9",
        f"missing: {bad.root}/train.txt:3: there is no clip {bad.root}/rgb/lost or {bad.root}/depth/lost",
        f"unpaired: {bad.root}/train.txt:4: there is no clip {bad.root}/depth/lonely; it is in rgb only",
        f"missing: {bad.root}/rgb/grown: expected 20 frames, found 19",
        f"duplicated: {bad.root}/train.txt:8: names a a second time; the first is {bad.root}/train.txt:1",
        f"unreadable: {bad.root}/rgb/empty/000003.jpg: is neither JPEG nor PNG",
        f"unreadable: {bad.root}/depth/empty/000007.jpg: is empty",
    ]
    for problem in expected:
        assert problem in done.stdout
    assert "7 problems; no frame was decoded" in done.stdout
    row = {"missing": 2, "unreadable": 2, "unpaired": 1, "mislabelled": 1, "duplicated": 1, "too short": 0}
    assert table(done.stdout)["train"] == {"good clips": 2, "frames": 40, **row}  # a, and the truncated one


def test_decoding_finds_what_headers_do_not_tell(bad, command):
    video = bad.root / "rgb" / "c.avi"
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    bad.lists(test=["c 20 0"])
    done = command(bad, "--decode", "--workers", "2")
    assert done.returncode == 1
    assert f"unreadable: {bad.root}/rgb/truncated/000009.jpg: cannot be decoded: truncated or damaged" in done.stdout
    assert re.search(rf"missing: {video}: expected 20 frames, found \d+\n", done.stdout)
    rows = table(done.stdout)
    assert rows["train"]["good clips"] == 1
    assert (rows["test"]["good clips"], rows["test"]["missing"]) == (0, 1)


def test_what_was_built_is_what_the_raw_data_say(good, command):
    good.build()
    done = command(good, "--data_dir", good.data_dir)
    assert done.returncode == 0, done.stdout
    assert f"{good.data_dir}/rgbd_folder/1.0.0: 0 differences from the raw data" in done.stdout
    write_index(good.data_dir / "rgbd_folder/1.0.0", "train", ["a"], [0], {"rgb": [20], "depth": [20]})
    done = command(good, "--data_dir", good.data_dir)
    assert done.returncode == 1
    assert "train: 3 records, but 1 clips in its index" in done.stdout


def test_differences_from_what_was_built_are_listed(good, command):
    content = (good.root / "rgb/b/000004.jpg").read_bytes()
    (good.root / "rgb/b/000004.jpg").write_bytes(content[:-100])
    good.build(skip_bad_clips=True)
    good.clip("new", frames=20)
    good.lists(train=["a 20 1", "b 18 1", "new 20 0"], valid=["short 4 0", "c 20 0"])
    done = command(good, "--data_dir", good.data_dir)
    assert done.returncode == 1
    differences = done.stdout.split("differences from the raw data\n")[1].splitlines()
    assert [line.strip() for line in differences] == [
        "train: 3 good raw clips, 2 prepared",
        "train, class 1 (1): 2 good raw clips, 1 prepared",
        f"{good.root}/train.txt:1: a has label 1 here, 0 where it is prepared",
        f"{good.root}/train.txt:2: b is not prepared in split train",
        f"{good.root}/train.txt:3: new is not prepared in split train",
        "train: c is prepared, but is no good raw clip",
        "validation: 2 good raw clips, 1 prepared",
        "validation, class 0 (0): 2 good raw clips, 1 prepared",
        f"{good.root}/valid.txt:2: c is not prepared in split validation",
        "1 clips that are not prepared were unreadable when it was built",
    ]


def test_nothing_to_check(good, command):
    with pytest.raises(FileNotFoundError, match=f"rgbd_folder is not prepared in {good.data_dir}"):
        command(good, "--data_dir", good.data_dir)
    with pytest.raises(ValueError, match="rgbd_demo is generated"):
        check.check_raw("rgbd_demo", good.root, decode=False)
    good.root = good.root / "nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        command(good)
