"""The fusion network: an RGB and a depth network that exchange features twice and classify together."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.family import Output, ScheduleValues, Tree
from rgbd_jax.models.intermediates import Intermediates
from rgbd_jax.models.layers import BatchNorm, Dropout, Linear, at_least_float32, dtypes_of, head_dtypes
from rgbd_jax.models.rngs import ClipRngs
from rgbd_jax.models.unimodal import ClassHead, Trunk, feature_count

EPSILON, MOMENTUM = 1e-5, 0.1  # of BatchNorm, PyTorch's defaults


class DenseUnit(nnx.Module):
    """Linear map without bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, config: ConfigDict):
        dtypes = dtypes_of(config)
        self.linear = Linear(inputs, outputs, dtypes, use_bias=False)
        sync = config.model.sync_batch_norm
        self.norm = BatchNorm(outputs, dtypes.param, epsilon=EPSILON, momentum=MOMENTUM, sync=sync)

    def __call__(self, x: Float[Array, "*batch i"], *, train: bool) -> Float[Array, "*batch o"]:
        """Applies the unit to the last axis; batch statistics are taken over all others."""
        return jax.nn.relu(self.norm(self.linear(x), train=train))


class CrossModalFusion(nnx.Module):
    """Maps the concatenated, normalised features of both modalities to a residual for each (the paper's CFCer)."""

    def __init__(self, features: int, config: ConfigDict):
        self.hidden = DenseUnit(2 * features, features, config)
        self.output = Linear(features, features, dtypes_of(config), use_bias=False)
        self.dropout = Dropout(config.fusion.cross_modal_dropout)

    def __call__(
        self,
        rgb: Float[Array, "*batch c"],
        depth: Float[Array, "*batch c"],
        *,
        reference_layout: bool = False,
        train: bool,
        rngs: ClipRngs | None = None,
    ) -> Float[Array, "*batch c"]:
        """Returns the residual that is added to the features of both modalities.

        Args:
            rgb: features of the RGB network.
            depth: features of the depth network.
            reference_layout: reads (b, t, 2c) features as if their memory were (b, 2c, t), and the (b, c, t) result as
                if it were (b, t, c), as the reference does. It mixes frames and channels, always in the same way:
                weights trained with it need it.
            train: whether BatchNorm uses the statistics of the batch.
            rngs: turns dropout on.
        """
        both = jnp.concatenate([rgb, depth], axis=-1)  # b t 2c
        wide = at_least_float32(both)
        norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
        both = (wide / jnp.maximum(norm, 1e-12)).astype(both.dtype)
        if reference_layout:
            frames, channels = both.shape[-2:]
            both = rearrange(both.reshape(-1, channels, frames), "b c t -> b t c")
        residual = self.dropout(self.output(self.hidden(both, train=train)), rngs)
        if reference_layout:
            residual = rearrange(residual, "b t c -> b c t").reshape(rgb.shape)
        return residual


class Autoencoder(nnx.Module):
    """Autoencoder of both class features; the classifier reads its bottleneck."""

    def __init__(self, features: int, classes: int, config: ConfigDict):
        half, dtypes = features // 2, dtypes_of(config)
        self.encoder_1 = DenseUnit(2 * features, 2 * features, config)
        self.encoder_2 = DenseUnit(2 * features, features, config)
        self.encoder_3 = DenseUnit(features, half, config)
        self.encoder_output = Linear(half, half, dtypes, use_bias=False)
        self.classifier = Linear(half, classes, head_dtypes(config), use_bias=False)
        self.decoder_1 = DenseUnit(half, half, config)
        self.decoder_2 = DenseUnit(half, features, config)

    def __call__(
        self, rgb: Float[Array, "b c"], depth: Float[Array, "b c"], *, train: bool
    ) -> tuple[Float[Array, "b k"], Float[Array, "b c"]]:
        """Returns the logits and the reconstructed feature."""
        x = jnp.concatenate([rgb, depth], axis=-1)  # b 2c
        for unit in (self.encoder_1, self.encoder_2, self.encoder_3):
            x = unit(x, train=train)
        code = self.encoder_output(x)  # b c/2
        decoded = self.decoder_2(self.decoder_1(code, train=train), train=train)  # b c
        return self.classifier(code), decoded


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
        self.spatial_fusion = CrossModalFusion(features, config)
        self.temporal_fusion = CrossModalFusion(features, config)
        self.autoencoder = Autoencoder(features, num_classes, config)
        self.modality = Linear(features, 1, head_dtypes(config), use_bias=False)
        self.modality_dropout = Dropout(config.fusion.modality_dropout)
        self.reference_layout = config.fusion.reference_layout

    def __call__(
        self,
        inputs: Tree,
        schedule: ScheduleValues,
        *,
        train: bool,
        rngs: ClipRngs | None = None,
        intermediates: Intermediates,
    ) -> Output:
        """Returns the fused logits and those of each modality; they are not divided by a temperature.

        Both modalities show the same moments. Intermediate values of a modality are named "rgb/..." and "depth/...".
        """
        del schedule
        parts = {name: intermediates.of(name) for name in MODALITIES}
        frame_features = {
            name: getattr(self, name).spatial(inputs[name], train=train, intermediates=parts[name])
            for name in MODALITIES
        }  # b t c
        residual = self.spatial_fusion(
            *frame_features.values(), reference_layout=self.reference_layout, train=train, rngs=rngs
        )
        intermediates.sow("spatial_fusion", residual)  # b t c
        heads, pooled, features = {}, {}, {}
        for name in MODALITIES:
            branches, student = getattr(self, name).temporal(
                frame_features[name] + residual, train=train, rngs=rngs, intermediates=parts[name]
            )
            stacked = jnp.stack(list(branches.values()))  # 3 b c
            pooled[name], features[f"teacher_{name}"] = jnp.max(stacked, axis=0), jnp.mean(stacked, axis=0)  # b c
            if student is not None:
                features[f"student_{name}"] = student
        with jax.named_scope("heads"):
            heads = {name: getattr(self, f"head_{name}")(pooled[name]) for name in MODALITIES}

        residual = self.temporal_fusion(*pooled.values(), train=train, rngs=rngs)
        intermediates.sow("temporal_fusion", residual)  # b c
        pooled = {name: feature + residual for name, feature in pooled.items()}
        logits, features["decoded"] = self.autoencoder(*pooled.values(), train=train)
        for name, feature in pooled.items():
            features[f"feature_{name}"] = feature
            features[f"modality_logit_{name}"] = self.modality(self.modality_dropout(feature, rngs))[:, 0]  # b
        return Output(heads={"logits": logits, **heads}, features=features, intermediates=intermediates.collected())
