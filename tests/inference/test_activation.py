"""Class-activation maps against finite differences, drawings, and loading."""

import dataclasses

import jax
import numpy as np
import pytest

from rgbd_jax.data.loader import load_clip
from rgbd_jax.data.source import open_split
from rgbd_jax.data.transforms import draw_transform
from rgbd_jax.inference.drawing import model_view, relative, tinted
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.models.spatial import explained_block
from rgbd_jax.pytorch.convert import write_weights
from rgbd_jax.pytorch.weights import read_weights
from tests.tiny import save_run, tiny_config


def frames_of(data_dir, config, indices):
    split = open_split("rgbd_demo", data_dir, "validation")
    clips = [load_clip(split[index], config) for index in indices]
    return {modality: np.stack([clip[modality] for clip in clips]) for modality in clips[0]}


@pytest.mark.parametrize("modality", ["fusion", pytest.param("umdr_depth", marks=pytest.mark.slow)])
def test_grad_cam_weighs_features_by_the_derivative_of_the_predicted_logit(modality, small_demo, tmp_path):
    with jax.enable_x64(True):
        config = tiny_config(small_demo, modality)
        config.model.dtype = "float64"
        trained = load_trained(save_run(config, tmp_path / "run"))
        frames = frames_of(small_demo, config, [3])
        modality = trained.model.modalities[-1]
        # At the last block, behind which no pooling makes the derivative jump at zeros.
        family = trained.model.family
        layers = {x: family.explained(config, x).replace("mixed_3c", "mixed_5c") for x in trained.model.modalities}
        trained.model.family = dataclasses.replace(family, explained=lambda config, modality: layers[modality])
        layer = layers[modality]
        predictor = Predictor(trained, batch_size=1, explained=True, intermediates=(layer,))
        prediction = predictor(frames)
        label = int(prediction.heads["logits"][0].argmax())
        weights = trained.params, trained.batch_stats, trained.model.inputs({"frames": frames})

        @jax.jit
        def logit(perturbation):
            output, _ = trained.model.apply(*weights, trained.schedule, perturbations={layer: perturbation})
            return output.logits[0, label]

        features = np.asarray(prediction.intermediates[layer][0], np.float64)  # t h w c
        frame, step = 5, 1e-6
        slopes = []
        for channel in range(features.shape[-1]):
            perturbation = np.zeros(prediction.intermediates[layer].shape)
            perturbation[0, frame, :, :, channel] = step / features[0, :, :, 0].size
            slopes.append((float(logit(perturbation)) - float(logit(-perturbation))) / (2 * step))
        expected = np.maximum(features[frame] @ np.array(slopes), 0)  # h w
        scale = np.abs(features[frame] * np.array(slopes)).max()
        np.testing.assert_allclose(prediction.class_activation_map[modality][0, frame], expected, atol=1e-4 * scale)
        assert max(maps.max() for maps in prediction.class_activation_map.values()) > 0


@pytest.mark.parametrize(
    ("size", "block"), [(224, "mixed_5c"), (192, "mixed_4c"), (112, "mixed_4c"), (64, "mixed_3c"), (32, "mixed_3c")]
)
def test_class_activation_maps_have_seven_positions_a_side_if_a_block_has(size, block):
    assert explained_block(size) == block


def test_a_drawing_colours_the_positions_of_the_evidence(small_demo):
    config, width, height = tiny_config(small_demo), 160, 120
    activation = np.zeros((4, 4), np.float32)
    activation[1, 2] = 1.0
    drawn = tinted(np.full((height, width, 3), 100, np.uint8), activation, model_view(config, width, height))
    changed = np.abs(drawn.astype(int) - 100).sum(-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    x, y, _ = draw_transform(config, None).matrix(width, height) @ [column + 0.5, row + 0.5, 1]
    cell = config.clip.size / 4
    assert max(abs(x - 2.5 * cell), abs(y - 1.5 * cell)) < cell / 2
    assert changed[0].max() == 0  # outside the crop
    for value, expected in ((0.0, 0.0), (4.0, 1.0)):
        np.testing.assert_array_equal(relative(np.full((2, 3, 3), value, np.float32)), np.full((2, 3, 3), expected))


def test_a_run_and_what_is_converted_from_it_record_their_config_and_others_need_one(small_demo, tmp_path):
    config = tiny_config(small_demo)
    workdir, converted = save_run(config, tmp_path / "run"), tmp_path / "converted"
    trained = load_trained(workdir)
    assert (len(trained.class_names), trained.epoch, trained.step) == (12, 1, 3)
    write_weights(tmp_path / "of_run", read_weights(workdir))
    assert load_trained(tmp_path / "of_run").class_names == trained.class_names
    write_weights(converted, dataclasses.replace(read_weights(workdir), config=None))
    with pytest.raises(ValueError, match="pass --config"):
        load_trained(converted)
    frames = frames_of(small_demo, config, [0])
    again = dataclasses.replace(load_trained(converted, config=config), schedule=trained.schedule)
    logits = [Predictor(each, batch_size=1)(frames).heads["logits"] for each in (trained, again)]
    np.testing.assert_array_equal(*logits)
    other = config.copy_and_resolve_references()
    other.clip.frames = 10
    with pytest.raises(ValueError, match="another config"):
        load_trained(workdir, config=other)
