"""Learning rates, temperature and clipping against recorded tables and independent computations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rgbd_jax import optim
from rgbd_jax.config import check_config, default_config, load_config
from rgbd_jax.config_rules import OPTIMIZERS
from rgbd_jax.model import umdr_schedule, unimodal_schedule

PARITY = Path(__file__).parent / "parity"
RECORDED, UMDR_RECORDED = np.load(PARITY / "schedule.npz"), np.load(PARITY / "umdr_schedule.npz")
MOMENTUM = {"sgd": {"momentum": 0.9}}


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


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("cosine", {}),
        ("step_10", {"name": "timm_step", "decay_epochs": 10}),
        ("step_30", {"name": "timm_step"}),
        ("multistep", {"name": "timm_multistep"}),
        ("cosine_60_warm0", {"warm_up_epochs": 0}),
    ],
)
def test_parity_learning_rate_table_of_umdr(table, fields):
    config = load_config("umdr_ntu_cs")
    config.schedule.update(fields)
    config.train.epochs = len(UMDR_RECORDED[table])
    rates = [optim.learning_rate(config, epoch + 0.5) for epoch in range(config.train.epochs)]
    np.testing.assert_allclose(rates, UMDR_RECORDED[table], rtol=1e-12, atol=0)


def test_parity_temperature_and_distillation_of_umdr():
    config = load_config("umdr_ntu_cs")
    weights, temperatures = zip(*(umdr_schedule(config, epoch + 0.5) for epoch in range(100)), strict=True)
    np.testing.assert_allclose(temperatures, UMDR_RECORDED["temperature"], rtol=1e-12, atol=0)
    np.testing.assert_array_equal(weights, config.loss.distillation * UMDR_RECORDED["distillation_on"])


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
    config.optimizer.name = "muon"
    with pytest.raises(ValueError, match=r"config.optimizer.name='muon': expected one of sgd, adam, .*lamb"):
        check_config(config)
    config.optimizer.name = "lamb"
    config.sharding.parameter_shards = 2
    with pytest.raises(ValueError, match=r"parameter_shards=2: expected 1 with config.optimizer.name='lamb'"):
        check_config(config)
    config.optimizer.update(name="lion", arguments={"b1": 0.8, "eps": 1e-3})
    with pytest.raises(ValueError, match=r"config.optimizer.arguments.eps=0.001: optax.lion has no .* one of b1, b2$"):
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_that_of_optax_scaled_by_the_rate_and_decays_weights(name):
    config = default_config()
    config.optimizer.update(name=name, weight_decay=0.01, gradient_clip=0.0)
    optimizer, function = optim.make_optimizer(config), getattr(optax, name)
    if name in ("sgd", "adam", "radam"):  # an L2 penalty
        expected = optax.chain(optax.add_decayed_weights(0.01), function(0.1, **MOMENTUM.get(name, {})))
    else:
        expected = function(0.1, weight_decay=0.01)
    params, others = ({"w": jnp.asarray([3.0, -4.0, 2.0]), "b": {"scale": jnp.ones((2, 2))}} for _ in range(2))
    state, other = optim.zero_state(optimizer, params), expected.init(others)

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    before = loss(params)
    for _ in range(4):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, norm=0.0)
        params = optax.apply_updates(params, optax.tree.scale(0.1, updates))
        updates, other = expected.update(jax.grad(loss)(others), other, others)
        others = optax.apply_updates(others, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, others)
    assert loss(params) < before


def test_a_gain_below_pytorchs_threshold_is_no_improvement():
    config = default_config()
    config.schedule.update(name="plateau", warm_up_epochs=0, patience=0)
    rates = [optim.learning_rate(config, 2, (0.5, second)) for second in (0.50004, 0.50006)]
    assert rates == pytest.approx(
        [config.schedule.learning_rate * config.schedule.factor, config.schedule.learning_rate]
    )
