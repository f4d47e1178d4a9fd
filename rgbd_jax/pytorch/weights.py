"""Trained weights, wherever they come from: a run of this package, a converted checkpoint, PyTorch or safetensors."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import safe_open

from rgbd_jax.checkpoint.checkpoints import accuracy_by_epoch, best_epoch, find, read_metadata
from rgbd_jax.checkpoint.model_card import ModelCardData
from rgbd_jax.checkpoint.workdir import CONFIG_FILE, read_class_names, read_config
from rgbd_jax.model import FAMILIES, Model, family_of
from rgbd_jax.models.name_table import COUNTER, ConversionError, DetectedNetwork, Match, parameter_names
from rgbd_jax.optim import learning_rate
from rgbd_jax.pytorch.torch_file import INCOMPLETE, LEGACY_START, read_torch

MOMENTUM_PREFIX = "momentum_buffer."  # of the momentum buffers in a safetensors file
RECORD = "rgbd_jax"  # the metadata field of a safetensors file that holds `TrainedWeights.record()`
OTHER_SGD = ("nesterov", "dampening", "maximize")  # variants of SGD that this package does not have
MAX_EXPANSION, FREE_BYTES = 8, 1 << 20  # all tensors together may be so many times the file, and so much larger
# Start of a file (lower case) -> what such a file is, and what to do.
OTHER_FILES = {
    rb"$": "empty: download it again and compare its size",
    rb"\s*<(!doctype html|html|\?xml)": "an HTML or XML page, not a checkpoint: hosts such as Google Drive send "
    "a warning page instead of a large file; open the link in a browser and download the file itself",
    rb"version https://git-lfs": "a Git LFS pointer, not the checkpoint itself: run `git lfs pull` at its origin",
    rb"\x1f\x8b|bzh|\xfd7zxz\x00|7z\xbc\xaf": "compressed: unpack it first (gunzip, bunzip2, unxz or 7z)",
    rb".{257}ustar": "a tar archive: unpack it and give the file within (PyTorch's *.pth.tar files are no tar archives "
    "in spite of their name; only versions before 0.2 wrote tar archives, which are not read here)",
    rb"\x80[\x00-\x05]": "a pickle that torch.save did not write; it was not opened, since a pickle can run commands",
    rb"": "neither a PyTorch nor a safetensors checkpoint, or damaged: if it should be one, download it again",
}


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """A network as a training left it; None and empty fields are not known."""

    source: str  # the path it was read from
    tensors: Mapping[str, np.ndarray]  # the state dict by PyTorch's names: parameters, running statistics, counters
    momentum: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # parameter -> buffer of SGD
    epoch: int | None = None  # epochs that are finished
    best_accuracy: float | None = None  # on the validation clips, as the training counted it
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings by PyTorch's names ("lr", ...)
    reference_layout: bool | None = None  # `config.fusion.reference_layout` of a fusion network
    left_out: tuple[str, ...] = ()  # what else the source holds, each with the reason why it is not taken over
    card: ModelCardData | None = None  # what a run of this package records for their model card

    @property
    def steps(self) -> int:
        """Training steps that the network has seen, 0 if it is not known."""
        return max((int(value) for name, value in self.tensors.items() if name.endswith(COUNTER)), default=0)

    @property
    def family(self) -> str | None:
        """The family of networks whose state dict has such names, None if there is none."""
        return next((name for name in FAMILIES if FAMILIES[name].name_table.family(self.tensors) == name), None)

    def detect(self, preferred: Mapping[str, Any] | None = None) -> DetectedNetwork:
        """Returns the network; of several with the same shapes that with the `preferred` fields of `config.model`.

        Raises:
            ConversionError: the tensors are of no known network, or contradict each other; names source and tensors.
        """
        if (family := self.family) is None:
            known, found = " or ".join(FAMILIES), _listed(self.tensors)
            raise ConversionError(f"{self.source}: not a network of the reference ({known}); found {found}")
        try:
            shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
            return FAMILIES[family].name_table.detect(shapes, preferred or {})
        except ConversionError as error:
            raise ConversionError(f"{self.source}: {error}") from error

    def match(self, model: Model) -> Match:
        """Returns how the tensors meet a model's network; a ConversionError lists what is missing or misshapen."""
        match = model.family.name_table.match(self.tensors, *model.shapes())
        if problems := match.problems():
            raise ConversionError(f"{self.source}: {problems}")
        return match

    def record(self) -> dict[str, Any]:
        """Returns what a file of tensors cannot hold, JSON-able."""
        return {name: getattr(self, name) for name in ("epoch", "best_accuracy", "optimizer", "reference_layout")}


def is_workdir(path: Path) -> bool:
    """Returns whether a path is the workdir of a run."""
    return (path / CONFIG_FILE).is_file()


def is_converted(path: Path) -> bool:
    """Returns whether a path is a converted checkpoint."""
    return (path / "network" / "metadata").is_file()


def read_weights(path: str | Path, which: str = "best") -> TrainedWeights:
    """Returns the weights of a checkpoint, whose kind is recognised by its content.

    It is a file of PyTorch or safetensors, a converted checkpoint, or the "best" or "latest" one of a run's workdir.

    Raises:
        FileNotFoundError: there is nothing, or a folder that is neither a workdir nor a converted checkpoint.
        ConversionError: the file is damaged, or holds something other than weights; names it.
    """
    path = Path(path).expanduser()
    if is_converted(path):
        return _from_converted(path)
    if is_workdir(path):
        return _from_workdir(path, which)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is neither the workdir of a run nor a converted checkpoint")
    try:
        return _from_file(path)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # what damaged bytes make Python's own readers raise is no closed list
        if isinstance(error, OSError) and error.filename:
            raise
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConversionError(f"{path}: cannot be read ({found}); {INCOMPLETE}") from error


def _from_file(path: Path) -> TrainedWeights:
    with path.open("rb") as file:
        start, size = file.read(512), path.stat().st_size
    if start.startswith(b"PK") or LEGACY_START.match(start):
        return _from_torch(path, read_torch(path))
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8:
        return _from_safetensors(path)
    found = next(what for pattern, what in OTHER_FILES.items() if re.match(pattern, start.lower(), re.DOTALL))
    raise ConversionError(f"the file is {found}; it begins with {start[:16]!r}")


def _from_torch(path: Path, contents: Any) -> TrainedWeights:
    """Reads {"model", "optimizer", "epoch", "bestacc"} or a state dict alone."""
    if not isinstance(contents, dict):
        raise ConversionError(f"holds a {type(contents).__name__}; expected a dict with a state dict")
    bare = contents and all(isinstance(value, np.ndarray) for value in contents.values())
    fields = {"model": contents} if bare else contents
    model = fields.get("model")
    if not isinstance(model, dict) or not model:
        raise ConversionError(f"no state dict under 'model'; found {_listed(fields) or 'nothing'}")
    if others := [name for name, value in model.items() if type(name) is not str or not isinstance(value, np.ndarray)]:
        raise ConversionError(f"its 'model' holds what is no tensor: {_listed(others)}")
    if sum(tensor.nbytes for tensor in model.values()) > MAX_EXPANSION * path.stat().st_size + FREE_BYTES:
        raise ConversionError(
            f"its tensors are more than {MAX_EXPANSION} times as large as the file: expanded tensors (stride 0) or "
            "views of one storage; save contiguous copies (tensor.contiguous()) instead"
        )
    tensors = _without_prefix(model)
    known = ("model", "optimizer", "epoch", "bestacc")
    left_out = [f"{str(name)[:80]}: not part of the network" for name in fields if name not in known]
    momentum: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {}
    if fields.get("optimizer") is not None:
        try:
            momentum, settings = _sgd_state(fields["optimizer"], parameter_names(tensors))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            reason = error if isinstance(error, ConversionError) else "not the state of an optimizer of PyTorch"
            left_out.append(f"optimizer: {reason}")
    record = {"epoch": fields.get("epoch"), "best_accuracy": fields.get("bestacc"), "optimizer": settings}
    weights = _weights(path, tensors, momentum, record, left_out)
    return dataclasses.replace(weights, reference_layout=True if weights.family == "fusion" else None)


def _sgd_state(saved: Any, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns momentum buffers and settings of SGD; a ConversionError explains why they are not taken over."""
    if len(saved["param_groups"]) != 1:
        raise ConversionError(f"{len(saved['param_groups'])} parameter groups; only the state of one is taken over")
    settings = {name: _scalar(value) for name, value in saved["param_groups"][0].items()}
    if "momentum" not in settings or any(settings.get(name) for name in OTHER_SGD):
        raise ConversionError(f"only the state of SGD without {', '.join(OTHER_SGD)} is taken over")
    numbers = settings["params"]
    if any(type(number) is not int for number in numbers):  # a file can choose tuples that take forever to hash
        raise ConversionError("its parameters have other names than numbers")
    if len(numbers) != len(names):
        raise ConversionError(f"of {len(numbers)} parameters, the model has {len(names)}: they are not of one training")
    buffers = {n: saved["state"].get(i, {}).get("momentum_buffer") for i, n in zip(numbers, names, strict=True)}
    # A buffer is None, or not there, where a parameter never had a gradient.
    momentum = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    return momentum, {name: value for name, value in settings.items() if isinstance(value, int | float | str | None)}


def _from_safetensors(path: Path) -> TrainedWeights:
    """Reads a file by whichever program it was written."""
    with safe_open(path, framework="np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        record = json.loads((file.metadata() or {}).get(RECORD, "{}"))
    buffers = [name for name in found if name.startswith(MOMENTUM_PREFIX)]
    momentum = {name.removeprefix(MOMENTUM_PREFIX): found.pop(name) for name in buffers}
    return _weights(path, _without_prefix(found), momentum, record, [])


def _weights(
    path: Path, tensors: Mapping[str, Any], momentum: Mapping[str, Any], record: dict[str, Any], left_out: list[str]
) -> TrainedWeights:
    """Returns the weights of a file; invalid parts of its momentum and record are dropped and listed in `left_out`."""
    misfits = []
    for name, buffer in momentum.items():
        found = getattr(buffer, "shape", type(buffer).__name__)
        expected = tensors[name].shape if name in tensors else "no such parameter"
        if found != expected:
            misfits.append(f"{name} {found}, expected {expected}")
    if misfits:
        shown = "; ".join(misfits[:8])
        left_out.append(f"optimizer: {len(misfits)} momentum buffers do not fit their parameters: {shown}")
        momentum, record["optimizer"] = {}, {}
    for name, kinds in {"epoch": int | None, "best_accuracy": int | float | None}.items():
        record[name] = value = _scalar(record.get(name))
        if not isinstance(value, kinds) or (value or 0) < 0:
            left_out.append(f"{name}: {reprlib.repr(value)}; expected a number of at least 0")
            record[name] = None
    return TrainedWeights(str(path), tensors, momentum, **record, left_out=tuple(left_out))


def _scalar(value: Any) -> Any:
    """Returns the number in place of a tensor of one number."""
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _without_prefix(model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {name.removeprefix("module."): value for name, value in model.items()}  # of torch.nn.DataParallel
    if len(tensors) < len(model):
        raise ConversionError("it names some tensors both with and without 'module.'")
    return tensors


def _listed(names: Any) -> str:
    return ", ".join(str(name)[:80] for name in list(names)[:8])


def _from_converted(path: Path) -> TrainedWeights:
    """Reads what `convert.write_weights` wrote."""
    items = ocp.args.Composite(weights=ocp.args.PyTreeRestore(), network=ocp.args.JsonRestore())
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(path.absolute(), args=items)
        tree, network = restored.weights, restored.network
        table = FAMILIES[network["family"]].name_table
        counters = {name: np.asarray(value, np.int64) for name, value in network["steps_seen"].items()}
        tensors = table.in_order(table.to_pytorch(tree["params"], tree["batch_stats"]) | counters)
        return TrainedWeights(str(path), tensors, tree["momentum"], **network["record"])
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ConversionError(f"{path}: a damaged converted checkpoint; convert its source again: {error}") from error


def _from_workdir(path: Path, which: str) -> TrainedWeights:
    """Reads the "best" or "latest" checkpoint of a run."""
    config, checkpoint = read_config(path), find(path, which, evaluated=True)
    run, folder = read_metadata(checkpoint), (checkpoint / "state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        state = checkpointer.restore(folder, restore_args=as_numpy)
    family = family_of(config.modality)
    table, epoch = family.name_table, run.history[-1]["epoch"]
    tensors = table.to_pytorch(state["params"], state["batch_stats"])
    variances = [name for name in tensors if name.endswith("running_var")]
    counter = np.asarray(state["step"], np.int64)
    tensors |= {name.removesuffix("running_var") + COUNTER: counter for name in variances}
    momentum, settings = {}, {}
    if config.optimizer.name == "sgd":
        parts = jax.tree.leaves(state["opt_state"], is_leaf=lambda part: isinstance(part, dict) and "trace" in part)
        momentum = table.to_pytorch(next(part["trace"] for part in parts if isinstance(part, dict)), {})
        settings = {
            "lr": learning_rate(config, epoch, accuracy_by_epoch(run.history)),
            "momentum": config.optimizer.momentum,
            "dampening": 0,
            "weight_decay": config.optimizer.weight_decay,
            "nesterov": False,
        }
    return TrainedWeights(
        str(path),
        table.in_order(tensors),
        momentum,
        epoch,
        best_epoch(run.history, config.checkpoint)[config.checkpoint.best_metric],
        settings,
        reference_layout=config.fusion.reference_layout if family.name == "fusion" else None,
        card=ModelCardData(run.config, run.history, run.provenance, read_class_names(path)),
    )
