"""The pipeline and the heat maps against what the reference's evaluation loader gave (tests/parity/loader.npz)."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rgbd_jax import sampling
from rgbd_jax.config import default_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.models import heat_map
from tests.parity import recipe, recipe_data

RECORDED = np.load(Path(__file__).parents[1] / "parity" / "loader.npz")
SAMPLE = Path(__file__).parents[2] / ".." / "shared" / "sample_rgbd"
PROBES = 4096
NTU_FRAMES = 69


def test_parity_loader_frames_taken_are_those_of_the_reference():
    for key, count in {"frames/0": 80, "frames/1": 80, "ntu/frames": NTU_FRAMES}.items():
        np.testing.assert_array_equal(sampling.sample_frames(count, 64, None), RECORDED[key])


def normalised(frames):
    """What the reference recorded of frames uint8[t h w 3]: (c t h w)."""
    return ((frames - 127.5) / 128).transpose(3, 0, 1, 2)


def probes(key, tensor):
    """Values of a tensor (c t h w) at the places where `key` was recorded."""
    assert tensor.shape == tuple(RECORDED[f"{key}/shape"])
    return tensor.reshape(-1)[recipe.probe_index(key, tensor.size, PROBES)]


def assert_clip_meets(key, frames):
    """Frames uint8[t h w 3] are within 1/128 mean absolute difference of the recorded clip, in normalised units."""
    clip = normalised(frames)
    assert np.abs(probes(f"{key}/clip", clip) - RECORDED[f"{key}/clip/probe"]).mean() < 1 / 128
    # Interpolation moves the extremes, but hardly the mean and the standard deviation.
    np.testing.assert_allclose((clip.mean(), clip.std()), RECORDED[f"{key}/clip/stats"][:2], rtol=0, atol=1 / 128)


def assert_heat_meets(key, window, frames):
    """Heat maps of frames uint8[t h w 3] are within 1e-4 of the recorded ones, at every probe."""
    heat = np.asarray(jax.jit(heat_map.heat_maps, static_argnums=1)(frames[None], window))[0].transpose(3, 0, 1, 2)
    key = f"{key}/heat_w{window}"
    np.testing.assert_allclose(probes(key, heat), RECORDED[f"{key}/probe"], rtol=0, atol=1e-4)
    stats = (heat.mean(dtype=float), heat.std(dtype=float), heat.min(), heat.max())
    np.testing.assert_allclose(stats, RECORDED[f"{key}/stats"], rtol=0, atol=1e-6)


def evaluation_frames(clip, stream, **transforms):
    """The frames uint8[t h w 3] that the pipeline gives for the only clip of a source."""
    config = default_config()
    config.modality = stream
    config.data.transforms.update(transforms)
    config.data.depth.update(encoding="reference_wrapped", reference_person_crop=True)
    (batch,) = loader.eval_batches([clip], config, batch_size=1)
    return batch["frames"][stream][0]


def sample_folder(modality, number):
    return SAMPLE / modality / f"subject11_r{number}"


def reference_clip(modality, number):
    """The clip that the reference saw, uint8[t h w 3], rebuilt with Pillow alone and checked against the record."""
    frames = []
    for i in RECORDED[f"frames/{number}"]:
        image = Image.open(sample_folder(modality, number) / f"{i:06d}.jpg")
        image = image.resize((256, 256), Image.Resampling.BICUBIC).crop((32, 32, 256, 256))
        frames.append(np.asarray(image))
    clip = np.stack(frames)
    key = f"nv/{modality}/{number}/clip"
    np.testing.assert_array_equal(probes(key, normalised(clip)), RECORDED[f"{key}/probe"])
    return clip


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the real clips of {SAMPLE} are not here")
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_parity_loader_nvgesture(modality, number):
    files = sorted(sample_folder(modality, number).glob("*.jpg"))
    clip = ClipRecord("sample", number, {modality: [file.read_bytes() for file in files]})
    frames = evaluation_frames(clip, modality, resize=(256, 256), reference_nvgesture_crop=True)
    assert_clip_meets(f"nv/{modality}/{number}", frames)
    for window in (4, 10):
        assert_heat_meets(f"nv/{modality}/{number}", window, reference_clip(modality, number))


def test_parity_loader_masked_depth(tmp_path):
    recipe_data.write_masked_depth(tmp_path, NTU_FRAMES + 1, 3)
    files = sorted(tmp_path.glob("MDepth-*.png"))[:NTU_FRAMES]
    clip = ClipRecord("masked", 0, {"depth": [file.read_bytes() for file in files]})
    frames = evaluation_frames(clip, "depth")
    assert_clip_meets("ntu/depth", frames)
    recorded = RECORDED["ntu/depth/clip/probe"]  # nothing is interpolated here: equal
    np.testing.assert_array_equal(probes("ntu/depth/clip", normalised(frames)), recorded)
    assert_heat_meets("ntu/depth", 10, frames)
