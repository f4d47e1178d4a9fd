"""What a trained network says of batches of clips, and where in their frames it looked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from rgbd_jax.data import loader
from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.metrics import average_views, softmax
from rgbd_jax.modalities import STREAMS
from rgbd_jax.step import Output, Tree

LOOKED_AT = "mixed_5c"  # the last result that still has places in the frame
POOLED = "pooled_features"  # its mean over these places, which the rest of the network sees
# Those who want maps look at a few clips: machine code that is optimised less is there in half of the time.
EXPLAINED_ON_CPU = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of some clips.

    Attributes:
        heads: name of a head -> its logits, float32 b k; "logits" decides.
        heat: modality -> heat map of the motion that the network was shown, float32 b t h w, in [0, 2]; empty unless
            asked for, and without FRP.
        activation: modality -> class-activation map of the class that was decided for, float32 b t h2 w2, from 0 on:
            what speaks for the class; empty unless asked for.
        intermediates: name -> what was asked for (see `Intermediates`).
    """

    heads: Mapping[str, Float[np.ndarray, "b k"]]
    heat: Mapping[str, Float[np.ndarray, "b t h w"]] = dataclasses.field(default_factory=dict)
    activation: Mapping[str, Float[np.ndarray, "b t h2 w2"]] = dataclasses.field(default_factory=dict)
    intermediates: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def probabilities(self) -> Float[np.ndarray, "b k"]:
        """Probability of every class."""
        return softmax(self.heads["logits"])


class Predictor:
    """Asks a network about batches of one size, for which it is compiled once.

    Args:
        trained: the network.
        batch_size: clips that go through it together; smaller batches are filled up.
        explained: whether heat maps and class-activation maps are wanted too; takes a backward pass more.
        intermediates: names of intermediate results that are wanted too.
    """

    def __init__(
        self, trained: TrainedNetwork, *, batch_size: int, explained: bool = False, intermediates: Sequence[str] = ()
    ):
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; at least 1 clip is needed")
        self.trained = trained
        self.batch_size = batch_size
        self._wanted = tuple(intermediates)
        on_cpu = jax.default_backend() == "cpu"
        self._step = jax.jit(
            self._explained if explained else self._asked,
            compiler_options=EXPLAINED_ON_CPU if explained and on_cpu else None,
        )
        self._weights = jax.device_put((trained.params, trained.batch_stats))

    def __call__(self, frames: Mapping[str, UInt8[np.ndarray, "b t h w 3"]]) -> Prediction:
        """Returns what the network says of up to `batch_size` clips.

        Args:
            frames: modality -> frames, as `rgbd_jax.data.loader` makes them.
        """
        (clips,) = {len(of_modality) for of_modality in frames.values()}
        if not 1 <= clips <= self.batch_size:
            raise ValueError(f"the batch has {clips} clips; expected 1 to {self.batch_size}")
        missing = self.batch_size - clips
        filled = {
            name: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x
            for name, x in frames.items()
        }
        said = jax.device_get(self._step(*self._weights, {"frames": filled}))
        of_clip = {
            # Layers of a branch are stacked along the first axis, clips along the second.
            name: x[:, :clips] if name.endswith(("_tokens", "_attention")) else x[:clips]
            for name, x in said.pop("intermediates").items()
        }
        return Prediction(**jax.tree.map(lambda x: x[:clips], said), intermediates=of_clip)

    def of_clips(self, clips: Sequence[Mapping[str, UInt8[np.ndarray, "*v t h w 3"]]]) -> Prediction:
        """Returns what the network says of up to `batch_size` clips, of several views of each together.

        Args:
            clips: of each, modality -> frames (see `rgbd_jax.data.loader.load_clip`).

        Raises:
            ValueError: maps of several views are wanted, which differ in what they show.
        """
        batch = {modality: np.stack([clip[modality] for clip in clips]) for modality in clips[0]}  # b *v t h w 3
        views = [self(view["frames"]) for view in loader.views({"frames": batch})]
        if len(views) == 1:
            return views[0]
        if views[0].activation or views[0].intermediates:
            raise ValueError(
                f"maps can be drawn of one view of a clip, not of {len(views)}: set config.eval.clips and "
                "config.eval.crops to 1"
            )
        heads = {name: average_views(np.stack([view.heads[name] for view in views])) for name in views[0].heads}
        return Prediction(heads)

    def warm_up(self) -> None:
        """Compiles the network now rather than with the first batch."""
        clip = self.trained.config.clip
        black = np.zeros((self.batch_size, clip.frames, clip.size, clip.size, 3), np.uint8)
        self(dict.fromkeys(STREAMS[self.trained.config.modality], black))

    def _asked(self, params: Tree, batch_stats: Tree, batch: Mapping[str, Any]) -> dict[str, Any]:
        output = self.trained.stream.predict_step(params, batch_stats, batch, self._wanted, self.trained.temperature)
        return _told(output, self._wanted)

    def _explained(self, params: Tree, batch_stats: Tree, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the same with Grad-CAM (Selvaraju et al. 2017) at the last inception block, frame by frame.

        The rest of the network sees the mean over a frame's places alone, so that all of them share its gradient.
        """
        stream = self.trained.stream
        clip, heat = stream.inputs(batch)
        prefixes = {name: f"{name}/" if stream.fusion else "" for name in STREAMS[stream.config.modality]}
        seen = tuple(prefix + LOOKED_AT for prefix in prefixes.values())
        pooled = tuple(prefix + POOLED for prefix in prefixes.values())

        def forward(offsets: Mapping[str, Array] | None, names: tuple[str, ...]) -> Output:
            return stream.forward(
                params, batch_stats, clip, heat, self.trained.temperature, intermediates=names, offsets=offsets
            )[0]

        def score(offsets: Mapping[str, Array]) -> tuple[Float[Array, ""], Output]:
            output = forward(offsets, (*self._wanted, *(name for name in seen if name not in self._wanted)))
            return jnp.sum(jnp.max(output.logits, axis=-1)), output  # of each clip, the class that was decided for

        shapes = jax.eval_shape(lambda: forward(None, pooled).intermediates)
        zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        gradient, output = jax.grad(score, has_aux=True)(zeros)
        activation, shown = {}, {}
        for modality, prefix in prefixes.items():
            features = output.intermediates[prefix + LOOKED_AT]  # b t h2 w2 c
            shares = gradient[prefix + POOLED].astype(jnp.float32)  # b t c
            activation[modality] = jax.nn.relu(jnp.einsum("bthwc,btc->bthw", features.astype(jnp.float32), shares))
            heat_map = heat[modality] if stream.fusion else heat
            if heat_map is not None:
                shown[modality] = heat_map[..., 0].astype(jnp.float32)  # b t h w
        return {**_told(output, self._wanted), "activation": activation, "heat": shown}


def _told(output: Output, wanted: Sequence[str]) -> dict[str, Any]:
    heads = {name: logits.astype(jnp.float32) for name, logits in output.heads.items()}
    return {"heads": heads, "intermediates": {name: output.intermediates[name] for name in wanted}}
