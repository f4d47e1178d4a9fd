"""Prepares data sets by name: nothing is done twice, and a build that ends early leaves nothing that looks complete."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from rgbd_jax.data import protocols
from rgbd_jax.ingest.raw_clips import RawClipsBuilder
from rgbd_jax.ingest.runners import Runner
from rgbd_jax.modalities import MODALITIES

BUILDERS = {
    "isogd": "datasets.isogd.builder:IsoGd",
    "jester": "datasets.jester.builder:Jester",
    "ntu_rgbd": "datasets.ntu_rgbd.builder:NtuRgbd",
    "nvgesture": "datasets.nvgesture.builder:NvGesture",
    "rgbd_demo": "datasets.rgbd_demo.builder:RgbdDemo",
    "rgbd_folder": "datasets.rgbd_folder.builder:RgbdFolder",
    "thu_read": "datasets.thu_read.builder:ThuRead",
}
"""Data set to the class that builds it."""


@dataclasses.dataclass(frozen=True)
class PreparedInfo:
    """A prepared data set.

    Attributes:
        dataset: its name.
        directory: where its files lie.
        clips: split to its number of clips; the splits of its protocols, where it has several.
        class_names: the classes, by label.
        modalities: which of "rgb" and "depth" it has.
        left_out: the bad clips that were left out, and why.
        built: whether it was built now; otherwise it was there.
    """

    dataset: str
    directory: Path
    clips: Mapping[str, int]
    class_names: tuple[str, ...]
    modalities: tuple[str, ...]
    left_out: tuple[str, ...]
    built: bool


def prepare(
    dataset: str,
    *,
    data_dir: str | os.PathLike,
    raw_dir: str | os.PathLike | None = None,
    skip_bad_clips: bool = False,
    runner: Runner | None = None,
) -> PreparedInfo:
    """Builds a data set under `data_dir`, unless it is there already; goes on where an earlier build was ended.

    Raw clips are read in other processes, which import the module that called: call this under
    `if __name__ == "__main__":`.

    Args:
        dataset: one of `BUILDERS`.
        data_dir: the folder under which prepared data sets lie; this one goes to `data_dir/DATASET/VERSION`.
        raw_dir: where the raw clips lie; None (or "") for a data set that is generated.
        skip_bad_clips: leave bad clips out, and list them in the log, instead of refusing to build.
        runner: where raw clips are read and shards are written; None for all cores of this machine.

    Returns:
        What is prepared, and where.

    Raises:
        ValueError: there is no such data set, `raw_dir` is missing or not wanted, a runner is given for a data set that
            is generated, or what is prepared comes from another `raw_dir`.
        FileNotFoundError: there are no raw clips.
        RawDataError: something is wrong with the raw clips.
        OSError: the prepared data cannot be written.
        RuntimeError: the calling script has no `if __name__ == "__main__":` around this.
    """
    data_dir = Path(data_dir).expanduser()
    arguments: dict[str, Any] = {}
    builder_class = builder_class_of(dataset)
    if issubclass(builder_class, RawClipsBuilder):
        if not raw_dir:
            raise ValueError(f"{dataset} is built from raw clips: raw_dir must name the folder that holds them")
        arguments = {"raw_dir": Path(raw_dir).expanduser(), "skip_bad_clips": skip_bad_clips, "runner": runner}
    elif raw_dir:
        raise ValueError(f"{dataset} is generated: it takes no raw_dir, found {str(raw_dir)!r}")
    elif runner:
        raise ValueError(f"{dataset} is generated, in this process: it takes no workers and no Beam runner")
    directory = data_dir / dataset / str(builder_class.VERSION)
    built = not (directory / "dataset_info.json").exists()
    if built:
        _refuse_amid_import()
        _build(builder_class, data_dir, arguments)
    info = _describe(dataset, directory, built)
    if not built and raw_dir:
        _check_origin(directory, Path(raw_dir).expanduser(), info.left_out if not skip_bad_clips else ())
    return info


def _refuse_amid_import() -> None:
    """Refuses to build in a worker that is still importing the script that began the build: both would wait."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a process that helps to build a data set imports your script again, and came upon the build in it: put "
            'what the script does under `if __name__ == "__main__":`'
        )


def builder_class_of(dataset: str) -> type[tfds.core.DatasetBuilder]:
    """Returns the class that builds a data set.

    Raises:
        ValueError: there is no such data set.
    """
    if dataset not in BUILDERS:
        raise ValueError(f"unknown data set {dataset!r}; there are {', '.join(sorted(BUILDERS))}")
    module, name = BUILDERS[dataset].split(":")
    return getattr(importlib.import_module(module), name)


def _build(builder_class: type[tfds.core.DatasetBuilder], data_dir: Path, arguments: Mapping[str, Any]) -> None:
    tfds.disable_progress_bar()  # it counts neither clips nor what is left of them
    with (
        contextlib.redirect_stdout(sys.stderr),  # stdout is for results
        tempfile.TemporaryDirectory() as no_downloads,
    ):
        builder = builder_class(data_dir=data_dir, file_format="array_record", **arguments)
        builder.download_and_prepare(download_dir=no_downloads, file_format="array_record")


def _describe(dataset: str, directory: Path, built: bool) -> PreparedInfo:
    info = tfds.builder_from_directory(directory).info
    return PreparedInfo(
        dataset=dataset,
        directory=directory,
        clips=protocols.split_sizes(
            {split: info.splits[split].num_examples for split in info.splits}, protocols.from_metadata(info.metadata)
        ),
        class_names=tuple(info.features["label"].names),
        modalities=tuple(modality for modality in MODALITIES if modality in info.features),
        left_out=tuple((info.metadata or {}).get("left_out", ())),
        built=built,
    )


def _check_origin(directory: Path, raw_dir: Path, left_out: Sequence[str]) -> None:
    """Makes sure that what is prepared comes from `raw_dir`; warns of bad clips that were left out of it."""
    origin = tfds.builder_from_directory(directory).info.metadata["raw_dir"]
    if origin != str(raw_dir.resolve()):
        raise ValueError(
            f"{directory} was built from {origin}, not from {raw_dir.resolve()}: "
            "name another data_dir, or delete that folder to build it anew"
        )
    if left_out:
        logging.warning("%s leaves out %d bad clips; delete it to build it anew", directory, len(left_out))
