"""Class-activation maps against derivatives taken by differences, and where drawings put them."""

import jax
import numpy as np
import pytest

from rgbd_jax.data.loader import load_clip
from rgbd_jax.data.source import open_split
from rgbd_jax.data.transforms import draw_transform
from rgbd_jax.inference.drawing import place_in_view, relative, tinted
from rgbd_jax.inference.predictor import LOOKED_AT, POOLED, Predictor
from rgbd_jax.inference.trained import load_trained
from tests.tiny import save_run, tiny_config


@pytest.mark.parametrize("stream", ["rgb", "fusion"])
def test_a_map_weighs_features_by_how_the_decision_depends_on_their_mean(stream, small_demo, tmp_path):
    with jax.enable_x64(True):
        config = tiny_config(small_demo, stream)
        config.model.dtype = "float64"
        trained = load_trained(save_run(config, tmp_path / "run"))
        clip = load_clip(open_split("rgbd_demo", small_demo, "validation")[3], config)
        batch = {"frames": {modality: frames[None] for modality, frames in clip.items()}}
        prefix = "depth/" if stream == "fusion" else ""
        seen, pooled = prefix + LOOKED_AT, prefix + POOLED
        said = Predictor(trained, batch_size=1, explained=True, intermediates=(seen, pooled))(batch["frames"])
        label = int(said.heads["logits"][0].argmax())
        inputs = trained.stream.inputs(batch)

        @jax.jit
        def decision(offset):
            output, _ = trained.stream.forward(
                trained.params, trained.batch_stats, *inputs, trained.temperature, offsets={pooled: offset}
            )
            return output.logits[0, label]

        features = np.asarray(said.intermediates[seen][0], np.float64)  # t h w c
        frame, step = 5, 1e-6
        slopes = []
        for channel in range(features.shape[-1]):
            offset = np.zeros(said.intermediates[pooled].shape)
            offset[0, frame, channel] = step
            slopes.append((float(decision(offset)) - float(decision(-offset))) / (2 * step))
        expected = np.maximum(features[frame] @ np.array(slopes), 0)  # h w
        found = said.activation[prefix.rstrip("/") or "rgb"][0, frame]
        scale = np.abs(features[frame] * np.array(slopes)).max()
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
        assert max(maps.max() for maps in said.activation.values()) > 0


def test_a_batch_that_is_not_full_says_the_same(small_demo, tmp_path):
    config = tiny_config(small_demo)
    trained = load_trained(save_run(config, tmp_path / "run"))
    split = open_split("rgbd_demo", small_demo, "validation")
    frames = {"rgb": np.stack([load_clip(split[place], config)["rgb"] for place in range(3)])}
    whole = Predictor(trained, batch_size=3, explained=True, intermediates=("small_attention",))(frames)
    filled = Predictor(trained, batch_size=4, explained=True, intermediates=("small_attention",))(frames)
    for one, other in zip(jax.tree.leaves(vars(whole)), jax.tree.leaves(vars(filled)), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=2e-5)
    with pytest.raises(ValueError, match="has 3 clips; expected 1 to 2"):
        Predictor(trained, batch_size=2)(frames)


def test_a_drawing_colours_the_places_that_the_map_is_about(small_demo):
    config = tiny_config(small_demo)
    width, height = 160, 120
    activation = np.zeros((4, 4), np.float32)
    activation[1, 2] = 1.0
    frame = np.full((height, width, 3), 100, np.uint8)
    drawn = tinted(frame, activation, place_in_view(config, width, height))
    changed = np.abs(drawn.astype(int) - 100).sum(-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    transform = draw_transform(config, None)
    x, y, _ = transform.matrix(width, height) @ [column + 0.5, row + 0.5, 1]
    cell = config.clip.size / 4
    assert abs(x - 2.5 * cell) < cell / 2
    assert abs(y - 1.5 * cell) < cell / 2
    assert changed[0].max() == 0  # what the crop leaves out was never seen
    assert np.array_equal(relative(np.zeros((2, 3, 3), np.float32)), np.zeros((2, 3, 3)))
    assert relative(np.full((2, 3, 3), 4.0)).max() == 1
