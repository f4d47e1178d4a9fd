"""Trains a reference by its own training script, from the user's checkout."""

import json
import logging
import multiprocessing
import os
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from benchmarking import train_decoupled, train_umdr
from benchmarking.accuracies import Accuracies
from benchmarking.reference_loader import stand_in_for_loader
from benchmarking.reference_shims import Recorder


def train(checkout: Path, config: ConfigDict, classes: int, run: Path, seed: int) -> Accuracies:
    """Trains from the clips in `run/../../clips`, with logs and checkpoints in `run`; returns the accuracies by epoch.

    It changes the process: its modules, working directory and standard streams. Fusion starts from the best
    checkpoints of the same seed in `run/../../rgb` and `run/../../depth`.
    """
    for number in (1, 2):
        os.dup2(os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    multiprocessing.set_start_method("fork", force=True)  # of its loader's workers, as on Linux it has been
    run.mkdir(exist_ok=True)
    os.chdir(run.parents[1] / "clips")
    stand_in_for_loader()
    reader: Any = types.ModuleType("yaml")
    reader.load, reader.FullLoader = lambda file, Loader: json.load(file), None  # noqa: N803
    sys.modules["yaml"] = reader
    logging.root.handlers.clear()  # its own one is to be the first
    # Fusion reads checkpoints of its own training, which hold numbers of NumPy and its settings.
    setattr(torch, "load", partial(torch.load, weights_only=False))  # noqa: B010
    recorder, family = Recorder(), train_umdr if config.network == "umdr" else train_decoupled
    begin = family.prepare(checkout, config, classes, run, seed, recorder)
    started = time.monotonic()
    begin()
    seconds = time.monotonic() - started - recorder.seconds
    torch.distributed.destroy_process_group()
    return Accuracies(epochs=recorder.epochs, seconds=seconds)
