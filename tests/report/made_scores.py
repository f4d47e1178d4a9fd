"""Synthetic scores like those of a data set of many classes: `python -m tests.report.made_scores WORKDIR`."""

import sys
from pathlib import Path

import numpy as np

from rgbd_jax.scores import Scores, scores_file


def made_scores(clips: int = 6000, classes: int = 249, *, seed: int = 0) -> Scores:
    """Returns scores of rare and frequent classes, confused within groups; `seed` does not change the labels."""
    of_data, rng = np.random.default_rng(7), np.random.default_rng(seed)
    frequency = of_data.dirichlet(np.full(classes, 3.0))
    labels = of_data.choice(classes, clips, p=frequency)
    centres = (
        of_data.normal(size=(classes, 12)) + 2.5 * of_data.normal(size=(classes // 6 + 1, 12))[np.arange(classes) // 6]
    )
    difficulty = of_data.uniform(0.5, 3.0, classes)
    heads = {}
    features = centres[labels] + difficulty[labels, None] * rng.normal(size=(clips, 12))
    for name, noise in (("small", 1.6), ("medium", 1.0), ("large", 1.2)):
        noisy = features + noise * rng.normal(size=features.shape)
        distance = ((noisy[:, None] - centres[None]) ** 2).sum(-1)  # n k
        heads[name] = (-0.35 * distance).astype(np.float32)
    heads = {"logits": np.maximum.reduce(list(heads.values())), **heads}
    names = tuple(f"gesture {label:03} of group {label // 6}" for label in range(classes))
    clip_names = tuple(f"clip_{number:05}" for number in range(clips))
    return Scores(clip_names, labels, heads, "rgb", "isogd", "validation", step=1000, class_names=names)


if __name__ == "__main__":
    made_scores().save(scores_file(Path(sys.argv[1]), "validation"))
