"""Predictions of a trained model for clips and streams, with the evidence for them: heat maps and Grad-CAM."""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.metrics import average_views, softmax
from rgbd_jax.models.family import Output, Tree

SMALL_CLIP = 1 << 17  # pixels in all frames


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Outputs of the model for some clips; evidence and intermediate values only where they are requested."""

    heads: Mapping[str, Float[np.ndarray, "b k"]]  # "logits" decides
    # Modality -> motion heat maps in [0, 2] (empty without FRP), and Grad-CAM, at least 0.
    heat_map: Mapping[str, Float[np.ndarray, "b t h w"]] = dataclasses.field(default_factory=dict)
    class_activation_map: Mapping[str, Float[np.ndarray, "b t h2 w2"]] = dataclasses.field(default_factory=dict)
    intermediates: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def probabilities(self) -> Float[np.ndarray, "b k"]:
        """Probability of each class."""
        return softmax(self.heads["logits"])


class Predictor:
    """A trained model compiled for batches of `batch_size` clips; the last batch is padded.

    If `explained`, predictions have heat maps and class-activation maps, which takes a backward pass. The intermediate
    values that are named come with the clips on the first axis.
    """

    def __init__(
        self, trained: TrainedModel, *, batch_size: int, explained: bool = False, intermediates: Sequence[str] = ()
    ):
        self.trained, self.batch_size, self._intermediates = trained, batch_size, tuple(intermediates)
        self._weights = jax.device_put((trained.params, trained.batch_stats))
        self._step = jax.jit(
            self._explain if explained else self._predict,
            compiler_options=self._cpu_options() if explained and jax.default_backend() == "cpu" else None,
        )

    def _cpu_options(self) -> dict[str, bool | int]:
        """Few clips are explained. Unoptimised code is ready in a third of the time; small clips need no faster one."""
        clip = self.trained.config.clip
        level = 0 if clip.frames * clip.size**2 <= SMALL_CLIP else 1
        return {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": level}

    def __call__(self, frames: Mapping[str, UInt8[np.ndarray, "n *v t h w 3"]]) -> Prediction:
        """Returns the prediction for clips (modality -> frames); logits are averaged over the views of a clip."""
        views = [self._one_view(view["frames"]) for view in loader.views({"frames": frames})]
        if len(views) == 1:
            return views[0]
        if views[0].class_activation_map or views[0].intermediates:
            raise ValueError(
                f"a class-activation map shows one view of a clip, not {len(views)}: set config.eval.clips and "
                "config.eval.crops to 1"
            )
        heads = {name: average_views(np.stack([view.heads[name] for view in views])) for name in views[0].heads}
        return Prediction(heads)

    def warm_up(self) -> None:
        """Compiles the model now rather than at the first batch."""
        clip = self.trained.config.clip
        black = np.zeros((1, clip.frames, clip.size, clip.size, 3), np.uint8)  # n t h w 3
        self(dict.fromkeys(self.trained.model.modalities, black))

    def _one_view(self, frames: Mapping[str, UInt8[np.ndarray, "n t h w 3"]]) -> Prediction:
        (clips,) = {len(x) for x in frames.values()}
        padding = [(0, -clips % self.batch_size), *4 * [(0, 0)]]
        padded = {modality: np.pad(x, padding) for modality, x in frames.items()}
        batches = []
        for start in range(0, clips, self.batch_size):
            batch = {modality: x[start : start + self.batch_size] for modality, x in padded.items()}
            batches.append(jax.device_get(self._step(self._weights, batch)))
        return Prediction(**jax.tree.map(lambda *parts: np.concatenate(parts)[:clips], *batches))

    def _predict(self, weights: tuple[Tree, Tree], frames: Mapping[str, Array]) -> dict[str, Any]:
        model = self.trained.model
        inputs = model.inputs({"frames": frames})
        output, _ = model.apply(*weights, inputs, self.trained.schedule, intermediates=self._intermediates)
        return self._outputs(output)

    def _explain(self, weights: tuple[Tree, Tree], frames: Mapping[str, Array]) -> dict[str, Any]:
        """Adds heat maps and Grad-CAM (Selvaraju et al. 2017), frame by frame, at the block that the family names."""
        model = self.trained.model
        inputs = model.inputs({"frames": frames})
        apply = functools.partial(model.apply, *weights, inputs, self.trained.schedule)
        layers = {modality: model.family.explained(model.config, modality) for modality in model.modalities}
        names = {*self._intermediates, *layers.values()}

        def score(perturbations: Mapping[str, Array]) -> tuple[Float[Array, ""], Output]:
            output, _ = apply(intermediates=tuple(names), perturbations=perturbations)
            return jnp.sum(jnp.max(output.logits, axis=-1)), output  # logits of the predicted classes

        shapes = jax.eval_shape(lambda: apply(intermediates=tuple(layers.values()))[0].intermediates)
        zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        gradients, output = jax.grad(score, has_aux=True)(zeros)
        maps, heat = {}, {}
        for modality, layer in layers.items():
            features = output.intermediates[layer].astype(jnp.float32)  # b t h2 w2 c
            importance = gradients[layer].astype(jnp.float32).mean((2, 3))  # b t c
            maps[modality] = jax.nn.relu(jnp.einsum("bthwc,btc->bthw", features, importance))
            if (heat_map := inputs[modality].heat) is not None:
                heat[modality] = heat_map[..., 0].astype(jnp.float32)  # b t h w
        return {**self._outputs(output), "class_activation_map": maps, "heat_map": heat}

    def _outputs(self, output: Output) -> dict[str, Any]:
        heads = {name: logits.astype(jnp.float32) for name, logits in output.heads.items()}
        model, values = self.trained.model, output.intermediates
        attention = {name for modality in model.modalities for name in model.family.attention(modality).values()}
        requested = {name: values[name] for name in self._intermediates}
        # The clips come first; the network stacks attention as layers b heads n n.
        batch_first = {name: x.swapaxes(0, 1) if name in attention else x for name, x in requested.items()}
        return {"heads": heads, "intermediates": batch_first}


@dataclasses.dataclass(frozen=True)
class StreamPrediction:
    """The prediction for the latest frames of a stream."""

    frame: int  # number of the last frame, counted from 0
    class_names: Sequence[str]  # by label
    probabilities: Float[np.ndarray, "k"]
    latency: float  # seconds from this frame to its prediction

    @property
    def class_name(self) -> str:
        """The name of the predicted class."""
        return self.class_names[int(self.probabilities.argmax())]


def stream(
    predictor: Predictor, readers: Mapping[str, Iterator[Any]], *, window: int, hop: int
) -> Iterator[StreamPrediction]:
    """Yields a prediction for the latest `window` frames, first when there are as many, then every `hop` frames.

    A stream that ends earlier gives one prediction, for all of its frames. `readers` are modality -> encoded frames, or
    arrays.
    """
    if min(window, hop) < 1:
        raise ValueError(f"window={window}, hop={hop}: expected at least 1")
    modalities, config = predictor.trained.model.modalities, predictor.trained.config
    latest: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=window)

    def predict(arrived: float) -> StreamPrediction:
        frames = dict(zip(modalities, zip(*latest, strict=True), strict=True))
        clip = loader.load_clip(ClipRecord(f"frames up to {count - 1}", 0, frames), config)  # modality -> *v t h w 3
        probabilities = predictor({modality: x[None] for modality, x in clip.items()}).probabilities[0]
        names = predictor.trained.class_names
        return StreamPrediction(count - 1, names, probabilities, time.perf_counter() - arrived)

    count = 0
    for count, frames in enumerate(zip(*(readers[modality] for modality in modalities), strict=False), 1):
        arrived = time.perf_counter()
        latest.append(frames)
        if count >= window and (count - window) % hop == 0:
            yield predict(arrived)
    if not count:
        raise ValueError(f"the {' or the '.join(modalities)} stream has no frame that can be decoded")
    if count < window:
        yield predict(time.perf_counter())
