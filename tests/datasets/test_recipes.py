"""The config of each data set builds it from raw clips and reads batches of every stream from it."""

import importlib

import numpy as np
import pytest

from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.ingest.build import prepare
from tests import made_raw_data

RAW = {
    "nvgesture": "NVGESTURE",
    "jester": "JESTER",
    "thu_read": "THU_READ",
    "isogd": "ISOGD",
    "ntu_cs": "NTU",
    "utd_mhad": "UTD_MHAD",
}
FRAMES = 4  # 64 would only take longer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    made_raw_data.write(folder)
    return folder


@pytest.mark.parametrize("name", RAW)
def test_a_data_set_is_built_once_for_all_its_streams(folder, name):
    module = importlib.import_module(f"configs.{name}")
    for stream in ("rgb",) if name == "jester" else ("rgb", "depth", "fusion"):
        config = module.get_config(stream)
        config.data.data_dir = str(folder / "data")
        if stream == "rgb":
            prepare(config.data.dataset, data_dir=config.data.data_dir, raw_dir=folder / RAW[name])
        config.clip.frames = FRAMES
        splits = open_splits(config)
        batch = next(iter(loader.eval_batches(splits.evaluation, config, batch_size=2)))
        modalities = ("rgb", "depth") if stream == "fusion" else (stream,)
        assert tuple(sorted(batch["frames"])) == tuple(sorted(modalities))
        for frames in batch["frames"].values():
            assert frames.shape == (2, FRAMES, config.clip.size, config.clip.size, 3)
            assert frames.dtype == np.uint8
            assert np.ptp(frames) > 0
        assert len(splits.training) >= 4
