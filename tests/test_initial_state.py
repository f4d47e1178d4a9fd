"""Trainings that start from the weights of another, or go on with it: from every kind of checkpoint."""

import json
import logging
import shutil

import jax
import numpy as np
import optax
import pytest

from rgbd_jax import training as train_module
from rgbd_jax.checkpoint.checkpoints import CheckpointManager, list_checkpoints, read_metadata
from rgbd_jax.evaluation import evaluate
from rgbd_jax.initial_state import initial_state
from rgbd_jax.model import Model
from rgbd_jax.models.name_table import parameter_groups
from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from rgbd_jax.training import train
from tests.pytorch.networks import checkpoint, convert, manifest_of, random_state_dict, small_config
from tests.tiny import saved_state, tiny_config

HEADS = [f"head_{branch}" for branch in ("small", "medium", "large")]


def sgd_config(data_dir, stream, epochs=3):
    """A config in which everything that a run takes over matters: momentum, schedule, temperature, statistics."""
    config = tiny_config(data_dir, stream)
    if stream == "umdr_rgb":
        config.optimizer.decay_vectors, config.optimizer.arguments.nesterov = False, True
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 1e-3
    config.schedule.learning_rate = 0.02
    config.schedule.warm_up_epochs = 1
    config.loss.sharpness = True
    config.train.epochs = epochs
    return config


@pytest.fixture(scope="module", params=["rgb", pytest.param("umdr_rgb", marks=pytest.mark.slow)])
def interrupted(request, small_demo, tmp_path_factory):
    """A run of three epochs, as it was after the second (its workdir copied), and at its end."""
    root = tmp_path_factory.mktemp("interrupted")
    config = sgd_config(small_demo, request.param)
    patch = pytest.MonkeyPatch()
    save = CheckpointManager.save

    def save_and_copy(self, state, run, metrics=None):
        save(self, state, run, metrics)
        if int(state.step) == 6:
            for manager in self._managers.values():
                manager.wait_until_finished()
            shutil.copytree(root / "whole", root / "second_epoch")

    patch.setattr(CheckpointManager, "save", save_and_copy)
    with patch.context():
        train(config, root / "whole")
    patch.undo()
    return config, root


@pytest.fixture(scope="module")
def exported(interrupted):
    """The run after its second epoch as every kind of checkpoint."""
    config, root = interrupted
    found = {"workdir": root / "second_epoch"}
    for kind, name in {"pytorch": "run.pth.tar", "safetensors": "run.safetensors", "converted": "run"}.items():
        found[kind] = root / "exported" / name
        convert(root / "second_epoch", found[kind], "--checkpoint=latest")
    return config, root, found


def assert_same(found, expected):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


def lines(workdir, kind):
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("clips_per_second", "input_wait_fraction")}
        for line in written
        if line["kind"] == kind
    ]


def changed(config, **fields):
    with config.unlocked():
        copy = config.copy_and_resolve_references()
    for name, value in fields.items():
        copy[name] = value
    return copy


@pytest.mark.parametrize("kind", ["pytorch", "workdir"])
def test_continued_training_ends_as_the_uninterrupted_one(exported, tmp_path, kind):
    """Bit by bit: parameters, statistics, momentum, step, and the figures of every step on the way."""
    config, root, found = exported
    train(changed(config, continue_from=str(found[kind])), tmp_path / "run")
    assert_same(saved_state(config, tmp_path / "run"), saved_state(config, root / "whole"))
    for of in ("train", "validation"):
        whole = lines(root / "whole", of)
        assert lines(tmp_path / "run", of) == [line for line in whole if line["step"] >= 6 + (of == "train")]
    history = read_metadata(list_checkpoints(tmp_path / "run")[0]).history
    assert [(epoch["step"], epoch["epoch"]) for epoch in history] == [(6, 2), (9, 3)]
    assert history[0]["continued_from"] == str(found[kind])
    best = max(line["top1"] for line in lines(root / "second_epoch", "validation"))
    assert history[0]["best_accuracy_there"] == best


def test_continued_training_that_is_killed_goes_on_from_its_own_checkpoint(exported, tmp_path, monkeypatch):
    config, root, found = exported
    config = changed(config, continue_from=str(found["pytorch"]))

    class KilledError(Exception):
        pass

    def killed(self, figures):
        raise KilledError

    monkeypatch.setattr(train_module.MetricAccumulator, "add", killed)
    with pytest.raises(KilledError):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(changed(config, continue_from=str(tmp_path / "gone")), tmp_path / "run")  # its source is not needed again
    assert_same(saved_state(config, tmp_path / "run"), saved_state(config, root / "whole"))


@pytest.mark.parametrize("kind", ["safetensors", "converted"])
def test_other_kinds_give_the_same_start(exported, kind):
    config, _, found = exported
    starts = [initial_state(Model(changed(config, continue_from=str(found[of])), 12)) for of in ("pytorch", kind)]
    assert starts[0].epoch == starts[1].epoch == 2
    assert_same(starts[0].state, starts[1].state)


def test_exported_file_says_what_pytorch_asks_for(exported):
    config, root, found = exported
    contents = read_torch(found["pytorch"])
    assert contents["epoch"] == 2
    *vectors, group = contents["optimizer"]["param_groups"]
    assert [each["weight_decay"] for each in vectors] == [0.0] * (not config.optimizer.decay_vectors)
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-3)
    rates = {line["step"]: line["learning_rate"] for line in lines(root / "whole", "train")}
    assert rates[7] == pytest.approx(group["lr"])  # the rate that the next step would have had
    assert {int(v) for k, v in contents["model"].items() if k.endswith("num_batches_tracked")} == {6}
    assert len(contents["optimizer"]["state"]) == sum(len(each["params"]) for each in (*vectors, group))


def test_converted_checkpoint_evaluates_as_the_run_it_is_of(interrupted, tmp_path):
    config, root = interrupted
    for which in ("best", "latest"):
        convert(root / "whole", tmp_path / which, f"--checkpoint={which}")
        expected = evaluate(config, root / "whole", which)
        found = evaluate(config, tmp_path / which, "best")
        assert {k: v for k, v in found.items() if k not in ("seconds", "step")} == {
            k: v for k, v in expected.items() if k not in ("seconds", "step")
        }


@pytest.mark.parametrize("kind", ["pytorch", "safetensors", "converted", "workdir"])
def test_start_from_weights(exported, kind):
    """All but the linear layers of the class heads, from the checkpoint; those, and the optimizer, from scratch."""
    config, root, found = exported
    there, scratch = saved_state(config, root / "second_epoch"), initial_state(Model(config, 12)).state
    start = initial_state(Model(changed(config, init_from=str(found[kind])), 12))
    assert (start.epoch, int(start.state.step), start.notes) == (0, 0, {})
    if kind == "workdir":  # the best checkpoint is taken of it, which may be the first
        there = saved_state(config, root / "second_epoch", "best")
    assert_same(start.state.batch_stats, there.batch_stats)
    assert_same(start.state.opt_state, scratch.opt_state)
    for name, params in start.state.params.items():
        if name not in HEADS:
            assert_same(params, there.params[name])
        else:
            assert_same(params["norm"], there.params[name]["norm"])
            assert_same(params["linear"], scratch.params[name]["linear"])


@pytest.fixture
def stranger(tmp_path):
    """The file of a network with other classes and frames than the config's, and its tensors."""
    config = small_config(temporal_blocks=2, branch_frames=(2, 4, 5))
    tensors = random_state_dict(manifest_of(config, 5))
    write_torch(tmp_path / "stranger.pth.tar", checkpoint(tensors))
    return tmp_path / "stranger.pth.tar", tensors


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_what_fits_is_taken_and_the_rest_is_told(stranger, caplog, blocks):
    path, tensors = stranger
    config = small_config(temporal_blocks=blocks)
    config.init_from = str(path)
    model = Model(config, 12)
    with caplog.at_level(logging.INFO, "rgbd_jax"):
        params = initial_state(model).state.params
    scratch = model.init(config.seed)[0]
    large, initial = params["temporal"]["large"], scratch["temporal"]["large"]
    assert_same(large["position_embedding"], initial["position_embedding"])  # of 6 frames, not 5
    assert_same(params["temporal"]["medium"]["position_embedding"], tensors["dtn.pos_embedding_media"][0])
    norms, initial_norms = (part["transformer"]["layers"]["attention_norm"]["scale"] for part in (large, initial))
    for block in range(blocks):
        name = f"dtn.multi_scale_transformers.{block}.transformer_enc_large.layers.0.0.norm.weight"
        assert_same(norms[block], tensors.get(name, initial_norms[block]))
    logged = caplog.text
    assert "dtn.pos_embedding_large: shape (1, 6, 64), the network has (1, 7, 64)" in logged
    assert "dtn.mlp_head_small.1.weight: last layer of a class head" in logged
    of_a_block = len([name for name in tensors if name.startswith("dtn.multi_scale_transformers.1.")])
    assert f"skipped: {7 + of_a_block * (blocks == 1)}\n" in logged
    assert f"missing: {6 + of_a_block * (blocks == 3)}\n" in logged


def test_streams_of_fusion_start_from_streams(tmp_path):
    config = small_config("fusion")
    scratch = Model(config, 12).init(config.seed)[0]
    states = {}
    for seed, name in enumerate(("rgb", "depth")):
        states[name] = random_state_dict(manifest_of(small_config(name), 5), seed=seed + 1)
        write_torch(tmp_path / f"{name}.pth.tar", checkpoint(states[name], prefix="module."))
        config.fusion[f"init_{name}_from"] = str(tmp_path / f"{name}.pth.tar")
    params = initial_state(Model(config, 12)).state.params
    for name, tensors in states.items():
        assert_same(params[name]["spatial"]["projection"]["kernel"], tensors["LinearMap.1.weight"].T)
        assert_same(params[name]["temporal"]["small"]["class_token"], tensors["dtn.cls_token_small"][0, 0])
        assert_same(params[f"head_{name}"], scratch[f"head_{name}"])
    assert_same(params["autoencoder"], scratch["autoencoder"])


def test_frozen_networks_are_loaded_whole_or_not_at_all(tmp_path, caplog):
    """With their class heads and statistics; optimizer and moving average hold the fusion part alone."""
    config = small_config("umdr_fusion")
    config.train.ema_decay, config.loss.sharpness = 0.9, True
    refused(config, "config.fusion.init_rgb_from='': expected", "config.fusion.init_depth_from='': expected a trained")
    states, epochs = {}, {"rgb": 7, "depth": 30}
    for seed, (name, epoch) in enumerate(epochs.items()):
        states[name] = random_state_dict(manifest_of(small_config(f"umdr_{name}"), 12), seed=seed + 1)
        write_torch(tmp_path / f"{name}.pth.tar", checkpoint(states[name], epoch=epoch, decay_vectors=False))
        config.fusion[f"init_{name}_from"] = str(tmp_path / f"{name}.pth.tar")
    model = Model(config, 12)
    with caplog.at_level(logging.WARNING, "rgbd_jax"):
        logging.getLogger("rgbd_jax").propagate = True
        state = initial_state(model).state
    (warning,) = {line for line in caplog.messages if "frozen_temperatures" in line}
    assert "the rgb network's is 0.07, but after its 7 epochs it was 0.0462" in warning  # 0.04 + 6 / 29 * 0.03
    assert state.params.keys() == state.ema_params.keys() == model.shapes()[0].keys()
    assert not {"rgb", "depth"} & state.params.keys()
    assert state.ema_batch_stats is None
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} <= {
        x.shape for x in jax.tree.leaves(state.params)
    } | {()}
    table = model.family.name_table
    for tensors in (table.to_pytorch(state.batch_stats, {}), table.to_pytorch(*state.evaluated)):
        for name, expected in states.items():
            for key, value in expected.items():
                if not key.endswith("num_batches_tracked"):
                    np.testing.assert_array_equal(tensors[f"Modalit_{name}.{key}"], value, err_msg=key)

    del states["depth"]["LinearMap.2.weight"]
    states["depth"]["dtn.multi_scale_transformers.0.3.2.bias"] = np.zeros(5, np.float32)
    write_torch(tmp_path / "depth.pth.tar", states["depth"])
    refused(config, f"config.fusion.init_depth_from={tmp_path}", "2 tensors do not fit", "LinearMap.2.weight: missing")


def test_fusion_starts_from_fusion(tmp_path):
    config = small_config("fusion")
    tensors = random_state_dict(manifest_of(config, 5))
    write_torch(tmp_path / "fusion.pth.tar", checkpoint(tensors))
    config.init_from = str(tmp_path / "fusion.pth.tar")
    with pytest.raises(ValueError, match=r"config.fusion.reference_layout=False, but config.init_from=.* has True"):
        initial_state(Model(config, 12))
    config.fusion.reference_layout = True
    params = initial_state(Model(config, 12)).state.params
    kernel = params["spatial_fusion"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["crossFusion.3.weight"][:, :, 0, 0].T)
    assert params["autoencoder"]["classifier"]["kernel"].shape[1] == 12


def refused(config, *messages):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        initial_state(Model(config, 12))
    for text in messages:
        assert text in str(caught.value)


def test_checkpoints_of_the_wrong_kind(tmp_path, stranger):
    rgb = str(stranger[0])
    fusion = str(tmp_path / "fusion.pth.tar")
    write_torch(fusion, checkpoint(random_state_dict(manifest_of(small_config("fusion"), 5))))
    nothing = str(tmp_path / "nothing.pth.tar")
    write_torch(nothing, {"model": {"weight": np.zeros(3, np.float32)}})
    (tmp_path / "page.pth.tar").write_text("<html>")

    config = small_config()
    config.init_from = fusion
    refused(config, f"config.init_from={fusion}: a fusion network, not a unimodal one", "config.modality='rgb'")
    config = small_config("umdr_rgb")
    config.init_from = rgb
    refused(config, f"config.init_from={rgb}: a unimodal network, not a umdr one", "config.network='umdr'")
    config = small_config()
    config.init_from = nothing
    refused(config, f"config.init_from={nothing}: none of its 1 tensors fits")
    config.init_from = str(tmp_path)
    refused(config, f"config.init_from: {tmp_path} is neither the workdir of a run nor a converted checkpoint")
    config.init_from = str(tmp_path / "page.pth.tar")
    refused(config, "config.init_from", "page.pth.tar: the file is an HTML or XML page")

    config = small_config("fusion")
    config.init_from = rgb
    refused(config, f"config.init_from={rgb}: a unimodal network, not a fusion one", "config.fusion.init_rgb_from")
    config.fusion.init_depth_from = rgb
    refused(config, "config.init_from, config.fusion.init_depth_from exclude each other")
    config.init_from = ""
    config.fusion.init_depth_from = fusion
    refused(config, f"config.fusion.init_depth_from={fusion}: a fusion network", "use config.init_from")


def test_trainings_that_cannot_be_continued(tmp_path, stranger):
    path = str(stranger[0])
    config = small_config()
    config.continue_from = path
    config.train.epochs = 7
    refused(config, "config.train.epochs=7, but 7 epochs", path)
    config.train.epochs = 20
    refused(
        config,
        f"{path} is of another network than the config's",
        "config.model.temporal_blocks=1, but the checkpoint",
        "config.model.branch_frames=(2, 4, 6), but the checkpoint has (2, 4, 5)",
        "config.model.num_classes=12, but the checkpoint has 5",
    )
    config.init_from = path
    refused(config, "config.continue_from, config.init_from exclude each other")
    config.init_from = ""

    contents = checkpoint(random_state_dict(manifest_of(config, 12)))
    good = str(tmp_path / "good.pth.tar")
    write_torch(good, contents)
    config.continue_from = good
    refused(config, "config.optimizer.name='adamw': only 'sgd'")
    config.optimizer.name = "sgd"
    start = initial_state(Model(config, 12))
    assert (start.epoch, start.notes) == (
        7,
        {"continued_from": good, "best_accuracy_there": 0.625, "learning_rate_there": 0.005},
    )
    write_torch(good, {"model": contents["model"]})
    refused(config, "does not record how many epochs are done; use config.init_from")
    config.continue_from = str(tmp_path / "absent")
    refused(config, f"config.continue_from: {tmp_path / 'absent'}: no such path, and no registered network")
    del contents["model"]["dtn.cls_token_large"]
    write_torch(good, {**contents, "optimizer": None})
    config.continue_from = good
    refused(config, f"{good}: 1 tensors do not fit the network", "dtn.cls_token_large: missing")


@pytest.mark.parametrize(("stream", "weight"), [("fusion", "fc.weight"), ("umdr_rgb", "LinearMap.2.weight")])
def test_momentum_of_all_parameters_is_taken_over(tmp_path, stream, weight):
    """Under the reference's names again, the optimizer's state is that of the file, and zero where it has none."""
    config = small_config(stream)
    config.optimizer.decay_vectors = stream == "fusion"
    config.optimizer.name = "sgd"
    config.train.epochs = 8
    config.fusion.reference_layout = True
    decay_vectors = config.optimizer.decay_vectors
    contents = checkpoint(random_state_dict(manifest_of(config, 12)), decay_vectors=decay_vectors)
    write_torch(tmp_path / "whole.pth.tar", contents)
    config.continue_from = str(tmp_path / "whole.pth.tar")
    model = Model(config, 12)
    state, table = initial_state(model).state, model.family.name_table
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
    found = table.to_pytorch(momentum, {})
    names = [name for group in parameter_groups(contents["model"], decay_vectors=decay_vectors) for name in group]
    assert len(names) == len(found) > 200
    for number, name in enumerate(names):
        buffer = contents["optimizer"]["state"].get(number, {}).get("momentum_buffer")
        np.testing.assert_array_equal(found[name], 0 if buffer is None else buffer, err_msg=name)
    np.testing.assert_array_equal(table.to_pytorch(state.params, {})[weight], contents["model"][weight])
