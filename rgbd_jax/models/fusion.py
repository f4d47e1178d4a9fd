"""The fusion network: an RGB and a depth stream that hear of each other twice, and classify together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx, struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import BatchNorm, BatchStatistics, Linear, Types
from rgbd_jax.models.rngs import ClipRngs, Dropout
from rgbd_jax.models.trunk import ClassHead, Trunk, at_least_float32, feature_count, types_of, wide_types

EPSILON, MOMENTUM = 1e-5, 0.1  # of BatchNorm, PyTorch's defaults


@struct.dataclass
class FusionOutput:
    """What the fusion network says of a batch of clips; mappings have the keys "rgb" and "depth".

    Attributes:
        logits: of both modalities together, (b, classes), float32 or wider.
        modality_logits: of each stream, after the streams' first exchange, (b, classes).
        features: class feature of each stream after both exchanges, (b, c).
        decoded: what the autoencoder makes of both features, (b, c).
        modality_logit: logit of "these features are of the RGB stream", (b,).
        class_feature: mean of the branches' class features, (b, c): the teachers of the distillation.
        spatial: the recoupling modules' spatial summaries, (b, c): its pupils; None without recoupling.
        intermediates: name -> value of what was asked for.
    """

    logits: Float[Array, "b k"]
    modality_logits: Mapping[str, Float[Array, "b k"]]
    features: Mapping[str, Float[Array, "b c"]]
    decoded: Float[Array, "b c"]
    modality_logit: Mapping[str, Float[Array, "b"]]
    class_feature: Mapping[str, Float[Array, "b c"]]
    spatial: Mapping[str, Float[Array, "b c"] | None]
    intermediates: Mapping[str, Array]

    @property
    def heads(self) -> Mapping[str, Float[Array, "b k"]]:
        """Everything that names a class: "logits", which decides, and the two streams."""
        return {"logits": self.logits, **self.modality_logits}


class DenseUnit(nnx.Module):
    """Linear map without bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, types: Types, axes: tuple[str, ...]):
        self.linear = Linear(inputs, outputs, use_bias=False, **types)
        statistics = BatchStatistics(MOMENTUM, axes)
        self.norm = BatchNorm(outputs, epsilon=EPSILON, statistics=statistics, param_dtype=types["param_dtype"])

    def __call__(self, x: Float[Array, "*batch i"], *, train: bool) -> Float[Array, "*batch o"]:
        """Applies the unit to the last axis; batch statistics are taken over all others."""
        return jax.nn.relu(self.norm(self.linear(x), train=train))


class CrossModalFusion(nnx.Module):
    """Makes of both streams' features, concatenated and normalised, what is added to each (the paper's CFCer)."""

    def __init__(self, features: int, dropout: float, types: Types, axes: tuple[str, ...] = ()):
        self.hidden = DenseUnit(2 * features, features, types, axes)
        self.output = Linear(features, features, use_bias=False, **types)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        rgb: Float[Array, "*batch c"],
        depth: Float[Array, "*batch c"],
        *,
        reference_layout: bool = False,
        train: bool,
        draws: ClipRngs | None = None,
    ) -> Float[Array, "*batch c"]:
        """Returns what is added to the features of both streams.

        Args:
            rgb: features of the RGB stream.
            depth: features of the depth stream.
            reference_layout: takes (b, t, 2c) features as if their memory held (b, 2c, t), and the (b, c, t) result
                as if it held (b, t, c), as the reference does: frames and channels are mixed up, but in the same way
                always, and weights trained so need it.
            train: whether batch statistics are on.
            draws: turn dropout on.
        """
        both = jnp.concatenate([rgb, depth], axis=-1)  # b t 2c
        wide = at_least_float32(both)
        norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
        both = (wide / jnp.maximum(norm, 1e-12)).astype(both.dtype)
        if reference_layout:
            frames, channels = both.shape[-2:]
            both = rearrange(both.reshape(-1, channels, frames), "b c t -> b t c")
        added = self.output(self.hidden(both, train=train))
        added = self.dropout(added, draws)
        if reference_layout:
            added = rearrange(added, "b t c -> b c t").reshape(rgb.shape)
        return added


class Autoencoder(nnx.Module):
    """Encodes both class features into one, from which the classes are told and the features are made again."""

    def __init__(self, features: int, classes: int, types: Types, wide: Types, axes: tuple[str, ...] = ()):
        self.encoder_1 = DenseUnit(2 * features, 2 * features, types, axes)
        self.encoder_2 = DenseUnit(2 * features, features, types, axes)
        self.encoder_3 = DenseUnit(features, features // 2, types, axes)
        self.encoder_output = Linear(features // 2, features // 2, use_bias=False, **types)
        self.classifier = Linear(features // 2, classes, use_bias=False, **wide)
        self.decoder_1 = DenseUnit(features // 2, features // 2, types, axes)
        self.decoder_2 = DenseUnit(features // 2, features, types, axes)

    def __call__(
        self, rgb: Float[Array, "b c"], depth: Float[Array, "b c"], *, train: bool
    ) -> tuple[Float[Array, "b k"], Float[Array, "b c"]]:
        """Returns the logits and the features made again."""
        x = jnp.concatenate([rgb, depth], axis=-1)  # b 2c
        for unit in (self.encoder_1, self.encoder_2, self.encoder_3):
            x = unit(x, train=train)
        code = self.encoder_output(x)  # b c/2
        decoded = self.decoder_2(self.decoder_1(code, train=train), train=train)  # b c
        return self.classifier(code), decoded


class FusionNetwork(nnx.Module):
    """Recognises the motion in clips of both modalities (the paper's cross-modal representation learning).

    Args:
        config: the experiment's config; `config.model`, `config.remat`, `config.fusion` and `config.clip.frames`
            are read.
        num_classes: number of classes.
        axes: mesh axes over which BatchNorm's statistics are taken together, inside `jax.shard_map`.

    A new network holds zeros and ones; `initial.initial_values` gives the values that a training starts from.
    """

    def __init__(self, config: ConfigDict, num_classes: int, axes: tuple[str, ...] = ()):
        features, types, wide = feature_count(config), types_of(config), wide_types(config)
        for name in MODALITIES:
            setattr(self, name, Trunk(config, axes))
            setattr(self, f"head_{name}", ClassHead(config, num_classes))
        self.spatial_fusion = CrossModalFusion(features, config.fusion.cross_modal_dropout, types, axes)
        self.temporal_fusion = CrossModalFusion(features, config.fusion.cross_modal_dropout, types, axes)
        self.autoencoder = Autoencoder(features, num_classes, types, wide, axes)
        self.modality = Linear(features, 1, use_bias=False, **wide)
        self.modality_dropout = Dropout(config.fusion.modality_dropout)
        self.reference_layout = config.fusion.reference_layout

    def __call__(
        self,
        clip: Mapping[str, Float[Array, "b t h w 3"]],
        heat: Mapping[str, Float[Array, "b t h w 1"] | None],
        *,
        train: bool,
        draws: ClipRngs | None = None,
        intermediates: tuple[str, ...] = (),
        offsets: Mapping[str, Array] | None = None,
    ) -> FusionOutput:
        """Returns logits, features and what is asked for by name.

        Args:
            clip: "rgb" and "depth" -> normalised frames, (x - 127.5) / 128, of the same moments.
            heat: "rgb" and "depth" -> motion heat maps; None only for a network without FRP.
            train: whether batch statistics are on.
            draws: turn dropout and random branch frames on.
            intermediates: names of intermediate results to return; those of a stream begin with "rgb/" or "depth/".
            offsets: name -> what is added to an intermediate result (see `Intermediates`).
        """
        record = Intermediates(intermediates, offsets)
        records = {name: record.of(name) for name in MODALITIES}
        frame_features = {
            name: getattr(self, name).spatial(clip[name], heat[name], train=train, intermediates=records[name])
            for name in MODALITIES
        }  # b t c
        added = self.spatial_fusion(
            frame_features["rgb"],
            frame_features["depth"],
            reference_layout=self.reference_layout,
            train=train,
            draws=draws,
        )
        record.offer("spatial_fusion", added)  # b t c
        features, class_feature, spatial = {}, {}, {}
        for name in MODALITIES:
            branches, spatial[name] = getattr(self, name).temporal(
                frame_features[name] + added, train=train, draws=draws, intermediates=records[name]
            )
            stacked = jnp.stack(list(branches.values()))  # 3 b c
            features[name], class_feature[name] = jnp.max(stacked, axis=0), jnp.mean(stacked, axis=0)
        with jax.named_scope("heads"):
            modality_logits = {name: getattr(self, f"head_{name}")(features[name]) for name in MODALITIES}

        added = self.temporal_fusion(features["rgb"], features["depth"], train=train, draws=draws)
        record.offer("temporal_fusion", added)  # b c
        features = {name: feature + added for name, feature in features.items()}
        logits, decoded = self.autoencoder(features["rgb"], features["depth"], train=train)
        modality_logit = {
            name: self.modality(self.modality_dropout(feature, draws))[:, 0] for name, feature in features.items()
        }
        return FusionOutput(
            logits=logits,
            modality_logits=modality_logits,
            features=features,
            decoded=decoded,
            modality_logit=modality_logit,
            class_feature=class_feature,
            spatial=spatial,
            intermediates=record.collected(),
        )
