"""Operations of the networks in the formulation that is fastest on each platform.

The networks take them from `operations(config)` and know no platform. The formulations agree within rounding, gradients
included; docs/experiments.md lists what was tried on each platform, with the compilers' estimates.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict

from rgbd_jax.models.ops import convolution, gpu, normalisation, pooling, tpu


@dataclasses.dataclass(frozen=True)
class Operations:
    """The operations for one platform, and the choices that the networks make by it."""

    convolve: Callable  # see `convolution.convolve`
    convolve_relu: Callable  # that in evaluation, with an offset for each channel and ReLU
    max_pool: Callable  # see `pooling`
    batch_norm_relu: Callable[..., normalisation.Normalised]  # see `normalisation.batch_norm_relu`
    # In training, one after the other: convolution and normalisation, and these and the pooling.
    convolve_batch_norm_relu: Callable[..., normalisation.Normalised]
    convolve_batch_norm_relu_max_pool: Callable[..., normalisation.NormalisedAndPooled]
    joined_convolutions: bool = False  # convolutions of the same input are one whose outputs are split
    pooled_again: bool = False  # what an inception block pools is computed again in the backward pass, not stored
    batched_stacks: bool = False  # the transformers of the branches are applied together, to sequences of one length
    unrolled_layers: bool = False  # transformer layers are compiled one by one, not as the body of a loop
    clips_end_to_end: bool = False  # the frames of all clips are one clip; with an axis more, TPUs copy most values
    small_tensors_together: bool = False  # the optimizer reads small tensors from one vector


def _one_after_the_other(batch_norm_relu: Callable, max_pool: Callable) -> Callable:
    def batch_norm_relu_max_pool(x, norm, window, stride):
        y, mean, variance = batch_norm_relu(x, norm)
        return normalisation.NormalisedAndPooled(y, mean, variance, max_pool(y, window, stride))

    return batch_norm_relu_max_pool


def _after_a_convolution(operation: Callable, convolve: Callable) -> Callable:
    def convolve_first(x, norm, kernel, spatial_stride, **pooling):
        return operation(checkpoint_name(convolve(x, kernel, spatial_stride), convolution.PRODUCT), norm, **pooling)

    return convolve_first


OPERATIONS = {
    "cpu": Operations(
        convolve=convolution.convolve_on_cpu,
        convolve_relu=convolution.with_relu(convolution.convolve_on_cpu),
        max_pool=pooling.max_pool_on_cpu,
        batch_norm_relu=normalisation.batch_norm_relu,
        convolve_batch_norm_relu=_after_a_convolution(normalisation.batch_norm_relu, convolution.convolve_on_cpu),
        convolve_batch_norm_relu_max_pool=_after_a_convolution(
            _one_after_the_other(normalisation.batch_norm_relu, pooling.max_pool_on_cpu), convolution.convolve_on_cpu
        ),
    ),
    "gpu": Operations(
        convolve=convolution.convolve,
        convolve_relu=convolution.convolve_relu_on_gpu,
        max_pool=pooling.max_pool_on_gpu,
        batch_norm_relu=gpu.batch_norm_relu,
        convolve_batch_norm_relu=_after_a_convolution(gpu.batch_norm_relu, convolution.convolve),
        convolve_batch_norm_relu_max_pool=_after_a_convolution(gpu.batch_norm_relu_max_pool, convolution.convolve),
        joined_convolutions=True,
        pooled_again=True,
        batched_stacks=True,
        unrolled_layers=True,
        small_tensors_together=True,
    ),
    "tpu": Operations(
        convolve=tpu.convolve,
        convolve_relu=convolution.with_relu(tpu.convolve),
        max_pool=tpu.max_pool,
        batch_norm_relu=tpu.batch_norm_relu,
        convolve_batch_norm_relu=tpu.convolve_batch_norm_relu,
        convolve_batch_norm_relu_max_pool=tpu.convolve_batch_norm_relu_max_pool,
        unrolled_layers=True,
        clips_end_to_end=True,
    ),
}


def operations(config: ConfigDict) -> Operations:
    """Returns the operations that `config.model.operations` names, those for JAX's default platform by default.

    Raises:
        ValueError: there are none of that name or for that platform.
    """
    name = config.model.operations
    platform = jax.default_backend() if name == "auto" else name
    if platform not in OPERATIONS:
        known = ", ".join(OPERATIONS)
        raise ValueError(f"config.model.operations={name!r}: no operations for {platform!r}, only for {known}")
    return OPERATIONS[platform]
