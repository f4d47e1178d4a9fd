"""Converts checkpoints between PyTorch, safetensors and this package, both ways, without PyTorch.

Example:
    rgbd convert model_best.pth.tar converted
    rgbd eval --config configs/nvgesture.py --workdir converted
    rgbd convert runs/nvgesture trained.pth.tar
"""

import argparse
import dataclasses
import functools
import itertools
import json
import logging
import tempfile
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
from rgbd_jax.config import check_config, default_config
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.model import FAMILIES, Model, family_of
from rgbd_jax.models.name_table import COUNTER, ConversionError, parameter_groups
from rgbd_jax.pytorch.torch_file import write_torch
from rgbd_jax.pytorch.weights import MOMENTUM_PREFIX, RECORD, TrainedWeights, read_weights
from rgbd_jax.registry import resolve
from rgbd_jax.storage import disk_path

log = logging.getLogger("rgbd_jax")

TORCH_SUFFIXES, SAFETENSORS_SUFFIX = (".pth.tar", ".pth", ".pt"), ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = "A file is never run: anything but tensors and plain values in it is refused."
    add, which = parser.add_argument, "which one of a workdir (default: %(default)s)"
    source = "a *.pth.tar of the reference (zip or older format), safetensors, a converted checkpoint, or a workdir; "
    add("source", metavar="IN", help=f"{source}recognised by its content")
    target = "NAME.pth.tar (also .pth, .pt), NAME.safetensors, or a name without suffix: a converted checkpoint, for "
    target += "--config.init_from, --config.continue_from and --mode=eval"
    add("target", metavar="OUT", type=disk_path, help=target)
    add("--checkpoint", choices=("best", "latest"), default="best", help=which)
    for name in MODALITIES:
        frozen = f"the frozen {name} network, which the reference's files of UMDR's fusion do not hold"
        add(f"--{name}", metavar="FILE", type=Path, help=frozen)
    half = "matrices and kernels in float16, no momentum: for inference, a quarter of the size or less"
    add("--half", action="store_true", help=half)


def run(args: argparse.Namespace) -> None:
    """Converts one checkpoint and prints what became of its tensors."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is meant to do: read only
    trained = read_weights(resolve(args.source).path, args.checkpoint)
    for name in MODALITIES:
        if path := vars(args)[name]:
            trained = with_frozen(trained, name, read_weights(resolve(path).path, args.checkpoint))
    if args.half:
        trained = halved(trained)
    print(write_weights(args.target, trained))
    print(f"written to {args.target}")


def with_frozen(trained: TrainedWeights, part: str, network: TrainedWeights) -> TrainedWeights:
    """Returns the weights of a fusion network with those of one of its frozen parts, a network of one modality.

    Raises:
        ConversionError: the fusion network has no such part, has its weights already, or they are of another network.
    """
    family = FAMILIES.get(trained.family or "")
    if family is None or part not in family.frozen:
        raise ConversionError(f"{trained.source} has no frozen {part} network: leave out --{part}")
    expected, prefix = family_of(family.network, part).name, f"{family.name_table.words['modality'][part]}."
    if network.family != expected:
        raise ConversionError(f"--{part}={network.source}: a {network.family} network, expected a {expected} one")
    if any(name.startswith(prefix) for name in trained.tensors):
        raise ConversionError(f"{trained.source} has its frozen {part} network: leave out --{part}")
    tensors = {f"{prefix}{name}": tensor for name, tensor in network.tensors.items()}
    return dataclasses.replace(trained, tensors={**trained.tensors, **tensors})


def halved(trained: TrainedWeights) -> TrainedWeights:
    """Returns weights for inference alone: matrices and kernels in float16, without momentum.

    Raises:
        ConversionError: a weight is too large for float16; names it.
    """
    tensors = dict(trained.tensors)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and np.issubdtype(tensor.dtype, np.floating):
            with np.errstate(over="ignore"):
                tensors[name] = tensor.astype(np.float16)
            if np.isinf(tensors[name]).any() and not np.isinf(tensor).any():
                raise ConversionError(f"{trained.source}: {name} has values that float16 cannot hold: leave out --half")
    return dataclasses.replace(trained, tensors=tensors, momentum={}, optimizer={})


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
    family = FAMILIES[detected.family]
    config = default_config(family.modalities[0])
    config.network = family.network
    config.model.update(detected.model)
    config.fusion.update(detected.fusion)
    config.clip.frames = detected.frames or config.clip.frames
    try:
        check_config(config)
        model = Model(config, detected.model["num_classes"])
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{trained.source}: its tensors fit no known network: {error}") from error
    match, table = trained.match(model), model.family.name_table
    fitting = dataclasses.replace(
        trained,
        tensors=table.in_order({name: trained.tensors[name] for name in match.loaded}),
        momentum={name: buffer for name, buffer in trained.momentum.items() if name in match.loaded},
    )
    known: dict[str, Any] = {"epoch": trained.epoch, "best_accuracy": trained.best_accuracy}
    record = {
        "network": family.network,
        "modality": family.modalities[0] if len(family.modalities) == 1 else None,
        "clip": {"frames": detected.frames},
        "model": detected.model,
        "fusion": {"reference_layout": trained.reference_layout},
    }
    card = dataclasses.replace(
        trained.card or ModelCardData(record, optimizer=trained.optimizer, **known),
        num_classes=model.num_classes,
        num_parameters=model.num_parameters,
        converted_from=trained.source,
    )
    if not_finite := trained.not_finite(match.loaded):
        log.warning("%s; they are converted, but cannot be used for predictions", not_finite)
    if path.name.endswith(TORCH_SUFFIXES):
        # The reference keeps frozen networks in files of their own.
        frozen = tuple(f"{table.words['modality'][part]}." for part in family.frozen)
        kept = {name: tensor for name, tensor in fitting.tensors.items() if not name.startswith(frozen)}
        write_torch(path, _torch_contents(dataclasses.replace(fitting, tensors=kept)))
    elif path.name.endswith(SAFETENSORS_SUFFIX):
        _write_safetensors(path, fitting, card)
    elif path.suffix and not path.suffix[1:].isdigit():
        suffixes = ", ".join((*TORCH_SUFFIXES, SAFETENSORS_SUFFIX))
        raise ConversionError(f"{path}: the suffix {path.suffix!r} is of no kind of checkpoint; use {suffixes} or none")
    else:
        _write_converted(path, fitting, model, card)
    blocks = {f"fusion.{name}": value for name, value in detected.fusion.items()}
    settings = {**detected.model, **blocks, "clip.frames": detected.frames, **known}
    settings["momentum buffers"] = len(fitting.momentum)
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    for part in [name for name, value in detected.model.items() if value is False]:
        config.model[part] = True
        missing = table.match(trained.tensors, *Model(config, model.num_classes).shapes()).missing
        if not missing:  # the network of this family has no such part
            continue
        name, *more = missing
        others = f" and {len(more)} more" if more else ""
        shown += f"\nwithout {part}: there is no {name}{others}; the file is incomplete if it was trained with {part}"
    left_out = trained.left_out
    if family.frozen and path.name.endswith(TORCH_SUFFIXES):
        left_out += (
            "the frozen networks: the reference reads them from files of their own, so convert their runs too",
        )
    return f"{trained.source}: {detected.family} network, {shown}\n{table.report(match, left_out)}"


def _torch_contents(trained: TrainedWeights) -> dict[str, Any]:
    if trained.reference_layout is False:
        raise ConversionError(
            "a fusion network trained with config.fusion.reference_layout=False: the reference would compute something "
            "else with its weights, so they are not written for PyTorch; use .safetensors"
        )
    contents: dict[str, Any] = {"model": OrderedDict(trained.tensors)}
    if trained.optimizer:
        settings = dict(trained.optimizer)
        named = parameter_groups(trained.tensors, decay_vectors=bool(settings.pop("decay_vectors", True)))
        groups = [settings] if len(named) == 1 else [{**settings, "weight_decay": 0.0}, settings]
        numbers = itertools.count()
        contents["optimizer"] = {"state": {}, "param_groups": []}
        for group, names in zip(groups, named, strict=True):
            by_number = dict(zip(itertools.islice(numbers, len(names)), names, strict=True))
            contents["optimizer"]["param_groups"].append({**group, "params": list(by_number)})
            contents["optimizer"]["state"] |= {
                number: {"momentum_buffer": trained.momentum[name]}
                for number, name in by_number.items()
                if name in trained.momentum
            }
    known = {"epoch": trained.epoch, "bestacc": trained.best_accuracy}
    return contents | {name: value for name, value in known.items() if value is not None}


def _write_safetensors(path: Path, trained: TrainedWeights, card: ModelCardData) -> None:
    metadata = {"format": "pt", RECORD: json.dumps(trained.record()), "model_card": render_model_card(card)}
    arrays = {**trained.tensors, **{MOMENTUM_PREFIX + name: buffer for name, buffer in trained.momentum.items()}}
    with atomic_write(path) as unfinished:  # the library writes memory as it lies, whatever the strides
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, unfinished, metadata)


def _write_converted(path: Path, trained: TrainedWeights, model: Model, card: ModelCardData) -> None:
    """Writes a converted checkpoint, a folder of Orbax with its model card, that appears whole.

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
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as unfinished:
        folder = Path(unfinished).absolute() / path.name
        with ocp.Checkpointer(handler) as checkpointer:
            items = ocp.args.Composite(weights=ocp.args.PyTreeSave(tree), network=ocp.args.JsonSave(record))
            checkpointer.save(folder, args=items)
        write_model_card(folder, card)
        folder.rename(path)
