"""THU-READ: layouts, folds, lists, and the folds against the published lists, name for name."""

import cv2
import numpy as np
import pytest

from rgbd_jax.data.source import open_split
from rgbd_jax.ingest.build import prepare
from rgbd_jax.ingest.problems import RawDataError
from tests.datasets.conftest import frame
from tests.datasets.test_split_lists import SHARED_SPLITS, needs_shared_splits, read

DATASET = "thu_read"
SUBJECTS = ("cgy", "cwx", "fjw", "gs", "lhh", "lzy", "tys", "wyy")
LABELS = {"zip_up": 0, "clap_hand": 24, "read_book": 39}


def write(raw, name, folders=("", "")):
    raw.frames(f"{folders[0]}RGB_{name}", 3)
    raw.frames(f"{folders[1]}D_{name}", 3)


@pytest.fixture
def eight(raw):
    """A clip of every subject."""
    for i, subject in enumerate(SUBJECTS):
        write(raw, f"{list(LABELS)[i % 3]}_{subject}_{1 + i % 3}")
    return raw


def test_each_fold_is_evaluated_on_its_two_subjects(eight):
    info = eight.build()
    assert info.clips == {f"fold{k}_{s}": n for k in (1, 2, 3, 4) for s, n in (("train", 6), ("validation", 2))}
    for fold, pair in enumerate((("cgy", "cwx"), ("fjw", "gs"), ("lhh", "lzy"), ("tys", "wyy")), start=1):
        train, validation = ({c.name for c in eight.records(f"fold{fold}_{s}")} for s in ("train", "validation"))
        assert {name.rsplit("_", 2)[1] for name in validation} == set(pair)
        assert not validation & train
        assert len(validation | train) == 8
    for clip in eight.records("fold1_train"):
        assert clip.label == LABELS[clip.name.rsplit("_", 2)[0]]
        for modality, prefix in (("rgb", "RGB"), ("depth", "D")):
            assert list(clip.frames[modality]) == [frame(f"{prefix}_{clip.name}/{i}") for i in range(3)]


@pytest.mark.parametrize("folders", [("frames/", "frames/"), ("RGB/", "Depth/")], ids=["frames", "by modality"])
def test_every_layout(raw, folders):
    write(raw, "clap_hand_cgy_1", folders=folders)
    write(raw, "clap_hand_gs_1", folders=folders)
    assert raw.build().modalities == ("rgb", "depth")
    (clip,) = raw.records("fold1_validation")
    assert clip.frames["depth"][2] == frame(f"{folders[1]}D_clap_hand_cgy_1/2")


def test_lists_decide(eight):
    lists = {
        "@CS1": {"train": [" RGB_zip_up_cgy_1 2 0"], "valid": ["  RGB_clap_hand_cwx_2 3 24"]},
        "@2": {"train": ["RGB_clap_hand_cwx_2 3 24"]},
    }
    for folder, content in lists.items():
        eight.lists(f"dataset_splits/{folder}/rgb", **content)
        by_depth = {split: [line.replace("RGB_", "D_") for line in lines] for split, lines in content.items()}
        eight.lists(f"dataset_splits/{folder}/depth", **by_depth)
    sizes = {"fold1_train": 1, "fold1_validation": 1, "fold2_train": 1}
    # Folds 3 and 4 have no lists: the rule, over the clips of the lists.
    assert eight.build().clips == {**sizes, "fold3_train": 2, "fold4_train": 2}
    (clip,) = eight.records("fold1_train")
    assert (clip.name, len(clip.frames["rgb"]), len(clip.frames["depth"])) == ("zip_up_cgy_1", 2, 2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RGB_zip_up_cgy_1 2 1", r"rgb/train\.txt:2: expected label 0, by the name of zip_up_cgy_1, found 1"),
        ("RGB_zip_up_cgy_1 2 40", r"rgb/train\.txt:2: expected a label from 0 to 39, found 40"),
        ("RGB_zip_up_cgy 2 0", r"rgb/train\.txt:2: expected an action, a subject \(cgy, cwx"),
    ],
)
def test_wrong_lines_are_named(eight, line, expected):
    eight.lists("dataset_splits/@CS1/rgb", train=["RGB_clap_hand_cwx_2 3 24", line])
    eight.refused(expected)


def test_wrong_clips_are_named(eight):
    eight.frames("RGB_clap_hand_cgy_9")
    eight.frames("RGB_clap_hand_cgy_8", 4)
    eight.frames("D_clap_hand_cgy_8", 3)
    write(eight, "clap_hand_joe_1")
    (eight.root / "RGB_zip_up_cgy_1" / "000001.jpg").unlink()
    eight.refused(
        f"there is no clip {eight.root}/D_clap_hand_cgy_9; it is in rgb only",
        "found 4 rgb and 3 depth frames",
        "RGB_clap_hand_joe_1: expected an action, a subject",
        "RGB_zip_up_cgy_1: frame 1 is missing",
    )


@needs_shared_splits
def test_the_rule_gives_the_published_folds_name_for_name(raw):
    """All 960 clips of the lists, one frame each, without lists; then the readers take all lists."""
    one = raw.root.parent / "one"
    one.mkdir()
    (one / "000000.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    published = {}
    for fold in (1, 2, 3, 4):
        for modality, prefix in (("rgb", "RGB_"), ("depth", "D_")):
            for split, file in (("train", "train.txt"), ("validation", "valid.txt")):
                lines = read(SHARED_SPLITS / "THU-READ" / f"@CS{fold}" / modality / file)
                found = {(line.name.removeprefix(prefix), line.label) for line in lines}
                assert found == published.setdefault(f"fold{fold}_{split}", found)
    for name, _ in published["fold1_train"] | published["fold1_validation"]:
        (raw.root / f"RGB_{name}").symlink_to(one)
    assert raw.build().clips == {split: len(clips) for split, clips in published.items()}
    for split, clips in published.items():
        prepared = open_split("thu_read", raw.data_dir, split)
        assert {(clip.name, clip.label) for clip in prepared} == clips
        assert len(clips) == (720 if "train" in split else 240)
    (raw.root / "dataset_splits").symlink_to((SHARED_SPLITS / "THU-READ").resolve())
    with pytest.raises(RawDataError) as error:
        prepare("thu_read", raw_dir=raw.root, data_dir=raw.root.parent / "elsewhere")
    *problems, last = error.value.problems
    assert last.what == "has no good clip"
    assert len(problems) == 960  # every clip was found, with one of its frames
    assert all("frames, found 1" in problem.what for problem in problems)
