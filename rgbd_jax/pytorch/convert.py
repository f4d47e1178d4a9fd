"""Converts checkpoints between PyTorch, safetensors and this package, both ways, without PyTorch.

Example:
    rgbd convert model_best.pth.tar converted
    rgbd eval --config configs/nvgesture.py --workdir converted
    rgbd convert runs/nvgesture trained.pth.tar
"""

import argparse
import dataclasses
import functools
import json
import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.model_card import ModelCardData, render_model_card, write_model_card
from rgbd_jax.config import default_config
from rgbd_jax.modalities import STREAMS
from rgbd_jax.model import Model, family_of
from rgbd_jax.models.name_table import COUNTER, ConversionError, parameter_names
from rgbd_jax.pytorch.torch_file import write_torch
from rgbd_jax.pytorch.weights import MOMENTUM_PREFIX, RECORD, TrainedWeights, read_weights

TORCH_SUFFIXES, SAFETENSORS_SUFFIX = (".pth.tar", ".pth", ".pt"), ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = "A file is never run: anything but tensors and plain values in it is refused."
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="a *.pth.tar of the reference (zip or older format), safetensors, a converted checkpoint, or a workdir; "
        "recognised by its content",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        type=Path,
        help="NAME.pth.tar (also .pth, .pt), NAME.safetensors, or a name without suffix: a converted checkpoint, for "
        "--config.init_from, --config.continue_from and --mode=eval",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "latest"),
        default="best",
        help="which one of a workdir (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Converts one checkpoint and prints what became of its tensors.

    Raises:
        ValueError, OSError: the source cannot be read or the target not be written; names it.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is meant to do: read only
    trained = read_weights(args.source, args.checkpoint)
    print(write_weights(args.target, trained))
    print(f"written to {args.target}")


def write_weights(path: str | Path, trained: TrainedWeights) -> str:
    """Writes weights as the kind of checkpoint that the suffix of `path` names; nothing is left after an error.

    Tensors that are not of the network are left out. A converted checkpoint and the metadata of a safetensors file get
    a model card. Returns a report: the network, and what became of the tensors.

    Raises:
        ConversionError: they do not fit a network, the suffix is unknown, or such a file cannot hold them.
        FileExistsError: there is something at `path` already.
        OSError: it cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists():
        raise FileExistsError(f"{path} exists already: give another name, or remove it")
    detected = trained.detect()
    modalities = [modality for modality in STREAMS if family_of(modality).name == detected.family]
    config = default_config(modalities[0])
    config.model.update(detected.model)
    config.clip.frames = detected.frames or config.clip.frames
    model = Model(config, detected.model["num_classes"])
    match, table = trained.match(model), model.family.name_table
    fitting = dataclasses.replace(
        trained,
        tensors=table.in_order({name: trained.tensors[name] for name in match.loaded}),
        momentum={name: buffer for name, buffer in trained.momentum.items() if name in match.loaded},
    )
    known: dict[str, Any] = {"epoch": trained.epoch, "best_accuracy": trained.best_accuracy}
    record = {
        "modality": modalities[0] if len(modalities) == 1 else None,
        "clip": {"frames": detected.frames},
        "model": detected.model,
        "fusion": {"reference_layout": trained.reference_layout},
    }
    card = dataclasses.replace(
        trained.card or ModelCardData(record, optimizer=trained.optimizer, **known),
        num_classes=model.num_classes,
        num_parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes()[0])),
        converted_from=trained.source,
    )
    if path.name.endswith(TORCH_SUFFIXES):
        write_torch(path, _torch_contents(fitting))
    elif path.name.endswith(SAFETENSORS_SUFFIX):
        _write_safetensors(path, fitting, card)
    elif path.suffix and not path.suffix[1:].isdigit():
        suffixes = ", ".join((*TORCH_SUFFIXES, SAFETENSORS_SUFFIX))
        raise ConversionError(f"{path}: the suffix {path.suffix!r} is of no kind of checkpoint; use {suffixes} or none")
    else:
        _write_converted(path, fitting, model)
        write_model_card(path, card)
    settings = {**detected.model, "clip.frames": detected.frames, **known, "momentum buffers": len(fitting.momentum)}
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"{trained.source}: {detected.family} network, {shown}\n{table.report(match, trained.left_out)}"


def _torch_contents(trained: TrainedWeights) -> dict[str, Any]:
    """Returns what the reference's training saves."""
    if trained.reference_layout is False:
        raise ConversionError(
            "a fusion network trained with config.fusion.reference_layout=False: the reference would compute something "
            "else with its weights, so they are not written for PyTorch; use .safetensors"
        )
    contents: dict[str, Any] = {"model": OrderedDict(trained.tensors)}
    if trained.optimizer:
        names = parameter_names(trained.tensors)
        buffers = {number: trained.momentum[name] for number, name in enumerate(names) if name in trained.momentum}
        contents["optimizer"] = {
            "state": {number: {"momentum_buffer": buffer} for number, buffer in buffers.items()},
            "param_groups": [{**trained.optimizer, "params": list(range(len(names)))}],
        }
    known = {"epoch": trained.epoch, "bestacc": trained.best_accuracy}
    return contents | {name: value for name, value in known.items() if value is not None}


def _write_safetensors(path: Path, trained: TrainedWeights, card: ModelCardData) -> None:
    metadata = {"format": "pt", RECORD: json.dumps(trained.record()), "model_card": render_model_card(card)}
    arrays = {**trained.tensors, **{MOMENTUM_PREFIX + name: buffer for name, buffer in trained.momentum.items()}}
    with atomic_write(path) as unfinished:  # the library writes memory as it lies, whatever the strides
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, unfinished, metadata)


def _write_converted(path: Path, trained: TrainedWeights, model: Model) -> None:
    """Writes a converted checkpoint, a folder of Orbax that appears whole.

    weights    "params" and "batch_stats", numbers of the type that holds all of the source's, and "momentum" by
               PyTorch's names
    network    JSON: family, `TrainedWeights.record()`, the steps that each BatchNorm has seen
    """
    counters = {name: int(tensor) for name, tensor in trained.tensors.items() if name.endswith(COUNTER)}
    dtypes = {tensor.dtype for name, tensor in trained.tensors.items() if name not in counters}
    dtype = functools.reduce(jnp.promote_types, dtypes)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model.shapes())
    params, batch_stats = model.family.name_table.from_pytorch(trained.tensors, *like)
    tree = {"params": params, "batch_stats": batch_stats, "momentum": dict(trained.momentum)}
    record = {"family": model.family.name, "steps_seen": counters, "record": trained.record()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Weights hardly shrink when compressed.
    weights = ocp.PyTreeCheckpointHandler(use_compression=False)
    handler = ocp.CompositeCheckpointHandler(weights=weights, network=ocp.JsonCheckpointHandler())
    with ocp.Checkpointer(handler) as checkpointer:
        items = ocp.args.Composite(weights=ocp.args.PyTreeSave(tree), network=ocp.args.JsonSave(record))
        checkpointer.save(path.absolute(), args=items)
