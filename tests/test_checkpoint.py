"""What a checkpoint holds, which ones are kept, and what happens to damaged ones and to failing saves."""

import dataclasses
import errno
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgbd_jax.checkpoint import checkpoints
from rgbd_jax.checkpoint.checkpoints import (
    CHECKSUMS_FILE,
    DAMAGED,
    CheckpointManager,
    CheckpointMetadata,
    SaveError,
    find,
    list_checkpoints,
    read_metadata,
    read_state,
    restore_latest,
)
from rgbd_jax.checkpoint.workdir import CONFIG_FILE, check_workdir, read_config, write_config
from rgbd_jax.config import default_config
from rgbd_jax.parallel.mesh import make_mesh, replicated, shard, state_sharding
from rgbd_jax.step import TrainState


def abstract_state(classes=12):
    """Shapes of a train state as an optimizer with two trees and a counter makes them."""
    params = {
        "linear": {"kernel": jnp.zeros((70, classes)), "bias": jnp.zeros(classes)},
        "block": {"kernel": jnp.zeros((3, 1, 1, 8, 5))},
    }
    statistics = {"norm": {"mean": jnp.zeros(5)}}
    return jax.eval_shape(
        lambda: TrainState(jnp.zeros((), jnp.int32), params, statistics, optax.adamw(1e-3).init(params))
    )


SHAPES = abstract_state()
SHARDING = state_sharding(SHAPES, make_mesh(1))


@pytest.fixture(scope="module")
def state():
    """A state of which no two numbers are alike, so that nothing can be mixed up unnoticed."""
    rng = np.random.default_rng(0)
    return shard(jax.tree.map(lambda x: (100 * rng.normal(size=x.shape)).astype(x.dtype), SHAPES), SHARDING)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, state):
    return save(tmp_path_factory.mktemp("two"), state, [10, 20])


def at(state, step):
    return dataclasses.replace(state, step=shard(np.asarray(step, np.int32), replicated(make_mesh(1))))


def save(workdir, state, steps, metrics=None, **fields):
    """Saves the state under steps: with metrics as evaluated epochs of ten steps, without as mid-epoch checkpoints."""
    config = default_config()
    config.checkpoint.update(fields)
    write_config(workdir, config, ())
    manager, history = CheckpointManager(workdir, config.checkpoint), []
    for step in steps:
        epoch = None if metrics is None else {"step": step, "epoch": step // 10, **metrics[step]}
        history += [] if epoch is None else [epoch]
        manager.save(at(state, step), CheckpointMetadata({"next_index": step}, history), epoch)
    manager.close()
    return workdir


def steps_in(workdir, kind="checkpoints"):
    return sorted(int(path.name) for path in (workdir / kind).glob("[0-9]*"))


def assert_same(restored, expected):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"keep_latest": 1}, [30, 50]),  # 30 is best
        ({"keep_latest": 2, "keep_best": 2}, [20, 30, 40, 50]),
        ({"keep_latest": 1, "best_metric": "loss", "best_is": "lowest"}, [10, 50]),
        ({"keep_latest": 1, "keep_every_epochs": 2}, [20, 30, 40, 50]),
    ],
)
def test_the_best_the_latest_and_every_few_epochs_are_kept(tmp_path, state, fields, kept):
    top1 = {10: 0.1, 20: 0.5, 30: 0.9, 40: 0.2, 50: 0.3}
    save(tmp_path, state, top1, {step: {"top1": value, "loss": 1.0 + value} for step, value in top1.items()}, **fields)
    assert steps_in(tmp_path) == kept
    best = find(tmp_path, "best")
    assert (best.name, find(tmp_path, "latest").name) == ("10" if "best_is" in fields else "30", "50")
    (best / "metadata" / "metadata").write_text("damaged")
    assert find(tmp_path, "best").name != best.name


def test_json_holds_no_nan_and_an_epoch_without_a_loss_is_never_the_best(tmp_path, state):
    losses = {10: math.nan, 20: 2.0, 30: math.nan}
    metrics = {step: {"top1": 0.5, "loss": loss} for step, loss in losses.items()}
    save(tmp_path, state, losses, metrics, best_metric="loss", best_is="lowest", keep_latest=3)
    assert find(tmp_path, "best").name == "20"
    np.testing.assert_equal(
        [epoch["loss"] for epoch in read_metadata(tmp_path / "checkpoints/30").history], [*losses.values()]
    )
    for file in (tmp_path / "checkpoints/30").rglob("*"):
        if file.is_file() and file.read_bytes()[:1] == b"{":
            json.loads(file.read_text(), parse_constant=pytest.fail)


def test_mid_epoch_checkpoints_do_not_displace_those_of_epochs(tmp_path, state):
    save(tmp_path, state, [10], {10: {"top1": 0.5}})
    save(tmp_path, state, [12, 14, 16])
    assert (steps_in(tmp_path), steps_in(tmp_path, "recovery")) == ([10], [14, 16])
    assert find(tmp_path, "latest").name == "16"
    assert find(tmp_path, "latest", evaluated=True).name == "10"
    save(tmp_path, state, [16], {16: {"top1": 0.6}})  # the same step, evaluated after all
    assert list_checkpoints(tmp_path)[0] == tmp_path / "checkpoints" / "16"


def test_a_checkpoint_holds_state_and_metadata(tmp_path, state):
    accumulated = [{"loss": float(np.float32(0.1))}]
    metadata = CheckpointMetadata({"next_index": 7}, [], accumulated, {"seed": 3}, {"git": "abc"}, last_epoch=2)
    manager = CheckpointManager(tmp_path, default_config().checkpoint)
    manager.save(at(state, 7), metadata)
    manager.close()
    (folder,) = list_checkpoints(tmp_path)
    assert read_metadata(folder) == metadata
    assert_same(read_state(folder, SHAPES, SHARDING), at(state, 7))
    file = folder / "metadata" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "new": 1}))
    with pytest.raises(ValueError, match=r"written by another version of rgbd_jax.*'new'"):
        read_metadata(folder)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_named_and_the_checkpoint_before_is_used(two_checkpoints, state, tmp_path_factory, caplog, data):
    workdir = shutil.copytree(two_checkpoints, tmp_path_factory.mktemp("damaged") / "run")
    folder = workdir / "recovery" / "20"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    of_orbax = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written after the checksums
    file = data.draw(st.sampled_from(sorted(path for path in files if path.name not in of_orbax)))
    contents = bytearray(file.read_bytes())
    index = data.draw(st.integers(0, len(contents) - 1))
    match data.draw(st.sampled_from(["flipped", "cut short", "missing"])):
        case "flipped":
            contents[index] ^= 1 << data.draw(st.integers(0, 7))
            file.write_bytes(contents)
        case "cut short":
            file.write_bytes(contents[:index])
        case "missing":
            file.unlink()
    caplog.clear()
    restored, metadata = restore_latest(workdir, SHAPES, SHARDING)
    assert metadata.data_iterator == {"next_index": 10}
    assert_same(restored, at(state, 10))
    assert str(folder) in caplog.text
    assert (workdir / DAMAGED / "recovery" / "20").exists()
    assert [path.name for path in list_checkpoints(workdir)] == ["10"]


def test_without_an_intact_checkpoint_all_are_named(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("10", "20"):
        next((workdir / "recovery" / step).rglob("ocdbt.process_0/d/*")).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint is damaged(?s:.*)20/state(?s:.*)10/state(?s:.*)is missing"):
        restore_latest(workdir, SHAPES, SHARDING)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_disk_that_cannot_be_read_is_tried_again_and_is_no_damage(two_checkpoints, monkeypatch, failures):
    original, left = Path.read_bytes, [OSError(errno.EIO, "Input/output error")] * failures

    def read_bytes(path):
        if path == two_checkpoints / "recovery" / "20" / CHECKSUMS_FILE and left:
            raise left.pop()
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(checkpoints, "PAUSES", (0, 0))
    if failures < 3:
        assert restore_latest(two_checkpoints, SHAPES, SHARDING)[1].data_iterator == {"next_index": 20}
    else:
        with pytest.raises(OSError, match=r"recovery/20 cannot be read: .*Input/output error; restore access"):
            restore_latest(two_checkpoints, SHAPES, SHARDING)
    assert len(list_checkpoints(two_checkpoints)) == 2


def test_a_checkpoint_of_another_network_is_not_taken_for_a_damaged_one(two_checkpoints):
    other = abstract_state(classes=13)
    with pytest.raises(ValueError, match=r"another network(?s:.*)linear.bias: \(12,\) there, \(13,\) here"):
        restore_latest(two_checkpoints, other, state_sharding(other, make_mesh(1)))
    assert len(list_checkpoints(two_checkpoints)) == 2


def test_a_save_that_fails_names_the_step_and_what_is_intact(tmp_path, state):
    save(tmp_path, state, [10], {10: {"top1": 0.5}})
    manager = CheckpointManager(tmp_path, default_config().checkpoint)
    shutil.rmtree(tmp_path / "recovery")
    (tmp_path / "recovery").write_text("no folder any more")
    with pytest.raises(SaveError, match=r"step 20 cannot be written to .*recovery.*checkpoints/10 is intact"):  # noqa: PT012
        manager.save(at(state, 20), CheckpointMetadata({}, []))
        manager.close()


def test_a_workdir_accepts_its_own_config_but_for_the_mutable_fields(tmp_path):
    config = default_config("depth")
    (tmp_path / f".{CONFIG_FILE}.0.tmp").touch()  # of a run that was killed at its very start
    check_workdir(tmp_path, config, new_allowed=True)
    write_config(tmp_path, config, ["push", "pull"])
    assert read_config(tmp_path).to_dict() == config.to_dict()
    (tmp_path / "metrics.jsonl").write_text("{}\n")  # without results, a start that failed, another config is welcome
    config.train.epochs, config.checkpoint.keep_best = 7, 3
    check_workdir(tmp_path, config, new_allowed=False)
    config.data.transforms.crop_size, config.checkpoint.best_is = 64, "lowest"
    with pytest.raises(ValueError, match=r"best_is: 'highest' there, 'lowest' here\n.*crop_size: 224 there, 64 here$"):
        check_workdir(tmp_path, config, new_allowed=True)
    file = tmp_path / CONFIG_FILE
    fields = json.loads(file.read_text())
    fields["model"].pop("operations")  # a field that came later
    file.write_text(json.dumps(fields))
    assert read_config(tmp_path).model.operations == "auto"
    damages = {
        json.dumps({**fields, "colour": 1}): "config.colour: no such field",
        json.dumps({**fields, "modality": ["rgb"]}): "config.modality",
        "[]": "config.modality=None",
        "[" * 100_000: "recursion",
        '{"a": "\udcff"}': "utf-8",
    }
    for text, message in damages.items():
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=rf"config.json is damaged \((?s:.*){message}"):
            read_config(tmp_path)
