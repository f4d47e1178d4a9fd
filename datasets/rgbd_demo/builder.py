"""TFDS builder of `rgbd_demo`; nothing is downloaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from rgbd_jax.data.source import ClipInfo, write_index

from .clips import SPLITS, make_pair
from .motions import CLASS_NAMES, HEIGHT, PAIRS, WIDTH

SEED = 0


class RgbdDemo(tfds.core.GeneratorBasedBuilder):
    """RGB-D clips of 12 hand motions, rendered from a seed (README.md of this folder).

    Classes take turns, so that a part of a split, such as "train[:20%]", has as many clips of each.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, clips_per_class: Mapping[str, int] | None = None, **kwargs: Any):
        self._clips_per_class = dict(clips_per_class or {"train": 50, "validation": 20})
        if set(self._clips_per_class) != set(SPLITS):
            raise ValueError(f"clips_per_class must be given for {SPLITS}, found {(*self._clips_per_class,)}")
        self._clips: dict[str, list[ClipInfo]] = {}  # what was generated
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        rgb = tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg")
        depth = tfds.features.Image(shape=(HEIGHT, WIDTH, 1), dtype=np.dtype("uint16"), encoding_format="png")
        features = {
            "name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
            "rgb": tfds.features.Sequence(rgb),
            "depth": tfds.features.Sequence(depth),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="RGB-D clips of 12 hand motions, rendered. Depth in millimetres, 0 where it is not measured.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(seed=SEED),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._clips_per_class}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        clips = self._clips[split] = []
        keys = [(index, pair) for index in range(self._clips_per_class[split]) for pair in range(len(PAIRS))]
        for index, pair in tqdm(keys, desc=f"{self.name} {split}", unit="pair", disable=None):
            for clip in make_pair(SEED, split, pair, index):
                yield len(clips), clip._asdict()
                clips.append(ClipInfo(clip.name, clip.label, {"rgb": len(clip.rgb), "depth": len(clip.depth)}))

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        for split, clips in self._clips.items():
            write_index(Path(self.data_dir), split, clips)
