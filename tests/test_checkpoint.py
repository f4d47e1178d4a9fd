"""What a run keeps, what a checkpoint holds, and what happens to damaged ones and to those of earlier versions."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from rgbd_jax.checkpoint.checkpoints import (
    DAMAGED,
    CheckpointMetadata,
    Checkpoints,
    OtherRunError,
    RetentionPolicy,
    SaveError,
    find,
    latest_intact,
    read_run,
    read_state,
    saved,
)
from rgbd_jax.checkpoint.integrity import CHECKSUMS_FILE
from rgbd_jax.optim import map_trees
from rgbd_jax.parallel.mesh import make_mesh, place, replicated, state_sharding
from rgbd_jax.step import TrainState


def shapes_of(classes=12):
    """Shapes of a train state as an optimizer with two trees and a counter makes them."""
    params = {
        "linear": {"kernel": jnp.zeros((70, classes)), "bias": jnp.zeros(classes)},
        "block": {"kernel": jnp.zeros((3, 1, 1, 8, 5))},
    }
    statistics = {"norm": {"mean": jnp.zeros(5)}}
    return jax.eval_shape(
        lambda: TrainState(jnp.zeros((), jnp.int32), params, statistics, optax.adamw(1e-3).init(params))
    )


def sharding_of(shapes):
    return state_sharding(shapes, make_mesh(1))


SHAPES = shapes_of()
SHARDING = sharding_of(SHAPES)


@pytest.fixture(scope="module")
def state():
    """A state of which no two numbers are alike, so that nothing can be mixed up unnoticed."""
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda leaf: (100 * rng.normal(size=leaf.shape)).astype(leaf.dtype), SHAPES)
    return place(random, SHARDING)


def at(state, step):
    return dataclasses.replace(state, step=place(np.asarray(step, np.int32), replicated(make_mesh(1))))


def write(workdir, state, steps, *, keep=None, metrics=None):
    """Saves the state under steps; those with metrics as evaluated epochs of ten steps, the others from amid one."""
    checkpoints, history = Checkpoints(workdir, keep or RetentionPolicy()), []
    for step in steps:
        figures = None if metrics is None else {"step": step, "epoch": step // 10, **metrics[step]}
        history += [] if figures is None else [figures]
        checkpoints.save(
            at(state, step), CheckpointMetadata({"next_index": step}, history, config={"seed": 3}), figures
        )
    checkpoints.close()


def steps_in(workdir, kind="checkpoints"):
    return sorted(int(path.name) for path in (workdir / kind).glob("[0-9]*"))


def assert_same(found, expected):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (RetentionPolicy(keep_latest=1), [30, 50]),  # 30 is best
        (RetentionPolicy(keep_latest=2, keep_best=2), [20, 30, 40, 50]),
        (RetentionPolicy(keep_latest=1, best_metric="loss", best_is="lowest"), [10, 50]),
        (RetentionPolicy(keep_latest=1, keep_every_epochs=2), [20, 30, 40, 50]),
    ],
)
def test_the_best_the_latest_and_every_few_epochs_are_kept(tmp_path, state, keep, kept):
    top1 = {10: 0.1, 20: 0.5, 30: 0.9, 40: 0.2, 50: 0.3}
    metrics = {step: {"top1": value, "loss": 1.0 + value} for step, value in top1.items()}
    write(tmp_path, state, top1, keep=keep, metrics=metrics)
    assert steps_in(tmp_path) == kept
    best = 10 if keep.best_is == "lowest" else 30
    assert (find(tmp_path, "best", keep).name, find(tmp_path, "latest", keep).name) == (str(best), "50")


def test_checkpoints_amid_an_epoch_do_not_displace_those_of_epochs(tmp_path, state):
    write(tmp_path, state, [10], metrics={10: {"top1": 0.5}})
    write(tmp_path, state, [12, 14, 16])
    assert (steps_in(tmp_path), steps_in(tmp_path, "recovery")) == ([10], [14, 16])
    assert find(tmp_path, "latest", RetentionPolicy()).name == "16"
    assert find(tmp_path, "latest", RetentionPolicy(), evaluated=True).name == "10"
    write(tmp_path, state, [16], metrics={16: {"top1": 0.6}})  # the same step, evaluated after all
    assert saved(tmp_path)[0] == tmp_path / "checkpoints" / "16"


def test_a_checkpoint_holds_state_place_figures_config_and_what_produced_it(tmp_path, state):
    run = CheckpointMetadata(
        {"next_index": 7}, [], [{"loss": float(np.float32(0.1))}], {"seed": 3}, {"git": "abc"}, last_epoch=2
    )
    checkpoints = Checkpoints(tmp_path, RetentionPolicy())
    checkpoints.save(at(state, 7), run)
    checkpoints.close()
    (folder,) = saved(tmp_path)
    assert read_run(folder) == dataclasses.replace(run, recent=[{"loss": float(np.float32(0.1))}])
    assert_same(read_state(folder, SHAPES, SHARDING), at(state, 7))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_named_and_the_checkpoint_before_is_used(two_checkpoints, tmp_path_factory, caplog, data):
    template, state = two_checkpoints
    workdir = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(template, workdir)
    files = sorted(
        path for path in (workdir / "recovery" / "20").rglob("*")
        if path.is_file() and path.stat().st_size and path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")
    )  # fmt: skip
    file = data.draw(st.sampled_from(files), label="file")
    contents = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut short"):
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        contents[data.draw(st.integers(0, len(contents) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(contents)
    caplog.clear()
    found, run = latest_intact(workdir, SHAPES, SHARDING)
    assert run.data == {"next_index": 10}
    assert_same(found, at(state, 10))
    assert str(workdir / "recovery" / "20") in caplog.text
    assert (workdir / DAMAGED / "recovery" / "20").exists()
    assert [path.name for path in saved(workdir)] == ["10"]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, state):
    workdir = tmp_path_factory.mktemp("two")
    write(workdir, state, [10, 20])
    return workdir, state


def test_a_missing_file_is_damage_and_without_any_intact_checkpoint_all_are_named(two_checkpoints, tmp_path):
    template, _ = two_checkpoints
    workdir = tmp_path / "run"
    shutil.copytree(template, workdir)
    for step in ("10", "20"):
        next((workdir / "recovery" / step).rglob("ocdbt.process_0/d/*")).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint is damaged(?s:.*)20/state(?s:.*)10/state(?s:.*)is missing"):
        latest_intact(workdir, SHAPES, SHARDING)


def test_damage_is_noticed_without_checksums_too_where_the_store_notices_it(two_checkpoints, tmp_path):
    template, _ = two_checkpoints
    workdir = tmp_path / "run"
    shutil.copytree(template, workdir)
    (workdir / "recovery" / "20" / CHECKSUMS_FILE).unlink()
    (workdir / "recovery" / "20" / "state" / "manifest.ocdbt").write_bytes(b"")
    assert latest_intact(workdir, SHAPES, SHARDING)[1].data == {"next_index": 10}


def test_a_checkpoint_of_another_network_is_not_taken_for_a_damaged_one(two_checkpoints):
    workdir, _ = two_checkpoints
    other = shapes_of(classes=13)
    with pytest.raises(OtherRunError, match=r"another network(?s:.*)linear.bias: \(12,\) there, \(13,\) here"):
        latest_intact(workdir, other, sharding_of(other))
    assert len(saved(workdir)) == 2


def test_a_checkpoint_of_a_newer_version_says_so(two_checkpoints, tmp_path):
    folder = tmp_path / "20"
    shutil.copytree(two_checkpoints[0] / "recovery" / "20", folder)
    contents = json.loads((folder / "run" / "metadata").read_text())
    (folder / "run" / "metadata").write_text(json.dumps({**contents, "format_version": 99, "new": 1}))
    with pytest.raises(OtherRunError, match="format version 99, this rgbd_jax reads up to 2"):
        read_run(folder)


def write_format_1(workdir: Path, state, history):
    """Writes a checkpoint as rgbd_jax did before, with Orbax and nothing of today's code for writing."""
    vectors = dataclasses.replace(
        state, optimizer_state=map_trees(lambda tree: ravel_pytree(tree)[0], state.optimizer_state)
    )
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(vectors),
            data=ocp.args.JsonSave({"next_index": 6}),
            history=ocp.args.JsonSave(history),
        )
        manager.save(6, args=items, metrics=history[-1])


def test_checkpoints_of_format_version_1_are_read(tmp_path, state):
    history = [{"step": 6, "epoch": 2, "top1": 0.5}]
    write_format_1(tmp_path, at(state, 6), history)
    found, run = latest_intact(tmp_path, SHAPES, SHARDING)
    assert_same(found, at(state, 6))
    assert (run.data, run.history, run.last_epoch, run.format_version) == ({"next_index": 6}, history, 1, 1)


def test_a_save_that_fails_says_which_and_what_is_left(tmp_path, state):
    write(tmp_path, state, [10])
    checkpoints = Checkpoints(tmp_path, RetentionPolicy())
    shutil.rmtree(tmp_path / "recovery")
    (tmp_path / "recovery").write_text("no folder any more")
    write(tmp_path / "other", state, [10], metrics={10: {"top1": 0.5}})
    shutil.move(tmp_path / "other" / "checkpoints" / "10", tmp_path / "checkpoints" / "10")

    def save():
        checkpoints.save(at(state, 20), CheckpointMetadata({}, []))
        checkpoints.close()

    with pytest.raises(SaveError, match=r"step 20 cannot be written to .*recovery.*checkpoints/10 is intact"):
        save()
