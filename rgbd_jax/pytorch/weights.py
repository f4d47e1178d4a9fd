"""Trained weights, wherever they come from: a run of this package, a converted checkpoint, PyTorch or safetensors."""

import dataclasses
import itertools
import json
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors import safe_open

from rgbd_jax.checkpoint.checkpoints import accuracy_by_epoch, best_epoch, find, read_metadata
from rgbd_jax.checkpoint.model_card import ModelCardData
from rgbd_jax.checkpoint.workdir import CONFIG_FILE, read_class_names, read_config, with_tuples
from rgbd_jax.model import FAMILIES, Model, family_of
from rgbd_jax.models.name_table import COUNTER, ConversionError, DetectedNetwork, Match, parameter_groups
from rgbd_jax.optim import learning_rate
from rgbd_jax.pytorch.torch_file import INCOMPLETE, LEGACY_START, read_torch
from rgbd_jax.regular_files import check_regular
from rgbd_jax.storage import absolute, as_path, is_remote

MOMENTUM_PREFIX = "momentum_buffer."  # of the momentum buffers in a safetensors file
RECORD = "rgbd_jax"  # the metadata field of a safetensors file that holds `TrainedWeights.record()`
OTHER_SGD = ("dampening", "maximize")  # variants of SGD that this package does not have
MAX_EXPANSION, FREE_BYTES = 8, 1 << 20  # all tensors together may be so many times the file, and so much larger
MAX_DEPTH = 32  # of lists and dicts in a record: Python's JSON reader and writer are recursive
LARGEST = 1e12  # number in a record: one of hundreds of digits is no float
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
    config: Mapping[str, Any] | None = None  # of the run that trained it, if it was one of this package
    class_names: tuple[str, ...] = ()  # by label
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
            if empty := [f"{name} {shape}" for name, shape in shapes.items() if 0 in shape]:
                raise ConversionError(f"not a whole network: tensors without a number: {_listed(empty)}")
            return FAMILIES[family].name_table.detect(shapes, preferred or {})
        except ConversionError as error:
            raise ConversionError(f"{self.source}: {error}") from error

    def not_finite(self, names: Collection[str]) -> str:
        """Returns what names those tensors, of these, that hold NaN or infinity; "" if there are none."""
        found = [name for name in names if not np.isfinite(self.tensors[name]).all()]
        shown = _listed(found) + ", ..." * (len(found) > 8)
        return f"{self.source}: NaN or infinity in {len(found)} of {len(names)} tensors: {shown}" if found else ""

    def match(self, model: Model) -> Match:
        """Returns how the tensors meet a model's network; a ConversionError lists what is missing or misshapen."""
        match = model.family.name_table.match(self.tensors, *model.shapes())
        if problems := match.problems():
            raise ConversionError(f"{self.source}: {problems}")
        return match

    def record(self) -> dict[str, Any]:
        """Returns what a file of tensors cannot hold, JSON-able."""
        return {name: getattr(self, name) for name in RECORDED}


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
    path = as_path(path)
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


def _check_files(folder: Path) -> None:
    """Refuses what a reader could wait for without end."""
    for each in () if is_remote(folder) else folder.rglob("*"):
        if each.exists() and not each.is_dir():
            check_regular(each, lambda file, problem: ConversionError(f"{file} {problem}"))


def _from_file(path: Path) -> TrainedWeights:
    if is_remote(path) and path.exists():
        raise ConversionError("a file of weights is read from disk alone: download it first (gcloud storage cp)")
    check_regular(path, lambda file, problem: ConversionError(problem))
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
            momentum, settings = _sgd_state(fields["optimizer"], tensors)
        except Exception as error:  # whatever this is, the weights can be used
            reason = error if isinstance(error, ConversionError) else "not the state of an optimizer of PyTorch"
            left_out.append(f"optimizer: {reason}")
    record = {"epoch": fields.get("epoch"), "best_accuracy": fields.get("bestacc"), "optimizer": settings}
    weights = _weights(path, tensors, momentum, record, left_out)
    return dataclasses.replace(weights, reference_layout=True if weights.family == "fusion" else None)


def _sgd_state(saved: Any, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns momentum buffers and settings of SGD; a ConversionError explains why they are not taken over."""
    groups = [{name: _scalar(value) for name, value in group.items()} for group in saved["param_groups"]]
    without_decay = len(groups) == 2 and groups[0].get("weight_decay") == 0
    if len(groups) != 1 and not without_decay:
        found = f"{len(groups)} parameter groups"
        raise ConversionError(f"{found}; expected one, or one without weight decay and one of all other parameters")
    settings = groups[-1]
    if "momentum" not in settings or any(settings.get(name) for name in OTHER_SGD):
        raise ConversionError(f"only the state of SGD without {', '.join(OTHER_SGD)} is taken over")
    numbers = [number for group in groups for number in group["params"]]
    named = parameter_groups(tensors, decay_vectors=not without_decay)
    names = [name for group in named for name in group]
    if any(type(number) is not int for number in numbers):  # a file can choose tuples that take forever to hash
        raise ConversionError("its parameters have other names than numbers")
    if [len(group["params"]) for group in groups] != [len(group) for group in named]:
        raise ConversionError(f"of {len(numbers)} parameters, the model has {len(names)}: they are not of one training")
    buffers = {n: saved["state"].get(i, {}).get("momentum_buffer") for i, n in zip(numbers, names, strict=True)}
    # A buffer is None, or not there, where a parameter never had a gradient.
    momentum = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    known = {name: value for name, value in settings.items() if isinstance(value, int | float | str | None)}
    return momentum, known | ({"decay_vectors": False} if without_decay else {})


def _from_safetensors(path: Path) -> TrainedWeights:
    with safe_open(path, framework="np", backend="pread") as file:  # not mapped: see `read_torch`
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        text = (file.metadata() or {}).get(RECORD, "{}")
    left_out = []
    try:
        record = _parsed(text)
    except ValueError as error:
        record, left_out = {}, [f"metadata {RECORD}: {error}"]
    buffers = [name for name in found if name.startswith(MOMENTUM_PREFIX)]
    momentum = {name.removeprefix(MOMENTUM_PREFIX): found.pop(name) for name in buffers}
    return _weights(path, _without_prefix(found), momentum, record, left_out)


def _parsed(text: str) -> dict[str, Any]:
    """Returns a record from JSON; a ValueError explains why it is none."""
    brackets = re.findall(r'"(?:\\.|[^"\\])*"|([\[{])|([\]}])', text)
    if max(itertools.accumulate(bool(left) - bool(right) for left, right in brackets), default=0) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    record = json.loads(text, object_hook=with_tuples)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; expected an object")
    return record


def _weights(
    path: Path, tensors: Mapping[str, Any], momentum: Mapping[str, Any], record: Mapping[str, Any], left_out: list[str]
) -> TrainedWeights:
    """Returns the weights of a file; invalid parts of its momentum and record are dropped and listed in `left_out`."""
    misfits = []
    for name, buffer in momentum.items():
        found = getattr(buffer, "shape", type(buffer).__name__)
        expected = tensors[name].shape if name in tensors else "no such parameter"
        if found != expected:
            misfits.append(f"{name} {found}, expected {expected}")
        elif buffer.dtype.kind != "f" and buffer.dtype != ml_dtypes.bfloat16:
            misfits.append(f"{name} has numbers of type {buffer.dtype}, expected floating-point ones")
        elif not np.isfinite(buffer).all():
            misfits.append(f"{name} has NaN or infinity")
    if misfits:
        shown = "; ".join(misfits[:8])
        left_out.append(f"optimizer: {len(misfits)} momentum buffers do not fit their parameters: {shown}")
        momentum, record = {}, {name: value for name, value in record.items() if name != "optimizer"}
    fields = {}
    for name, (expected, valid) in RECORDED.items():
        value = _scalar(record.get(name))
        if value is not None and valid(value):
            fields[name] = value
        elif value is not None:
            left_out.append(f"{name}: {reprlib.repr(value)}; expected {expected}")
    return TrainedWeights(str(path), tensors, momentum, **fields, left_out=tuple(left_out))


def _is_number(value: Any, kinds: Any = int | float) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < LARGEST  # neither is NaN


def _are_settings(value: Any) -> bool:
    kinds = str | bool | None
    return isinstance(value, dict) and all(isinstance(x, kinds) or _is_number(x) for x in value.values())


# Field of a record -> what is expected, whether a value is that.
RECORDED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "epoch": ("a whole number of at least 0", lambda value: _is_number(value, int) and value >= 0),
    "best_accuracy": ("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "optimizer": ("settings that are finite numbers or text", _are_settings),
    "reference_layout": ("true or false", lambda value: isinstance(value, bool)),
    "config": ("an object", lambda value: isinstance(value, dict)),
    "class_names": ("texts", lambda value: isinstance(value, tuple) and all(isinstance(x, str) for x in value)),
}


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
    _check_files(path)
    items = ocp.args.Composite(weights=ocp.args.PyTreeRestore(), network=ocp.args.JsonRestore())
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(absolute(path), args=items)
        tree, network = restored.weights, restored.network
        table = FAMILIES[network["family"]].name_table
        counters = {name: np.asarray(value, np.int64) for name, value in network["steps_seen"].items()}
        tensors = table.in_order(table.to_pytorch(tree["params"], tree["batch_stats"]) | counters)
        record = json.loads(json.dumps(network["record"]), object_hook=with_tuples)  # JSON has no tuples
        return _weights(path, tensors, tree["momentum"], record, [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
        raise ConversionError(f"{path}: a damaged converted checkpoint; convert its source again: {error}") from error


def _from_workdir(path: Path, which: str) -> TrainedWeights:
    """Reads the "best" or "latest" checkpoint of a run; the averaged weights if it has them."""
    config, checkpoint = read_config(path), find(path, which, evaluated=True)
    _check_files(checkpoint)
    run, folder = read_metadata(checkpoint), absolute(checkpoint / "state")
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        state = checkpointer.restore(folder, restore_args=as_numpy)
    family = family_of(config.network, config.modality)
    table, epoch = family.name_table, run.history[-1]["epoch"]
    averaged = bool(config.train.ema_decay)
    params, batch_stats = state["params"], state["batch_stats"]
    if averaged:
        params, batch_stats = state["ema_params"], state.get("ema_batch_stats") or batch_stats
    tensors = table.to_pytorch(params, batch_stats)
    variances = [name for name in tensors if name.endswith("running_var")]
    counter = np.asarray(state["step"], np.int64)
    tensors |= {name.removesuffix("running_var") + COUNTER: counter for name in variances}
    momentum, settings, left_out = {}, {}, list[str]()
    if averaged:
        left_out.append("optimizer state: of the weights before averaging (config.train.ema_decay)")
    elif config.optimizer.name == "sgd":
        parts = jax.tree.leaves(state["opt_state"], is_leaf=lambda part: isinstance(part, dict) and "trace" in part)
        momentum = table.to_pytorch(next(part["trace"] for part in parts if isinstance(part, dict)), {})
        settings = {
            "lr": learning_rate(config, epoch, accuracy_by_epoch(run.history)),
            "momentum": config.optimizer.momentum,
            "dampening": 0,
            "weight_decay": config.optimizer.weight_decay,
            "nesterov": bool(config.optimizer.arguments.nesterov),
        }
        if not config.optimizer.decay_vectors:
            settings["decay_vectors"] = False
    return TrainedWeights(
        str(path),
        table.in_order(tensors),
        momentum,
        epoch,
        best_epoch(run.history, config.checkpoint)[config.checkpoint.best_metric],
        settings,
        reference_layout=config.fusion.reference_layout if family.name == "fusion" else None,
        config=run.config,
        class_names=read_class_names(path),
        left_out=tuple(left_out),
        card=ModelCardData(run.config, run.history, run.provenance, read_class_names(path)),
    )
