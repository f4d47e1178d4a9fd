"""`python -m rgbd_jax.tools.serve --workdir runs/demo` shows a page on which the network can be tried."""

import importlib.util
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from absl import app, flags
from ml_collections import config_flags

from rgbd_jax import console

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The trained network: a run's folder, a converted checkpoint, or a file of PyTorch or safetensors."
)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of a run is taken.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, for what is no run's folder, with the stream after a colon (:depth)."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Where the page is shown; other machines see it at 0.0.0.0 alone.")
_PORT = flags.DEFINE_integer("port", 7860, "Port of the page.", lower_bound=1, upper_bound=65535)
_MEGABYTES = flags.DEFINE_integer("max_megabytes", 50, "Largest upload, all files of a clip together.", lower_bound=1)
_FRAMES = flags.DEFINE_integer("max_frames", 600, "Longest clip, in frames.", lower_bound=1)
_SIDE = flags.DEFINE_integer("max_side", 1920, "Largest width and height of a frame, in pixels.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 12, "Example clips from the evaluation split; 0: none.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Folder of the prepared data set of the examples; the config's if empty."
)
flags.mark_flag_as_required("workdir")

_SWEEP_SECONDS = 30.0

log = logging.getLogger("rgbd_jax")


class _StopError(BaseException):
    """The page was asked to stop."""


def main(argv: list[str]) -> None:
    """Loads the network and shows the page until it is asked to stop."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if importlib.util.find_spec("gradio") is None:
        sys.exit("error: the page needs Gradio (the extra 'demo'), which is not installed: run ./scripts/setup.sh")
    console.log_to_stderr()
    console.keep_compiled_programs()
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, _stop)
        _show()
    except _StopError:
        log.info("stopped; no file of the page is left")
    except (ValueError, OSError) as error:
        log.debug("where it happened:", exc_info=True)
        sys.exit(f"error: {error}")


def _stop(number: int, frame: FrameType | None) -> None:
    """Leaves whatever is being done; what cleans up after it is not to be disturbed by a second signal."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise _StopError


def _show() -> None:
    from rgbd_jax.inference.trained import load_trained
    from rgbd_jax.tools.page.limits import Limits

    limits = Limits(_MEGABYTES.value, _FRAMES.value, _SIDE.value)
    trained = load_trained(str(_WORKDIR.value), _CHECKPOINT.value, _CONFIG.value)
    with tempfile.TemporaryDirectory(prefix="rgbd_jax_page_", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        _prepare_libraries(folder)
        from rgbd_jax.tools.page.analysis import DemoModel
        from rgbd_jax.tools.page.examples import find_examples
        from rgbd_jax.tools.page.server import Page, shown

        examples = find_examples(trained, _EXAMPLES.value, _DATA_DIR.value)
        log.info("compiling the network")
        page = Page(DemoModel(trained), limits, examples, folder)
        with shown(page, limits, folder, _HOST.value, _PORT.value) as address:
            log.info("the page is ready at %s (up to %s a clip; Ctrl+C stops it)", address, limits)
            while True:
                time.sleep(_SWEEP_SECONDS)
                page.sweep()


def _prepare_libraries(folder: Path) -> None:
    """Tells Gradio, before it is imported, where its files go and to ask nobody, and FFmpeg to be quiet."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    tempfile.tempdir = str(folder)  # some of its files go there whatever GRADIO_TEMP_DIR says
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # quiet: the page tells what is wrong with a video
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("no_proxy", "NO_PROXY"):  # it asks its own server whether it runs
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost", _HOST.value)))


if __name__ == "__main__":
    app.run(main, flags_parser=console.parse_flags)
