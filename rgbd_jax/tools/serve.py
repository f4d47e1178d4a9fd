"""Serve a page to try a trained model.

rgbd serve
rgbd serve --weights runs/demo
"""

import argparse
import importlib.util
import logging
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rgbd_jax.tools.arguments import add_trained_model, load_trained_model, positive

if TYPE_CHECKING:
    from rgbd_jax.inference.trained import TrainedModel

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 60  # seconds that a stop waits for the clip that is being explained

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    add_trained_model(parser, default="demo-fusion")
    add, clip = parser.add_argument, "of a clip (default: %(default)s)"
    add("--host", default="127.0.0.1", help="address; 0.0.0.0 serves other machines too, without a password")
    names = "further name of this host, such as that of a proxy, under which the page may be opened; may be repeated"
    add("--allow_host", action="append", default=[], metavar="NAME", help=names)
    add("--port", type=positive, default=7860, help="port (default: 7860)")
    add("--max_megabytes", type=positive, default=50, help="of an upload, all files together (default: 50)")
    add("--max_frames", type=positive, default=600, help=f"frames {clip}")
    add("--max_side", type=positive, default=1920, help=f"width and height, pixels, {clip}")
    add("--examples", type=int, default=12, help="example clips to offer (default: 12)")
    data_dir = "prepared data sets of the examples (default: the config's; rendered clips for networks of the demo)"
    add("--data_dir", default="", help=data_dir)


def run(args: argparse.Namespace) -> None:
    """Serves the page until the process is interrupted or terminated; leaves no file."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio (the extra 'demo'), which is not installed: run ./scripts/setup.sh")
    try:
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler)
        trained = load_trained_model(args)
        with tempfile.TemporaryDirectory(prefix="rgbd_jax_page_", ignore_cleanup_errors=True) as name:
            _serve(trained, Path(name).resolve(), args)
    except KeyboardInterrupt:
        log.info("stopped; all files of the page are deleted")


def _serve(trained: "TrainedModel", folder: Path, args: argparse.Namespace) -> None:
    from rgbd_jax.tools.page.uploads import Limits

    # Before Gradio is imported: some of its files ignore GRADIO_TEMP_DIR; and it requests its own page.
    tempfile.tempdir = str(folder)
    proxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{proxied},127.0.0.1,localhost,{args.host}".lstrip(",")
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    from rgbd_jax.tools.page.app import DemoPage, find_examples

    examples = {}
    try:
        examples = find_examples(trained, args.examples, args.data_dir) if args.examples > 0 else {}
    except (ValueError, OSError) as error:
        log.info("the page has no example clips: %s (--data_dir)", error)
    log.info("compiling the model")
    page = DemoPage(trained, Limits(args.max_megabytes, args.max_frames, args.max_side), examples, folder)
    try:
        log.info("the page is ready at %s (Ctrl+C stops it)", page.launch(args.host, args.port, args.allow_host))
        threading.Event().wait()
    finally:
        for each in SIGNALS:  # a second one must not disturb the cleaning up
            signal.signal(each, signal.SIG_IGN)
        page.close(PATIENCE)
