"""The card of converted weights: what their run tells of them, or as much as their tensors do."""

import dataclasses
import math

import jax

from rgbd_jax.checkpoint.card_facts import Facts
from rgbd_jax.checkpoint.model_card import model_card
from rgbd_jax.pytorch.converted import MatchedNetwork
from rgbd_jax.pytorch.weights import TrainedWeights


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
            "modality": "fusion" if detected.fusion else None,
            "clip": {"frames": detected.frames},
            "model": detected.model,
            "fusion": {"reference_layout": weights.reference_layout},
        },
        epoch=weights.epoch,
        best_accuracy=weights.best_accuracy,
        optimizer=weights.optimizer,
    )
    return model_card(dataclasses.replace(facts, classes=classes, parameters=parameters, converted_from=source))
