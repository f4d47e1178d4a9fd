#!/usr/bin/env python3
"""Runs an exported network on clips: an example to copy from that does not need rgbd_jax.

    python run_exported.py wave.zip frames/ [depth_frames/]    a folder of frames for each input (needs OpenCV)
    python run_exported.py wave.onnx clips.npy [depth.npy]     frames as the network sees them, uint8 (b) t h w 3

A .zip needs jax, flatbuffers and numpy, a .onnx onnxruntime and numpy.
"""

import argparse
import json
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path) -> tuple[dict, Callable[..., Any]]:
    """Returns the metadata of a network, and a function: uint8 b t h w 3 of each input -> probabilities, logits."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; it warns of constants that it removes
        session = onnxruntime.InferenceSession(path, options)
        about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
        names = [entry["name"] for entry in about["inputs"]]
        return about, lambda *clips: session.run(["probabilities", "logits"], dict(zip(names, clips, strict=True)))
    import jax
    from jax import export

    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("about.json"))
        network = export.deserialize(bytearray(file.read("model.jax_export")))
    return about, jax.jit(network.call)  # compiled once for every batch size


def read_frames(folder: Path, modality: str, preprocessing: dict) -> np.ndarray:
    """Returns the frames of one clip, 1 t h w 3, nearly as the package makes them, which resizes differently."""
    import cv2

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ValueError(f"{folder}: no .jpg or .png frames")
    edges = len(files) * np.arange(preprocessing["frames"]["count"] + 1) // preprocessing["frames"]["count"]
    numbers = (edges[:-1] + np.maximum(edges[:-1] + 1, edges[1:]) - 1) // 2
    return np.stack([_frame(cv2, files[number], modality, preprocessing) for number in numbers])[None]


def _frame(cv2: types.ModuleType, file: Path, modality: str, preprocessing: dict) -> np.ndarray:
    frame = cv2.imread(str(file), cv2.IMREAD_UNCHANGED if modality == "depth" else cv2.IMREAD_COLOR)
    if frame is None:
        raise ValueError(f"{file}: not a readable frame")
    frame = _coloured(cv2, frame, preprocessing["depth"]) if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    space, crop = preprocessing["space"], preprocessing["space"]["crop"]
    frame = _resized(cv2, frame, space["resize"]["width"], space["resize"]["height"])
    frame = frame[crop["top"] : crop["top"] + crop["size"], crop["left"] : crop["left"] + crop["size"]]
    return _resized(cv2, frame, space["size"], space["size"])


def _coloured(cv2: types.ModuleType, depth: np.ndarray, encoding: dict) -> np.ndarray:
    if encoding["person_crop"]:
        raise ValueError("this network expects depth cut around the person, which this example does not do")
    if encoding["encoding"] == "reference_wrapped":
        depth = np.negative(depth).astype(np.uint8)
    elif depth.dtype == np.uint16:
        near, far = encoding["range_mm"]
        scaled = np.clip(1 + 254 * (far - depth.astype(np.float64)) / (far - near), 1, 255)
        depth = np.where(depth == 0, 0, np.rint(scaled)).astype(np.uint8)
    return cv2.applyColorMap(depth, cv2.COLORMAP_JET) if encoding["colour_map"] == "jet" else cv2.merge([depth] * 3)


def _resized(cv2: types.ModuleType, frame: np.ndarray, width: int, height: int) -> np.ndarray:
    smaller = width < frame.shape[1] or height < frame.shape[0]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def read_input(path: Path, spec: dict, about: dict) -> np.ndarray:
    """Returns the clips of one input, uint8 b t h w 3; raises a ValueError if they do not fit it."""
    clips = read_frames(path, spec["name"], about["preprocessing"]) if path.is_dir() else np.load(path)
    clips = clips[None] if clips.ndim == 4 else clips
    if clips.dtype != np.uint8 or list(clips.shape[1:]) != spec["shape"][1:]:
        expected = ", ".join(map(str, spec["shape"]))
        raise ValueError(f"{path}: {clips.dtype} {clips.shape}; the input {spec['name']} takes uint8 ({expected})")
    return clips


def main() -> None:
    """Prints the five most probable classes of every clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="the exported network: .zip or .onnx")
    parser.add_argument("clips", type=Path, nargs="+", help="a folder of frames or a .npy file for each of its inputs")
    arguments = parser.parse_args()
    try:
        about, network = load(arguments.network)
        inputs, paths = about["inputs"], arguments.clips
        if len(paths) != len(inputs):
            names = " and ".join(spec["name"] for spec in inputs)
            raise ValueError(f"{arguments.network} takes {names}, in this order")
        clips = [read_input(path, spec, about) for path, spec in zip(paths, inputs, strict=True)]
        if len({len(of_input) for of_input in clips}) > 1:
            raise ValueError(f"{' and '.join(str(len(x)) for x in clips)} clips; expected as many for every input")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}")
    probabilities, _ = map(np.asarray, network(*clips))
    for number, of_clip in enumerate(probabilities):
        best = np.argsort(-of_clip, kind="stable")[:5]
        print(f"clip {number}:", ", ".join(f"{about['classes'][label]} {of_clip[label]:.1%}" for label in best))


if __name__ == "__main__":
    main()
