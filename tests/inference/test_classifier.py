"""The Python interface: the same numbers as an evaluation, from paths and from arrays; streams, features, threads."""

import concurrent.futures
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest

import rgbd_jax
from rgbd_jax.data.frames import decode_frame
from rgbd_jax.data.source import open_split
from tests.tiny import save_run, tiny_config

CLIPS = 3


@pytest.fixture(scope="module")
def classifier(small_demo, tmp_path_factory):
    workdir = save_run(tiny_config(small_demo, "fusion"), tmp_path_factory.mktemp("runs") / "fusion")
    rgbd_jax.evaluate(tiny_config(small_demo, "fusion"), workdir)
    return rgbd_jax.load(workdir)


@pytest.fixture(scope="module")
def split(small_demo):
    return open_split("rgbd_demo", small_demo, "validation")


@pytest.fixture(scope="module")
def arrays(split):
    """Modality -> clips as arrays; RGB decoded from JPEG, depth of 16 bit."""
    return {
        modality: [np.stack([decode_frame(x, modality) for x in split[i].frames[modality]]) for i in range(CLIPS)]
        for modality in ("rgb", "depth")
    }


@pytest.fixture(scope="module")
def folders(split, tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for modality, frames in split[0].frames.items():
        (root / modality).mkdir()
        for number, encoded in enumerate(frames):
            (root / modality / f"{number:04}{'.jpg' if modality == 'rgb' else '.png'}").write_bytes(encoded)
    return root


def test_arrays_and_paths_get_the_logits_of_the_evaluation(classifier, split, arrays, folders):
    with np.load(classifier.trained.path / "scores" / "validation.npz") as scores:
        names = scores["names"].tolist()
        expected = [scores["heads/logits"][names.index(split[i].name)] for i in range(CLIPS)]
    predictions = classifier.predict(**arrays)
    for prediction, logits in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(prediction.logits, logits, rtol=1e-3, atol=1e-4)
    single = classifier.predict(rgb=folders / "rgb", depth=str(folders / "depth"))
    mixed = classifier.predict(rgb=arrays["rgb"][0], depth=arrays["depth"][0][..., None])
    for prediction in (single, mixed):
        np.testing.assert_allclose(prediction.logits, expected[0], rtol=1e-3, atol=1e-4)
    assert set(single.heads) == {"logits", "rgb", "depth"}
    assert single.top(12)[0] == (single.class_name, pytest.approx(single.probabilities.max()))
    assert [name for name, _ in single.top(12)] == [single.class_names[i] for i in np.argsort(-single.logits)]


def test_the_evidence_is_computed_when_it_is_read(classifier, arrays):
    prediction = classifier.predict(rgb=arrays["rgb"][0], depth=arrays["depth"][0])
    assert "evidence" not in vars(prediction)
    assert {name: x.shape for name, x in prediction.heat_map.items()} == dict.fromkeys(("rgb", "depth"), (8, 32, 32))
    maps = prediction.class_activation_map
    assert all(x.shape[0] == 8 and x.min() >= 0 for x in maps.values())
    np.testing.assert_allclose(prediction.evidence.heads["logits"][0], prediction.logits, rtol=1e-3, atol=1e-4)
    picture = prediction.picture(20)  # of each modality eight frames, Grad-CAM and motion, 4 pixels between them
    assert picture.shape == (6 * 24 - 4, 8 * 24 - 4, 3)
    np.testing.assert_array_equal(picture[20:24], 255)
    assert picture[:20].std() > 10


def test_features_of_frames_and_clips(classifier, arrays):
    first, second = classifier.features(rgb=arrays["rgb"][:2], depth=arrays["depth"][:2])
    assert {name: x.shape for name, x in first.frames.items()} == dict.fromkeys(("rgb", "depth"), (8, 64))
    assert {name: x.shape for name, x in first.clip.items()} == dict.fromkeys(("rgb", "depth"), (64,))
    assert np.abs(first.clip["rgb"] - second.clip["rgb"]).max() > 0
    again = classifier.features(rgb=arrays["rgb"][0], depth=arrays["depth"][0])
    np.testing.assert_array_equal(again.frames["depth"], first.frames["depth"])


def test_a_stream_of_arrays_gets_the_predictions_of_its_latest_frames(classifier, arrays):
    rgb, depth = (np.concatenate(arrays[modality]) for modality in ("rgb", "depth"))
    events = list(classifier.stream(rgb=iter(rgb), depth=iter(depth), window=20, hop=7))
    assert [event.frame for event in events] == list(range(19, len(rgb), 7))
    for event in events[::3]:
        latest = slice(event.frame - 19, event.frame + 1)
        expected = classifier.predict(rgb=rgb[latest], depth=depth[latest])
        np.testing.assert_allclose(event.probabilities, expected.probabilities, rtol=1e-3, atol=1e-5)
        assert event.class_name == expected.class_name


def test_threads_and_processes_give_the_same_prediction(classifier, arrays):
    clip = {modality: clips[0] for modality, clips in arrays.items()}
    expected = classifier.predict(**clip).logits
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(classifier.predict, **clip) for _ in range(4)]
        for thread in threads:
            np.testing.assert_array_equal(thread.result().logits, expected)
    copied = pickle.loads(pickle.dumps(classifier))
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_logits, copied, clip).result()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def _logits(classifier, clip):
    return classifier.predict(**clip).logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clip: {"rgb": clip["rgb"]}, "the network reads rgb and depth; found rgb"),
        (
            lambda clip: clip | {"rgb": clip["rgb"] / 255},
            r"a rgb frame is float64 of shape \(60, 80, 3\); expected uint8",
        ),
        (lambda clip: clip | {"depth": clip["depth"].astype(np.int64)}, r"uint8 or uint16 h w"),
        (lambda clip: clip | {"depth": clip["depth"][:-1]}, r"found \d+ rgb and \d+ depth frames; expected"),
        (lambda clip: clip | {"rgb": [clip["rgb"]] * 2}, "found 2 rgb and 1 depth clips"),
        (lambda clip: clip | {"rgb": "nowhere.mp4"}, "nowhere.mp4: no such file"),
    ],
)
def test_clips_that_cannot_be_used(classifier, arrays, change, message):
    clip = {modality: clips[0] for modality, clips in arrays.items()}
    with pytest.raises((ValueError, OSError), match=message):
        classifier.predict(**change(clip))


def test_a_training_and_its_evaluation_by_name(small_demo, tmp_path):
    config = tiny_config(small_demo, "depth")
    result = rgbd_jax.train(config, tmp_path / "run", **{"train.epochs": 1})
    assert (result["step"], result["clips"]) == (3, 24)
    evaluated = rgbd_jax.evaluate(config, tmp_path / "run", **{"train.epochs": 1})
    assert evaluated["top1"] == result["top1"]
    classifier = rgbd_jax.load(tmp_path / "run")
    assert classifier.modalities == ("depth",)
    with pytest.raises(ValueError, match=r"config.train.epoch: no such field"):
        rgbd_jax.train(config, tmp_path / "other", **{"train.epoch": 1})
    with pytest.raises(ValueError, match=r"config.train.epochs=0: expected at least 1"):
        rgbd_jax.train("demo:depth", tmp_path / "other", **{"train.epochs": 0})
    assert not (tmp_path / "other").exists()
    frame = np.zeros((60, 80), np.uint16)
    (event,) = classifier.stream(frame for _ in range(5))
    assert event.frame == 4


def test_importing_the_package_does_not_import_jax():
    code = "import sys, rgbd_jax; sys.exit('jax' in sys.modules or 'tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
