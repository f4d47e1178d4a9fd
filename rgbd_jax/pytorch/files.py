"""Opens any checkpoint, whatever it is, and writes one of the kind that its name asks for."""

import dataclasses
from pathlib import Path

from rgbd_jax.checkpoint.model_card import render_model_card, write_model_card
from rgbd_jax.pytorch import converted, weights, workdir
from rgbd_jax.pytorch.card import converted_card
from rgbd_jax.pytorch.checkpoint_file import sniff
from rgbd_jax.pytorch.converted import MatchedNetwork
from rgbd_jax.pytorch.name_table import ConversionError
from rgbd_jax.pytorch.pytorch_file import read_pytorch, write_pytorch
from rgbd_jax.pytorch.safetensors_file import read_safetensors, write_safetensors
from rgbd_jax.pytorch.state_dict import in_reference_order
from rgbd_jax.pytorch.weights import TrainedWeights

PYTORCH_SUFFIXES = (".pth.tar", ".pth", ".pt")
SAFETENSORS_SUFFIX = ".safetensors"
CARD_METADATA = "model_card"  # the metadata field of a safetensors file that holds the card


def read_weights(path: str | Path, which: str = "best") -> TrainedWeights:
    """Returns the weights of a checkpoint; what it is, is read from its content.

    Args:
        path: a file of PyTorch (zip or legacy format) or safetensors, a converted checkpoint, or the workdir of a
            run.
        which: the "best" or the "latest" checkpoint of a workdir; of other kinds there is one alone.

    Raises:
        FileNotFoundError: there is nothing, or a folder that is neither a workdir nor a converted checkpoint.
        CheckpointFileError: the file is damaged, or holds something other than weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if converted.is_converted(path):
            return converted.load_converted(path)
        if workdir.is_workdir(path):
            return workdir.load_workdir(path, which)
        raise FileNotFoundError(f"{path} is neither the workdir of a run nor a converted checkpoint")
    if sniff(path) == "safetensors":
        return weights.from_safetensors(*read_safetensors(path), path)
    return weights.from_contents(read_pytorch(path), path)


def write_weights(path: str | Path, trained: TrainedWeights, network: MatchedNetwork, source: str) -> None:
    """Writes weights as the kind of checkpoint that the suffix of `path` asks for; nothing is left after an error.

    Their card lies in the folder of a converted checkpoint, and in the metadata of a safetensors file.

    Args:
        path: `*.pth.tar`, `*.pth` or `*.pt` for PyTorch, `*.safetensors`, and a name without suffix for a converted
            checkpoint (a folder, which must not exist).
        trained: the weights; tensors that are not of the network are left out.
        network: the network that they are of.
        source: what is noted as their origin.

    Raises:
        ConversionError: the suffix is of no kind, or stacked tensors have different types of numbers.
        FileExistsError: there is something at `path` already.
        OSError: it cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists():
        raise FileExistsError(f"{path} exists already: give another name, or remove it")
    tensors = {name: trained.tensors[name] for name in (*network.match.loaded, *network.match.counters)}
    momentum = {name: buffer for name, buffer in trained.momentum.items() if name in network.match.loaded}
    trained = dataclasses.replace(trained, tensors=in_reference_order(tensors), momentum=momentum)
    if path.name.endswith(PYTORCH_SUFFIXES):
        contents = weights.to_contents(trained)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pytorch(path, contents)
    elif path.name.endswith(SAFETENSORS_SUFFIX):
        path.parent.mkdir(parents=True, exist_ok=True)
        contents, metadata = weights.to_safetensors(trained)
        card = render_model_card(converted_card(trained, network, source))
        write_safetensors(path, contents, {**metadata, CARD_METADATA: card})
    elif path.suffix and not path.suffix[1:].isdigit():
        known = ", ".join((*PYTORCH_SUFFIXES, SAFETENSORS_SUFFIX))
        raise ConversionError(f"{path}: the suffix {path.suffix!r} is of no kind of checkpoint; use {known} or none")
    else:
        converted.save_converted(path, trained, network, source)
        write_model_card(path, converted_card(trained, network, source))
