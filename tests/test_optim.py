"""Learning rates, temperature and clipping against recorded tables and independent computations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_jax import optim
from rgbd_jax.config import default_config
from rgbd_jax.model import unimodal_schedule

RECORDED = np.load(Path(__file__).parent / "parity" / "schedule.npz")


@pytest.mark.parametrize(
    ("table", "name", "epochs", "to_peak"),
    [
        ("unimodal_cosine", "reference_cosine", 100, False),
        ("fusion_cosine", "reference_cosine", 100, True),
        ("unimodal_cosine_isogd300", "reference_cosine", 300, False),
        ("unimodal_plateau", "plateau", 100, False),
    ],
)
def test_parity_learning_rate_table(table, name, epochs, to_peak):
    config = default_config()
    config.schedule.name = name
    config.schedule.reference_warm_up_to_peak = to_peak
    config.train.epochs = epochs
    accuracies = RECORDED["plateau_accuracies"]
    rates = [optim.learning_rate(config, epoch, accuracies[:epoch]) for epoch in range(epochs)]
    np.testing.assert_allclose(rates, RECORDED[table], rtol=1e-9, atol=0)


def test_clean_cosine_is_continuous_and_spans_the_training():
    config = default_config()
    moments = np.linspace(0, config.train.epochs, 2001)
    rates = np.array([optim.learning_rate(config, moment) for moment in moments])
    peak = moments[rates.argmax()]
    assert rates[0] == 0
    assert rates.max() == pytest.approx(config.schedule.learning_rate)
    assert peak == pytest.approx(config.schedule.warm_up_epochs, abs=0.05)
    assert rates[-1] == pytest.approx(config.schedule.minimum)
    assert np.abs(np.diff(rates)).max() < 2e-4


def test_errors_name_what_is_unknown():
    config = default_config()
    config.schedule.name = "plateau"
    with pytest.raises(ValueError, match="epoch 5 needs the validation accuracy of 5 epochs, found 2"):
        optim.learning_rate(config, 5, [0.1, 0.2])
    config.schedule.name = "linear"
    with pytest.raises(ValueError, match=r"config.schedule.name='linear'"):
        optim.learning_rate(config, 0)
    config.optimizer.name = "lion"
    with pytest.raises(ValueError, match=r"config.optimizer.name='lion'"):
        optim.make_optimizer(config)


def test_distillation_starts_with_the_last_warm_up_epoch_and_the_temperature_rises_and_stays():
    config = default_config()
    weights, temperatures = zip(*(unimodal_schedule(config, epoch) for epoch in range(60)), strict=True)
    assert weights == (0, 0, *58 * [1])
    expected = 0.04 + 0.03 * np.minimum(np.arange(60), 29) / 29
    np.testing.assert_allclose(temperatures, expected, rtol=1e-12)
    config.loss.sharpness = False
    assert unimodal_schedule(config, 0)[1] == 1.0


def test_sgd_decays_before_momentum_and_clips_before_both():
    config = default_config()
    optimizer = optim.make_optimizer(config)
    params = {"w": jnp.asarray([3.0, -4.0])}
    state = optimizer.init(params)
    gradient = np.array([60.0, 80.0])  # a norm of 100, which is clipped to 5
    velocity, value = np.zeros(2), np.array([3.0, -4.0])
    for _ in range(3):
        updates, state = optimizer.update({"w": gradient}, state, {"w": jnp.asarray(value)}, norm=100.0)
        velocity = 0.9 * velocity + (gradient * 5 / 100 + 3e-4 * value)
        np.testing.assert_allclose(updates["w"], -velocity, rtol=1e-6)
        value = value - 0.1 * velocity


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_initial_state_is_that_of_optax(name):
    config = default_config()
    config.optimizer.name = name
    optimizer = optim.make_optimizer(config)
    params = {"kernel": jnp.ones((2, 3)), "norm": {"scale": jnp.ones(3, jnp.bfloat16)}}
    expected, state = optimizer.init(params), optim.zero_state(optimizer, params)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_gain_below_pytorchs_threshold_is_no_improvement():
    config = default_config()
    config.schedule.update(name="plateau", warm_up_epochs=0, patience=0)
    rates = [optim.learning_rate(config, 2, (0.5, second)) for second in (0.50004, 0.50006)]
    assert rates == pytest.approx(
        [config.schedule.learning_rate * config.schedule.factor, config.schedule.learning_rate]
    )
