"""The command line: `python -m rgbd_jax.tools.export WORKDIR OUT` writes a trained network as one portable file.

OUT runs without this package, on batches of any size: a zip file of StableHLO, for jax and numpy, or, named *.onnx, a
file for ONNX Runtime. Frames go in as uint8; probabilities and logits come out. docs/export.md tells the rest.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from rgbd_jax import console

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = 1e-3  # larger differences are no rounding

log = logging.getLogger("rgbd_jax")


def main(argv: list[str]) -> None:
    """Exports one network; the last line on stdout is the result as one JSON object."""
    if len(argv) != 3:
        raise app.UsageError("expected two arguments: WORKDIR (or another checkpoint) and OUT, the file to write")
    console.log_to_stderr()
    console.keep_compiled_programs()
    try:
        result = export(Path(argv[1]).expanduser(), Path(argv[2]).expanduser())
    except (ValueError, OSError) as error:
        log.debug("where it happened:", exc_info=True)
        sys.exit(f"error: {error}")
    print(f"{result['classes']} classes, {result['bytes'] / 1e6:.1f} MB, written to {result['file']}")
    print(json.dumps(result))


def export(source: Path, target: Path) -> dict[str, Any]:
    """Writes what the flags say of `source` to `target`; returns file, format, bytes, seconds and so on.

    Raises:
        OSError: there is no such checkpoint, or the file exists or cannot be written.
        ValueError: a checkpoint or a flag cannot be used, or the file does not say what the network says.
    """
    from rgbd_jax.tools.exporting.target import (  # after the flags are read: --help should be fast
        check_absent,
        new_file,
    )

    check_absent(target)
    form = flags.FLAGS.format or ("onnx" if target.suffix == ".onnx" else "stablehlo")
    if (form == "onnx") != (target.suffix == ".onnx"):
        raise ValueError(f"--format={form} does not go with {target}: files of ONNX, and no others, are named *.onnx")
    if not flags.FLAGS.platforms or not set(flags.FLAGS.platforms) <= set(PLATFORMS):
        raise ValueError(f"--platforms={','.join(flags.FLAGS.platforms)}: expected some of {', '.join(PLATFORMS)}")
    if form == "onnx":
        from rgbd_jax.tools.exporting import onnx_file

        onnx_file.check_installed()
    import jax

    from rgbd_jax.inference.trained import load_trained
    from rgbd_jax.tools.exporting import stablehlo
    from rgbd_jax.tools.exporting.about import about
    from rgbd_jax.tools.exporting.function import difference

    trained = load_trained(source, flags.FLAGS.checkpoint, flags.FLAGS.config)
    log.info("exporting %s (%s, %d classes)", source, trained.config.modality, len(trained.class_names))
    start = time.monotonic()
    with new_file(target) as unfinished:
        if form == "onnx":
            trained = onnx_file.in_float32(trained)
            details: dict[str, Any] = {"opset": onnx_file.OPSET}
            told = about(trained, flags.FLAGS.checkpoint, form, details)
            onnx_file.write_onnx(unfinished, onnx_file.to_onnx(trained), told)
            checked, read = flags.FLAGS.check, onnx_file.read_onnx
        else:
            details = {"platforms": list(flags.FLAGS.platforms)}
            model = stablehlo.to_stablehlo(trained, flags.FLAGS.platforms)
            stablehlo.write_stablehlo(unfinished, model, about(trained, flags.FLAGS.checkpoint, form, details))
            here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
            checked, read = flags.FLAGS.check and here in flags.FLAGS.platforms, stablehlo.read_stablehlo
            if flags.FLAGS.check and not checked:
                log.warning("the file is not checked: this machine's %s is none of --platforms", here)
        seconds = time.monotonic() - start
        result = {
            "file": str(target), "format": form, **details, "classes": len(trained.class_names),
            "bytes": unfinished.stat().st_size, "seconds": round(seconds, 1),
        }  # fmt: skip
        if checked:
            result["largest_difference"] = difference(trained, read(unfinished))
            if not result["largest_difference"] <= TOLERANCE:
                raise ValueError(
                    f"the file differs from the network by {result['largest_difference']:.2g}, expected at most "
                    f"{TOLERANCE:g}; nothing is written. Other versions of the exporter's packages may do better"
                )
            log.info("checked against the network: largest difference %.2g", result["largest_difference"])
    return result


def _define_flags() -> None:
    """Defines the flags, whose names other command lines have too, for this one alone."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with the stream after a colon (:depth); a workdir has its own."
    )
    flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of a workdir is taken.")
    flags.DEFINE_enum("format", None, ["stablehlo", "onnx"], "Kind of file; by default onnx for OUT=*.onnx.")
    flags.DEFINE_list(
        "platforms", ["cpu", "cuda", "tpu"], "Kinds of device that StableHLO is for, of cpu, cuda, rocm and tpu."
    )
    flags.DEFINE_bool("check", True, "Ask the file about random clips and compare, before it gets its name.")


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=console.parse_flags)
