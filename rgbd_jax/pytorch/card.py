"""The card of converted weights: what their run tells of them, or as much as their tensors do."""

import dataclasses
import math

import jax

from rgbd_jax.checkpoint.model_card import ModelCardData
from rgbd_jax.pytorch.converted import MatchedNetwork
from rgbd_jax.pytorch.weights import TrainedWeights


def converted_card(weights: TrainedWeights, network: MatchedNetwork, source: str) -> ModelCardData:
    """Returns the data of the card of converted weights.

    Args:
        weights: what was converted.
        network: the network that they are of.
        source: the checkpoint that they are from.
    """
    detected = network.detected
    classes = detected.model["num_classes"]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes[0]))
    data = weights.card or ModelCardData(
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
    return dataclasses.replace(data, num_classes=classes, num_parameters=parameters, converted_from=source)
