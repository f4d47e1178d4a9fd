"""The full networks on two real gesture clips, from raw frames to both told apart: each stream, then their fusion.

Runs where `shared/sample_rgbd` lies beside the checkout; a few minutes on two cores.

Each clip is there under three names, so that a batch holds three draws of its frames and crops: BatchNorm over two
clips alone throws the gradient of the fusion about by a factor of a thousand.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from rgbd_jax.configs import folder, nvgesture

from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.ingest.build import prepare_for
from rgbd_jax.model import Model
from rgbd_jax.training import train

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "sample_rgbd"
CLIPS = {"subject11_r0": 0, "subject11_r1": 1}  # to the class
DRAWS = 3

needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason=f"the sample clips are not there: {SAMPLE}")


@pytest.fixture(scope="module")
def configs_by_builder(tmp_path_factory):
    """(Builder, stream) -> config of the full network, on 16 frames of 64x64, for the sample clips."""
    root = tmp_path_factory.mktemp("sample")
    made = {}
    for name, module, lists in (("folder", folder, "."), ("nvgesture", nvgesture, "dataset_splits")):
        raw_dir = root / name / "raw"
        (raw_dir / lists).mkdir(parents=True)
        for modality in ("rgb", "depth"):
            (raw_dir / modality).mkdir()
            for clip in CLIPS:
                for draw in range(DRAWS):
                    (raw_dir / modality / f"{clip}_{draw}").symlink_to(SAMPLE / modality / clip)
        for split, draws in (("train", DRAWS), ("valid", 1)):
            lines = [f"{clip}_{draw} 80 {label}\n" for clip, label in CLIPS.items() for draw in range(draws)]
            (raw_dir / lists / f"{split}.txt").write_text("".join(lines))
        for stream in ("rgb", "depth", "fusion"):
            config = module.get_config(stream)
            config.data.update(raw_dir=str(raw_dir), data_dir=str(root / name / "prepared"))
            config.data.transforms.update(resize=(68, 68), crop_size=64, rotation_probability=0.0)
            config.data.transforms.reference_nvgesture_crop = config.loss.sharpness = False
            config.clip.update(size=64, frames=16)
            config.model.update(branch_frames=(4, 8, 12), batch_norm_momentum=0.7)
            config.optimizer.name = "adamw"
            config.schedule.update(name="cosine", learning_rate=3e-4, warm_up_epochs=2)
            config.train.update(batch_size=DRAWS * len(CLIPS), epochs=8, evaluate_every_epochs=8)
            config.eval.batch_size = 2
            made[name, stream] = config.lock()
        prepare_for(made[name, "fusion"])
    return made


@needs_sample
@pytest.mark.parametrize("stream", ["rgb", "depth"])
def test_both_builders_give_the_same_clips(configs_by_builder, stream):
    configs = [configs_by_builder[builder, stream] for builder in ("folder", "nvgesture")]
    one, other = (next(iter(loader.eval_batches(open_splits(c).evaluation, c, batch_size=2))) for c in configs)
    np.testing.assert_array_equal(one["frames"][stream], other["frames"][stream])
    assert one["frames"][stream].shape == (2, 16, 64, 64, 3)
    assert one["label"].tolist() == other["label"].tolist() == [0, 1]


@pytest.fixture(scope="module")
def trained(configs_by_builder, tmp_path_factory):
    """Trains a stream with a builder's config, once; returns the workdir and the result."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run(builder, stream):
        if stream not in done:
            config = configs_by_builder[builder, stream]
            done[stream] = root / stream, train(config, root / stream)
        return done[stream]

    return run


@needs_sample
@pytest.mark.slow
@pytest.mark.parametrize(("builder", "stream"), [("folder", "rgb"), ("nvgesture", "depth")])
def test_full_network_tells_two_real_clips_apart(configs_by_builder, trained, builder, stream):
    shapes, _ = Model(configs_by_builder[builder, stream], num_classes=2).shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 38e6
    _, result = trained(builder, stream)
    assert (result["clips"], result["latest_top1"]) == (2, 1.0)


@needs_sample
@pytest.mark.slow
def test_fusion_of_both_streams_tells_them_apart(configs_by_builder, trained, tmp_path, caplog):
    config = configs_by_builder["folder", "fusion"]
    with config.unlocked():
        config.fusion.init_rgb_from = str(trained("folder", "rgb")[0])
        config.fusion.init_depth_from = str(trained("nvgesture", "depth")[0])
        config.schedule.learning_rate = 1e-4  # both streams know the classes already
        config.train.update(epochs=6, evaluate_every_epochs=6)
    with caplog.at_level("INFO", logger="rgbd_jax"):
        result = train(config, tmp_path / "run")
    assert caplog.text.count("missing: nothing") == 2  # both streams found all their weights
    assert [result[name] for name in ("clips", "latest_top1", "top1_rgb", "top1_depth", "top1_all")] == [2, 1, 1, 1, 1]
