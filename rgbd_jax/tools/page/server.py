"""The page itself: its fields, what happens when they are used, and the server that shows it."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from rgbd_jax.inference.clips import read_user_clip
from rgbd_jax.inference.overlay import FRAMES_A_SECOND
from rgbd_jax.tools.page import texts
from rgbd_jax.tools.page.analysis import DemoModel
from rgbd_jax.tools.page.body_limit import BodyLimit
from rgbd_jax.tools.page.examples import Examples
from rgbd_jax.tools.page.limits import Limits
from rgbd_jax.tools.page.uploads import UPLOAD_SUFFIXES, clip_of_uploads

RESULTS = "results"  # folder of the videos that are shown
_KEPT_RESULTS = 64  # pages that are open at a time
_ABANDONED = 600  # seconds after which an upload that nobody asked about is deleted
_LONGEST_CHANGE = 60  # seconds that a stop waits for the clip that is being looked at

log = logging.getLogger("rgbd_jax")


def _clip_field(modality: str) -> gr.File:
    """Returns a field for the files of a clip, which hands over their paths."""
    field = gr.File(
        label=f"{texts.MODALITY_NAMES[modality]} clip",
        file_count="multiple",
        file_types=list(UPLOAD_SUFFIXES),
        height=170,
        elem_id=f"clip-{modality}",
    )
    # Gradio's own way to hand them over leaves an empty file for each. It has made sure before that they were uploaded.
    field.preprocess = _paths  # type: ignore[method-assign, assignment]
    return field


def _paths(files: Any) -> list[Path]:
    return [] if files is None else [Path(each.path) for each in getattr(files, "root", [files])]


class Page:
    """What the page does.

    Args:
        analyst: asks the network.
        limits: the largest clip that is taken.
        examples: clips that the page offers, None without.
        folder: where all files lie while they are needed; nothing else is in it.
    """

    def __init__(self, analyst: DemoModel, limits: Limits, examples: Examples | None, folder: Path):
        self._analyst = analyst
        self._limits = limits
        self._examples = examples
        self._folder = folder
        self._shown: dict[str, Path] = {}  # session -> folder of its videos, the oldest first
        self._busy = threading.Lock()
        self._stopped = False
        (folder / RESULTS).mkdir()

    def blocks(self) -> gr.Blocks:
        """Returns the page for Gradio."""
        with gr.Blocks(title="rgbd_jax", analytics_enabled=False) as blocks:
            gr.HTML(texts.head(self._analyst.trained))
            with gr.Row(equal_height=False, elem_classes="rj-columns"):
                with gr.Column(scale=2, min_width=280):
                    fields = [_clip_field(modality) for modality in self._analyst.modalities]
                    ask = gr.Button("Recognise", variant="primary", elem_id="ask")
                    gr.HTML(texts.limits_note(self._limits, self._analyst.config.modality))
                    if self._examples:
                        names = list(self._examples.positions)
                        example = gr.Dropdown(names, value=names[0], label="Or an example", elem_id="example")
                        ask_example = gr.Button("Recognise example", elem_id="ask-example")
                with gr.Column(scale=5, min_width=280):
                    result = gr.HTML(texts.EMPTY, elem_id="result")
            settings: dict[str, Any] = {"scroll_to_output": True, "api_visibility": "private"}
            settings["concurrency_id"] = "network"  # one at a time
            ask.click(self.uploaded, fields, [result, *fields], **settings)
            if self._examples:
                ask_example.click(self.example, example, result, **settings)
            blocks.unload(self.left)
        return blocks

    def uploaded(self, request: gr.Request, *files: Sequence[Path]) -> tuple:
        """Returns what the page says of uploaded files, and empty fields: the files are gone then."""
        uploads = dict(zip(self._analyst.modalities, files, strict=True))
        try:
            with self._answering(), tempfile.TemporaryDirectory(dir=self._folder) as place:
                clip, speed = clip_of_uploads(uploads, Path(place), self._limits)
                try:
                    record = read_user_clip(clip)
                    analysis = self._analyst(record, speed, self._place(request))
                except ValueError as error:
                    raise ValueError(str(error).replace(f"{place}{os.sep}", "")) from error
                said = texts.result(analysis, self._analyst.trained)
        except (ValueError, OSError) as error:
            log.debug("where it happened:", exc_info=True)
            said = texts.message("This clip cannot be used", str(error))
            self.left(request)
        except Exception as error:
            said = _unexpected(error)
            self.left(request)
        finally:
            for file in {file for of_modality in files for file in of_modality}:
                with contextlib.suppress(OSError):
                    file.unlink()
                    file.parent.rmdir()
        return (said, *(None for _ in files))

    def example(self, name: str, request: gr.Request) -> str:
        """Returns what the page says of one of the examples."""
        assert self._examples is not None
        try:
            with self._answering():
                record = self._examples[name]
                analysis = self._analyst(record, FRAMES_A_SECOND, self._place(request))
                return texts.result(analysis, self._analyst.trained, record.label)
        except (ValueError, OSError) as error:
            return texts.message("This example cannot be used", str(error))
        except Exception as error:
            return _unexpected(error)

    def left(self, request: gr.Request) -> None:
        """Deletes the videos of a page, when it is closed or shows them no longer."""
        with self._busy:
            self._forget(str(request.session_hash))

    def sweep(self) -> None:
        """Deletes uploads that nobody asked about, or that broke off."""
        oldest = time.time() - _ABANDONED
        with self._busy:
            for entry in self._folder.iterdir():
                with contextlib.suppress(OSError):  # it may just have been deleted
                    if entry.name != RESULTS and entry.stat().st_mtime < oldest:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def stop(self) -> None:
        """Makes sure that no more files are written."""
        self._stopped = True
        if self._busy.acquire(timeout=_LONGEST_CHANGE):
            self._busy.release()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        with self._busy:
            if self._stopped:
                raise ValueError("the page was stopped")
            yield

    def _place(self, request: gr.Request) -> Path:
        """Returns an empty folder for the videos of a session; those it was shown before are deleted."""
        session = str(request.session_hash)
        self._forget(session)
        while len(self._shown) >= _KEPT_RESULTS:
            self._forget(next(iter(self._shown)))
        self._shown[session] = Path(tempfile.mkdtemp(dir=self._folder / RESULTS))
        return self._shown[session]

    def _forget(self, session: str) -> None:
        if session in self._shown:
            shutil.rmtree(self._shown.pop(session), ignore_errors=True)


def _unexpected(error: Exception) -> str:
    log.error("a clip could not be analysed: %s: %s", type(error).__name__, error)
    log.debug("where it happened:", exc_info=True)
    return texts.message("Something went wrong", f"This should not happen ({type(error).__name__}); try another clip.")


@contextlib.contextmanager
def shown(page: Page, limits: Limits, folder: Path, host: str, port: int) -> Iterator[str]:
    """Shows the page while the context lasts.

    Args:
        page: the page.
        limits: the largest clip that is taken.
        folder: where its files lie; GRADIO_TEMP_DIR.
        host: name or address of this machine on which the page is shown.
        port: the port.

    Yields:
        The address.

    Raises:
        OSError: the port cannot be used.
    """
    blocks = page.blocks()
    refuse = Middleware(BodyLimit, size=limits.size, told=f"{limits.megabytes} MB")
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    dark_enough = theme.set(  # for white letters
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    with socket.socket() as trial:  # Gradio would speak of a range of ports, and ask for a public link
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise OSError(
                f"--host={host} --port={port} cannot be used: {error.strerror or error}; give another one"
            ) from error
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            allowed_paths=[str(folder / RESULTS)],
            max_file_size=limits.size,
            app_kwargs={"middleware": [refuse]},
            theme=dark_enough,
            css=texts.STYLE,
            footer_links=[],
            share=False,
            pwa=False,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
        yield address
    finally:
        page.stop()
        blocks.close(verbose=False)
