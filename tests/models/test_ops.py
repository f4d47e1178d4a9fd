"""The operations of every platform against XLA's own and against what autodiff makes of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.models.ops import OPERATIONS

AXES = ("NDHWC", "DHWIO", "NDHWC")
on_every_platform = pytest.mark.parametrize("ops", OPERATIONS.values(), ids=OPERATIONS)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@on_every_platform
@settings(max_examples=8, deadline=None)
@given(
    kernel=st.sampled_from([((1, 1, 1), 1), ((1, 3, 3), 1), ((1, 7, 7), 2), ((1, 3, 3), 2), ((3, 1, 1), 1)]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)
def test_convolve_equals_three_dimensional_convolution(ops, kernel, size):
    shape, stride = kernel
    x, weights = random(2, *size, 3), random(*shape, 3, 4, seed=1)

    def by_xla(x, weights):
        return jax.lax.conv_general_dilated(x, weights, (1, stride, stride), "SAME", dimension_numbers=AXES)

    result, pull = jax.vjp(lambda x, weights: ops.convolve(x, weights, stride), x, weights)
    expected, expected_pull = jax.vjp(by_xla, x, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    gradient = random(*expected.shape, seed=2)
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@on_every_platform
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 3), (3, 1, 1)], ids=str)
def test_convolve_relu_adds_an_offset(ops, shape):
    x, weights, offset = random(2, 3, 5, 4, 3), random(*shape, 3, 4, seed=1), random(4, seed=2)
    expected = jax.nn.relu(ops.convolve(x, weights) + offset)
    np.testing.assert_allclose(ops.convolve_relu(x, weights, offset), expected, rtol=1e-5, atol=1e-6)


@on_every_platform
def test_convolve_sums_the_gradient_of_bfloat16_in_float32(ops):
    x, weights = random(4, 8, 6, 6, 3), random(1, 3, 3, 3, 4, seed=1)
    gradient = random(4, 8, 6, 6, 4, seed=2)

    def kernel_gradient(dtype):
        _, pull = jax.vjp(lambda weights: ops.convolve(x.astype(dtype), weights), weights.astype(dtype))
        return np.asarray(pull(gradient.astype(dtype))[0], np.float32)

    expected = kernel_gradient(jnp.float32)
    # Sums of 1152 products: added up in bfloat16 they would be off by several per cent of the largest.
    np.testing.assert_allclose(kernel_gradient(jnp.bfloat16), expected, atol=0.006 * np.abs(expected).max(), rtol=0)


@on_every_platform
@settings(max_examples=6, deadline=None)
@given(
    window=st.sampled_from(
        [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 2, 2), (1, 2, 2)), ((3, 1, 1), (1, 1, 1))]
    ),
    size=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)
def test_max_pool_pads_zeros_and_equals_reduce_window(ops, window, size):
    shape, stride = window
    x = random(2, *size, 3) - 1  # mostly negative: zeros of the padding win at the border

    def expected(x):
        padded = jnp.pad(x, [(0, 0), *jax.lax.padtype_to_pads(size, shape, stride, "SAME"), (0, 0)])
        return jax.lax.reduce_window(padded, -jnp.inf, jax.lax.max, (1, *shape, 1), (1, *stride, 1), "VALID")

    np.testing.assert_array_equal(ops.max_pool(x, shape, stride), expected(x))
    weights = random(*expected(x).shape, seed=1)
    gradients = [
        jax.grad(lambda x, pool=pool: (weights * pool(x)).sum())(x)
        for pool in (lambda x: ops.max_pool(x, shape, stride), expected)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


@on_every_platform
def test_batch_normalisation_and_its_gradient(ops):
    x, scale, bias = random(4, 3, 5) * 3 + 1, random(5, seed=1), random(5, seed=2)

    def plain(x, scale, bias):
        mean = x.mean((0, 1))
        variance = ((x - mean) ** 2).mean((0, 1))
        return jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias), mean, variance

    def normalise(x, scale, bias):
        return ops.batch_norm_relu(x, scale, bias, jnp.zeros(5), 1e-3, ())

    for found, expected in zip(normalise(x, scale, bias), plain(x, scale, bias), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    weights = random(4, 3, 5, seed=3)
    gradients = [jax.grad(lambda *a, f=f: (weights * f(*a)[0]).sum(), (0, 1, 2)) for f in (normalise, plain)]
    for found, expected in zip(*(gradient(x, scale, bias) for gradient in gradients), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@on_every_platform
@settings(max_examples=6, deadline=None)
@given(
    kernel=st.sampled_from([((1, 1, 1), 1), ((1, 3, 3), 1), ((1, 7, 7), 2)]),
    window=st.sampled_from([(1, 3, 3), (1, 2, 2)]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)
def test_a_unit_before_a_pooling_equals_its_operations_one_after_the_other(ops, kernel, window, size):
    (shape, spatial_stride), stride = kernel, (1, 2, 2)
    scale, bias = random(5, seed=1), random(5, seed=2)  # some scales are negative
    x, weights = random(2, *size, 3) * 3 + 1, random(*shape, 3, 5, seed=4)

    def in_one(x, weights, scale, bias):
        arguments = (jnp.zeros(5), 1e-3, (), weights, spatial_stride)
        result = ops.convolve_batch_norm_relu_max_pool(x, scale, bias, *arguments, window=window, stride=stride)
        return result.pooled, result.values

    def one_after_the_other(x, weights, scale, bias):
        y = ops.convolve(x, weights, spatial_stride)
        values = ops.batch_norm_relu(y, scale, bias, jnp.zeros(5), 1e-3, ()).values
        return ops.max_pool(values, window, stride), values

    arguments = x, weights, scale, bias
    (found, pull), (expected, expected_pull) = (jax.vjp(f, *arguments) for f in (in_one, one_after_the_other))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    gradient = tuple(random(*each.shape, seed=3) for each in expected)
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max() + 1e-5)


@on_every_platform
def test_statistics_of_a_convolution_do_not_cancel_where_the_running_mean_is_far_off(ops):
    x, kernel = random(2, 5, 10, 10, 2) + 3000, jnp.eye(2).reshape(1, 1, 1, 2, 2)
    arguments = (x, jnp.ones(2), jnp.zeros(2), jnp.zeros(2), 1e-3, (), kernel, 1)
    pooled = ops.convolve_batch_norm_relu_max_pool(*arguments, window=(1, 3, 3), stride=(1, 2, 2))
    for _, mean, variance, *_ in (ops.convolve_batch_norm_relu(*arguments), pooled):
        exact = np.asarray(x, np.float64)
        np.testing.assert_allclose(mean, exact.mean((0, 1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(variance, exact.var((0, 1, 2, 3)), rtol=1e-3)
