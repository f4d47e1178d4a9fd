"""UMDR's fusion of a trained RGB and a trained depth network (the paper's CFCer), in space and in time.

Both networks are frozen: they run as in evaluation, and no step changes their weights or running statistics.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.models.attention import MLP_FEATURES, attend, layer_keys, stacked
from rgbd_jax.models.family import Frozen, Intermediates, Output, ScheduleValues, Tree
from rgbd_jax.models.layers import ClipRngs, Dropout, LayerNorm, Linear, dtypes_of, head_dtypes, remat, scaled
from rgbd_jax.models.ops import operations
from rgbd_jax.models.umdr.network import UMDRNetwork
from rgbd_jax.models.unimodal import feature_count

KEPT_KEYS = 0.7  # fraction of the keys that a query keeps, whatever `config.model.knn_attention`

Pair = tuple[Float[Array, "*batch c"], Float[Array, "*batch c"]]  # of RGB and of depth


class Enhancement(nnx.Module):
    """Weights the channels of each modality by a gate that sees both."""

    def __init__(self, features: int, config: ConfigDict):
        dtypes = dtypes_of(config)
        self.norm = LayerNorm(2 * features, dtypes)
        for name in MODALITIES:
            setattr(self, f"{name}_hidden", Linear(2 * features, features, dtypes))
            setattr(self, f"{name}_gate", Linear(features, features, dtypes))

    def __call__(self, pair: Pair) -> Pair:
        both = self.norm(jnp.concatenate(pair, axis=-1))  # ... 2c
        rgb, depth = (
            x * jax.nn.sigmoid(getattr(self, f"{name}_gate")(jax.nn.relu(getattr(self, f"{name}_hidden")(both))))
            for name, x in zip(MODALITIES, pair, strict=True)
        )
        return rgb, depth


class CrossAttention(nnx.Module):
    """Attention in which the other modality's tokens are the keys, then an MLP.

    As in the reference, the values are the modality's own tokens.
    """

    def __init__(self, features: int, config: ConfigDict):
        dtypes, hidden = dtypes_of(config), scaled(MLP_FEATURES, config.model.width)
        self.query = Linear(features, features, dtypes, use_bias=False)
        self.key = Linear(features, features, dtypes, use_bias=False)
        self.value = Linear(features, features, dtypes, use_bias=False)
        self.attention_norm = LayerNorm(features, dtypes)
        self.mlp_norm = LayerNorm(features, dtypes)
        self.mlp_in = Linear(features, hidden, dtypes)
        self.mlp_out = Linear(hidden, features, dtypes)
        self.dropout = Dropout(config.model.dropout)
        self.heads = config.model.attention_heads
        if features % self.heads:
            raise ValueError(
                f"config.model.attention_heads={self.heads}: expected a divisor of the fusion's {features} features"
            )

    def __call__(
        self, own: Float[Array, "b n c"], other: Float[Array, "b n c"], rngs: ClipRngs | None
    ) -> Float[Array, "b n c"]:
        """Returns the modality's tokens after the layer; `rngs` turns dropout on."""
        query, key, value = (
            rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)
            for x in (self.query(own), self.key(other), self.value(own))
        )
        x = own + self.attention_norm(attend(query, key, value, KEPT_KEYS)[0])
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)  # b n hidden
        return x + self.dropout(self.mlp_out(self.dropout(hidden, rngs)), rngs)


class FusionBlock(nnx.Module):
    """Cross attention in both directions, in the spatial part after an enhancement."""

    def __init__(self, features: int, config: ConfigDict, *, enhanced: bool):
        self.enhancement = Enhancement(features, config) if enhanced else None
        self.rgb, self.depth = CrossAttention(features, config), CrossAttention(features, config)

    def __call__(self, pair: Pair, keys: Key[Array, "b"] | None) -> tuple[Pair, Pair]:
        """Returns both modalities' tokens after the block, and those that its attention sees."""
        rngs = None if keys is None else ClipRngs(keys)
        rgb, depth = seen = pair if self.enhancement is None else self.enhancement(pair)
        return (self.rgb(rgb, depth, rngs), self.depth(depth, rgb, rngs)), seen


class FusionBlocks(nnx.Module):
    """One normalisation of both modalities together, then blocks whose parameters are stacked."""

    def __init__(self, features: int, config: ConfigDict, blocks: int, *, enhanced: bool):
        self.norm = LayerNorm(2 * features, dtypes_of(config))
        self.blocks = stacked(FusionBlock(features, config, enhanced=enhanced), blocks)
        self.count, self.remat, self.ops = blocks, config.remat.transformer, operations(config)

    def __call__(self, pair: Pair, rngs: ClipRngs | None) -> tuple[Pair, Pair, Pair]:
        """Returns the tokens of both modalities, b n c, and of every block its tokens and what its attention sees."""
        graph, states = nnx.split(self.blocks)

        def step(pair: Pair, layer: tuple) -> tuple[Pair, tuple[Pair, Pair]]:
            pair, seen = remat(self.remat, FusionBlock.__call__)(nnx.merge(graph, layer[0]), pair, layer[1])
            return pair, (pair, seen)

        rgb, depth = jnp.split(self.norm(jnp.concatenate(pair, axis=-1)), 2, axis=-1)
        layers = states, layer_keys(rngs, self.count)
        pair, (every, seen) = jax.lax.scan(step, (rgb, depth), layers, unroll=self.ops.unrolled_layers)
        return pair, every, seen


class ClipTokens(nnx.Module):
    """The tokens of one modality for the temporal part: the feature of the clip, then those of its frames."""

    def __init__(self, features: int, config: ConfigDict):
        dtypes = dtypes_of(config)
        self.norm = LayerNorm(features, dtypes)
        self.position_embedding = nnx.Param(jnp.zeros((config.clip.frames + 1, features), dtypes.param))  # t+1 c

    def __call__(self, clip: Float[Array, "b c"], frames: Float[Array, "b t c"]) -> Float[Array, "b t+1 c"]:
        tokens = self.norm(jnp.concatenate([clip[:, None], frames], axis=1))
        return (tokens.astype(self.position_embedding.dtype) + self.position_embedding[...]).astype(tokens.dtype)


class UMDRFusionNetwork(nnx.Module):
    """Recognises the motion in clips of both modalities over two frozen networks, `rgb` and `depth`.

    `fusion_rgb` and `fusion_depth`, the heads that are trained, classify each modality's tokens after the fusion; the
    prediction is the mean of these and of the frozen networks' logits.
    """

    def __init__(self, config: ConfigDict, num_classes: int):
        features = feature_count(config)
        for name in MODALITIES:
            setattr(self, name, freeze(UMDRNetwork(config, num_classes)))
            setattr(self, f"tokens_{name}", ClipTokens(features, config))
            setattr(self, f"classifier_{name}", Linear(features, num_classes, head_dtypes(config)))
        self.spatial_fusion = FusionBlocks(features, config, config.fusion.spatial_blocks, enhanced=True)
        self.clip_enhancement = Enhancement(features, config)
        self.temporal_fusion = FusionBlocks(features, config, config.fusion.temporal_blocks, enhanced=False)
        self.temperatures = config.fusion.frozen_temperatures if config.loss.sharpness else (1.0, 1.0)

    def train(self, **attributes: bool) -> None:
        """Sets the fusion to training; the frozen networks stay in evaluation."""
        super().train(**attributes)
        for name in MODALITIES:
            getattr(self, name).eval(**attributes)

    def __call__(
        self, inputs: Tree, schedule: ScheduleValues, rngs: ClipRngs | None, intermediates: Intermediates
    ) -> Output:
        """Returns the logits of both frozen networks, of both classifiers of the fusion, and their mean.

        Both modalities show the same moments. Intermediate values of a modality are named "rgb/..." and "depth/...".
        """
        del schedule
        parts = {name: intermediates.of(name) for name in MODALITIES}
        rgb, depth = (
            getattr(self, name).encode(inputs[name], temperature, None, parts[name])
            for name, temperature in zip(MODALITIES, self.temperatures, strict=True)
        )

        def sow(name: str, pair: Pair) -> Pair:
            return parts["rgb"].sow(name, pair[0]), parts["depth"].sow(name, pair[1])

        with jax.named_scope("spatial_fusion"):
            frames, every, seen = self.spatial_fusion((rgb.frame_features, depth.frame_features), rngs)  # b t c
        sow("spatial_fusion_enhanced", seen)  # blocks b t c
        sow("spatial_fusion", every)  # blocks b t c
        clips = sow("enhanced_class_feature", self.clip_enhancement((rgb.class_feature, depth.class_feature)))  # b c
        rgb_tokens, depth_tokens = (
            getattr(self, f"tokens_{name}")(*each) for name, *each in zip(MODALITIES, clips, frames, strict=True)
        )  # b t+1 c
        with jax.named_scope("temporal_fusion"):
            tokens, every, _ = self.temporal_fusion((rgb_tokens, depth_tokens), rngs)
        sow("temporal_fusion", every)  # blocks b t+1 c
        fused = sow("fused_feature", (tokens[0][:, 0], tokens[1][:, 0]))  # b c
        with jax.named_scope("heads"):
            heads = {"rgb": rgb.heads["logits"], "depth": depth.heads["logits"]}
            for name, feature in zip(MODALITIES, fused, strict=True):
                heads[f"fusion_{name}"] = getattr(self, f"classifier_{name}")(feature)
        logits = jnp.mean(jnp.stack(list(heads.values())), axis=0)
        return Output({"logits": logits, **heads}, {}, intermediates.collected())


def freeze(network: UMDRNetwork) -> UMDRNetwork:
    """Returns the network with its parameters as `Frozen` variables."""
    for _, module in nnx.iter_modules(network):
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                setattr(module, name, Frozen(value[...]))
    return network
