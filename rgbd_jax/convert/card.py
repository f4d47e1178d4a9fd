"""The card of converted weights: what their run tells of them, or as much as their tensors do."""

import dataclasses
import math

import jax

from rgbd_jax.convert.converted import MatchedNetwork
from rgbd_jax.convert.weights import TrainedWeights
from rgbd_jax.run.card_facts import Facts
from rgbd_jax.run.model_card import model_card


def converted_card(weights: TrainedWeights, network: MatchedNetwork, source: str) -> str:
    """Returns the card of converted weights (see `run.model_card`).

    Args:
        weights: what was converted.
        network: the network that they are of.
        source: the checkpoint that they are from.
    """
    detected = network.detected
    classes = detected.model["num_classes"]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes[0]))
    facts = weights.facts or Facts(
        classes,
        parameters,
        {
            "stream": "fusion" if detected.fusion else None,
            "clip": {"frames": detected.frames},
            "model": detected.model,
            "fusion": {"reference_layout": weights.reference_layout},
        },
        epoch=weights.epoch,
        best_accuracy=weights.best_accuracy,
        optimizer=weights.optimizer,
    )
    return model_card(dataclasses.replace(facts, classes=classes, parameters=parameters, converted_from=source))
