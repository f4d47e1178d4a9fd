"""The fusion network: an RGB and a depth network that exchange features twice and classify together."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.family import Intermediates, Output, ScheduleValues, Tree
from rgbd_jax.models.layers import BatchNormReLU, ClipRngs, Dropout, Linear, at_least_float32, dtypes_of, head_dtypes
from rgbd_jax.models.unimodal import ClassHead, Trunk, feature_count


class DenseUnit(nnx.Module):
    """Linear map without bias, BatchNorm with PyTorch's defaults, ReLU."""

    def __init__(self, inputs: int, outputs: int, config: ConfigDict):
        self.linear = Linear(inputs, outputs, dtypes_of(config), use_bias=False)
        self.norm = BatchNormReLU(outputs, config, epsilon=1e-5, momentum=0.1)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.norm(self.linear(x))


class CrossModalFusion(nnx.Module):
    """Maps the concatenated, normalised features of both modalities to a residual for each (the paper's CFCer).

    With `reference_layout` it reads (b, t, 2c) features as if their memory were (b, 2c, t), and the (b, c, t) result as
    if it were (b, t, c), as the reference does. That mixes frames and channels, always in the same way: weights trained
    with it need it.
    """

    def __init__(self, features: int, config: ConfigDict, *, reference_layout: bool = False):
        self.hidden = DenseUnit(2 * features, features, config)
        self.output = Linear(features, features, dtypes_of(config), use_bias=False)
        self.dropout = Dropout(config.fusion.cross_modal_dropout)
        self.reference_layout = reference_layout

    def __call__(
        self, rgb: Float[Array, "*batch c"], depth: Float[Array, "*batch c"], rngs: ClipRngs | None = None
    ) -> Float[Array, "*batch c"]:
        """Returns the residual that is added to the features of both modalities; `rngs` turns dropout on."""
        both = jnp.concatenate([rgb, depth], axis=-1)  # b t 2c
        wide = at_least_float32(both)
        norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
        both = (wide / jnp.maximum(norm, 1e-12)).astype(both.dtype)
        if self.reference_layout:
            both = rearrange(both.reshape(len(both), both.shape[2], both.shape[1]), "b c t -> b t c")
        residual = self.dropout(self.output(self.hidden(both)), rngs)
        if self.reference_layout:
            residual = rearrange(residual, "b t c -> b c t").reshape(rgb.shape)
        return residual


class Autoencoder(nnx.Module):
    """Autoencoder of both class features; the classifier reads its bottleneck."""

    def __init__(self, features: int, classes: int, config: ConfigDict):
        half = features // 2
        self.encoder_1 = DenseUnit(2 * features, 2 * features, config)
        self.encoder_2 = DenseUnit(2 * features, features, config)
        self.encoder_3 = DenseUnit(features, half, config)
        self.encoder_output = Linear(half, half, dtypes_of(config), use_bias=False)
        self.classifier = Linear(half, classes, head_dtypes(config), use_bias=False)
        self.decoder_1 = DenseUnit(half, half, config)
        self.decoder_2 = DenseUnit(half, features, config)

    def __call__(
        self, rgb: Float[Array, "b c"], depth: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b c"]]:
        both = jnp.concatenate([rgb, depth], axis=-1)  # b 2c
        code = self.encoder_output(self.encoder_3(self.encoder_2(self.encoder_1(both))))  # b c/2
        return self.classifier(code), self.decoder_2(self.decoder_1(code))


class FusionNetwork(nnx.Module):
    """Recognises the motion in clips of both modalities (the paper's cross-modal representation learning).

    The features of its output, with m for "rgb" and "depth": `feature_m`, the class feature after both fusions;
    `modality_logit_m`, the logit of "this feature is of the RGB network"; `decoded`, the reconstruction; `teacher_m`
    and `student_m` of the distillation (see `unimodal.UnimodalNetwork`).
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        features = feature_count(config)
        for name in MODALITIES:
            setattr(self, name, Trunk(config))
            setattr(self, f"head_{name}", ClassHead(config, num_classes))
        self.spatial_fusion = CrossModalFusion(features, config, reference_layout=config.fusion.reference_layout)
        self.temporal_fusion = CrossModalFusion(features, config)
        self.autoencoder = Autoencoder(features, num_classes, config)
        self.modality = Linear(features, 1, head_dtypes(config), use_bias=False)
        self.modality_dropout = Dropout(config.fusion.modality_dropout)

    def __call__(
        self, inputs: Tree, schedule: ScheduleValues, rngs: ClipRngs | None, intermediates: Intermediates
    ) -> Output:
        """Returns the fused logits and those of each modality; they are not divided by a temperature.

        Both modalities show the same moments. Intermediate values of a modality are named "rgb/..." and "depth/...".
        """
        del schedule
        trunks = {name: getattr(self, name) for name in MODALITIES}
        parts = {name: intermediates.of(name) for name in MODALITIES}
        frames = {name: trunk.spatial(inputs[name], parts[name]) for name, trunk in trunks.items()}  # b t c
        residual = intermediates.sow("spatial_fusion", self.spatial_fusion(frames["rgb"], frames["depth"], rngs))
        pooled, features = {}, {}
        for name, trunk in trunks.items():
            branches, student = trunk.temporal(frames[name] + residual, rngs, parts[name])
            stacked = jnp.stack(list(branches.values()))  # 3 b c
            pooled[name], features[f"teacher_{name}"] = jnp.max(stacked, axis=0), jnp.mean(stacked, axis=0)  # b c
            if student is not None:
                features[f"student_{name}"] = student
        with jax.named_scope("heads"):
            heads = {name: getattr(self, f"head_{name}")(pooled[name]) for name in MODALITIES}

        residual = intermediates.sow("temporal_fusion", self.temporal_fusion(pooled["rgb"], pooled["depth"], rngs))
        pooled = {name: feature + residual for name, feature in pooled.items()}  # b c
        logits, features["decoded"] = self.autoencoder(pooled["rgb"], pooled["depth"])
        for name, feature in pooled.items():
            features[f"feature_{name}"] = parts[name].sow("class_feature", feature)
            features[f"modality_logit_{name}"] = self.modality(self.modality_dropout(feature, rngs))[:, 0]  # b
        return Output({"logits": logits, **heads}, features, intermediates.collected())
