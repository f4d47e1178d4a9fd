"""Prepares data sets by name: `python -m rgbd_jax data build rgbd_folder --raw_dir RAW --data_dir data`.

A build that was killed resumes when it is started again; an incomplete one leaves nothing that looks complete.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import pkgutil
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from rgbd_jax.data.source import copy_advice, prepared_directory
from rgbd_jax.ingest.builder import DEPTH_STORAGES, RawClipsBuilder
from rgbd_jax.ingest.shards import Runner, run_locally, run_on_beam
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.printable import printable
from rgbd_jax.storage import as_path, is_remote

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class PreparedInfo:
    """A prepared data set."""

    dataset: str
    directory: Path
    clips: Mapping[str, int]  # by split: those of its protocols, where it has several
    class_names: tuple[str, ...]
    modalities: tuple[str, ...]
    left_out: tuple[str, ...]  # what is wrong with the bad clips that were left out
    built: bool  # now; otherwise it was there

    def __str__(self) -> str:
        clips = ", ".join(f"{count} {split}" for split, count in self.clips.items())
        left_out = f", {len(self.left_out)} problems left out" if self.left_out else ""
        state = "built" if self.built else "was there already"
        modalities = " and ".join(self.modalities)
        contents = f"{clips} clips, {len(self.class_names)} classes, {modalities}{left_out}"
        return f"{self.dataset} {state}: {contents}, in {self.directory}"


def dataset_names() -> list[str]:
    """Returns the data sets that have a builder."""
    package = importlib.import_module("rgbd_jax.datasets")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def builder_class(dataset: str) -> type[tfds.core.DatasetBuilder]:
    """Returns the class in `rgbd_jax.datasets.DATASET.builder` that builds a data set; ValueError if there is none."""
    if dataset not in dataset_names():
        raise ValueError(f"unknown data set {dataset!r}; there are {', '.join(dataset_names())}")
    module = importlib.import_module(f"rgbd_jax.datasets.{dataset}.builder")
    return next(value for value in vars(module).values() if getattr(value, "name", None) == dataset)


def prepare(
    dataset: str,
    *,
    data_dir: str | Path,
    raw_dir: str | os.PathLike | None = None,
    skip_bad_clips: bool = False,
    depth_storage: str | None = None,
    runner: Runner = run_locally,
) -> PreparedInfo:
    """Builds a data set as `data_dir/DATASET/VERSION`, unless it is there already; resumes an earlier build.

    `raw_dir` is None or "" for a data set that is generated. With `skip_bad_clips`, bad clips are left out and listed
    in the log, instead of refused. `depth_storage` is "compact", the default, or "fast": larger, read several times as
    fast. `runner` reads clips and writes shards, by default on all cores of this machine.

    Raises:
        ValueError: there is no such data set; `raw_dir` is missing or superfluous; it or `depth_storage` is not that
            of what is prepared; or there is no depth to be stored for speed.
        FileNotFoundError: there are no raw clips.
        RawDataError: something is wrong with the raw clips.
        OSError: the prepared data cannot be written.
    """
    cls = builder_class(dataset)
    if issubclass(cls, RawClipsBuilder):
        if not raw_dir:
            raise ValueError(f"{dataset} is built from raw clips: raw_dir must name the folder that holds them")
    elif raw_dir or depth_storage:
        found = f"raw_dir, found {str(raw_dir)!r}" if raw_dir else f"depth_storage, found {depth_storage!r}"
        raise ValueError(f"{dataset} is generated: it takes no {found}")
    data_dir, raw = as_path(data_dir), Path(raw_dir).expanduser() if raw_dir else None
    if is_remote(data_dir):
        raise ValueError(f"--data_dir={data_dir}: a data set is built on disk; then {copy_advice(dataset, data_dir)}")
    directory = data_dir / dataset / str(cls.VERSION)
    built = not (directory / "dataset_info.json").exists()
    if built and raw:
        options = {"skip_bad_clips": skip_bad_clips, "depth_storage": depth_storage or DEPTH_STORAGES[0]}
        cls(data_dir=data_dir, raw_dir=raw, runner=runner, **options).download_and_prepare()
    elif built:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as no_downloads:
            builder = cls(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(download_dir=no_downloads, file_format="array_record")
    info = tfds.builder_from_directory(directory).info
    advice = "name another data_dir, or delete that folder to build it anew"
    if raw and info.metadata["raw_dir"] != str(raw.resolve()):
        raise ValueError(f"{directory} was built from {info.metadata['raw_dir']}, not from {raw.resolve()}: {advice}")
    stored_as = info.metadata.get("depth_storage", DEPTH_STORAGES[0])
    if depth_storage not in (None, stored_as):
        raise ValueError(f"{directory} was built with depth_storage={stored_as}, not {depth_storage}: {advice}")
    left_out = tuple(info.metadata.get("left_out", ()))
    if left_out and not built and not skip_bad_clips:
        log.warning("%s leaves out %d bad clips; delete it to build it anew", directory, len(left_out))
    stored = {split: info.splits[split].num_examples for split in info.splits}
    of_protocols = info.metadata.get("protocols", {}).items()
    clips = {name: sum(stored[part] for part in split["splits"]) for name, split in of_protocols} or stored
    modalities = tuple(modality for modality in MODALITIES if modality in info.features)
    return PreparedInfo(dataset, directory, clips, tuple(info.features["label"].names), modalities, left_out, built)


def prepare_for(config: ConfigDict) -> None:
    """Builds the data set of a config from its raw clips, if it names some; the demo, which is rendered, if missing.

    In object storage nothing is built.
    """
    data = config.data
    if is_remote(as_path(data.data_dir)):
        return
    rendered = data.dataset == "rgbd_demo" and prepared_directory(data.dataset, data.data_dir) is None
    if data.raw_dir or rendered:
        where = {"data_dir": data.data_dir, "raw_dir": data.raw_dir}
        info = prepare(data.dataset, **where, skip_bad_clips=data.skip_bad_clips)
        log.info("%s is prepared in %s", data.dataset, info.directory)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `data build`."""
    parser.add_argument("dataset", choices=dataset_names())
    parser.add_argument("--raw_dir", type=Path, help="where the raw clips lie (a generated data set has none)")
    parser.add_argument("--data_dir", default="data", help="for prepared data sets (%(default)s)")
    parser.add_argument("--skip_bad_clips", action="store_true", help="list bad clips and leave them out")
    storage = "depth in the shards, or uncompressed beside them: larger, loads several times as fast (default: compact)"
    parser.add_argument("--depth_storage", choices=DEPTH_STORAGES, help=storage)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="shards that are written at a time (default: one a core)")
    beam = "read raw clips with Apache Beam: '--runner=FlinkRunner --flink_master=HOST:PORT'"
    where.add_argument("--beam", metavar="OPTIONS", help=beam)


def run(args: argparse.Namespace) -> None:
    """Builds a data set and prints one line about it."""
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers={args.workers}: expected 1 or more")
    runner: Runner = functools.partial(run_locally, workers=args.workers)
    if args.beam is not None:
        runner = functools.partial(run_on_beam, options=shlex.split(args.beam))
    where = {"data_dir": args.data_dir, "raw_dir": args.raw_dir}
    options = {"skip_bad_clips": args.skip_bad_clips, "depth_storage": args.depth_storage, "runner": runner}
    info = prepare(args.dataset, **where, **options)
    print(printable(str(info)))
