"""A trained network as a function of frames alone: weights, normalisation and heat maps are inside."""

import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.modalities import STREAMS

OUTPUTS = ("probabilities", "logits")
PROBED_CLIPS = 2

Answer = tuple[Float[Array, "b k"], Float[Array, "b k"]]


def as_function(trained: TrainedModel) -> Callable[..., Answer]:
    """Returns a function of the frames of each modality, uint8 b t h w 3, in the order of `STREAMS`.

    It gives the probabilities of the classes and the logits that they are the softmax of, float32 b k, divided by the
    temperature of the checkpoint's evaluation.
    """
    stream, modalities = trained.model, STREAMS[trained.config.modality]
    params, batch_stats = jax.tree.map(np.asarray, (trained.params, trained.batch_stats))

    def ask(*frames: UInt8[Array, "b t h w 3"]) -> Answer:
        batch = {"frames": dict(zip(modalities, frames, strict=True))}
        output = stream.predict_step(params, batch_stats, batch, temperature=trained.schedule.temperature)
        logits = output.logits.astype(jnp.float32)  # b k
        return jax.nn.softmax(logits, axis=-1), logits

    return ask


def input_shape(trained: TrainedModel) -> tuple[int, int, int, int]:
    """Returns the shape t h w 3 of the frames of one clip."""
    clip = trained.config.clip
    return clip.frames, clip.size, clip.size, 3


def difference(trained: TrainedModel, call: Callable[..., Answer]) -> float:
    """Returns by how much a file's answers differ from the network's, for clips of random frames.

    The largest difference of a probability, or of a logit as a share of the largest logit (of 1, if that is smaller).

    Args:
        trained: the network.
        call: what the file makes of frames, as the function of `as_function`.
    """
    rng = np.random.default_rng(0)
    shape = (PROBED_CLIPS, *input_shape(trained))
    frames = {name: rng.integers(0, 256, shape, np.uint8) for name in STREAMS[trained.config.modality]}
    expected = Predictor(trained, batch_size=PROBED_CLIPS)(frames)
    probabilities, logits = map(np.asarray, call(*frames.values()))
    of_logits = expected.heads["logits"]
    scale = max(1.0, float(np.abs(of_logits).max()))
    largest = max(np.abs(probabilities - expected.probabilities).max(), np.abs(logits - of_logits).max() / scale)
    return float(largest)


def weights_digest(trained: TrainedModel) -> str:
    """Returns the SHA-256 of all parameters and running statistics, with their names, in the order of the names."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path((trained.params, trained.batch_stats))
    for path, leaf in leaves:
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
