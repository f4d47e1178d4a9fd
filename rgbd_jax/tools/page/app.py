"""The page as a Gradio app: the prediction for one clip at a time, with videos and pictures of the evidence for it."""

import html
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord, open_split
from rgbd_jax.inference import drawing
from rgbd_jax.inference.clips import read_user_clip
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.inference.video import DEFAULT_FRAME_RATE, frame_rate, write_video
from rgbd_jax.metrics import softmax
from rgbd_jax.tools.page.uploads import EXPECTED, SUFFIXES, Limits, clip_of_uploads

TITLES = {"rgb": "RGB", "depth": "Depth"}
PROGRESS = gr.Progress()
DELETE_CACHE = (30, 600)  # seconds: how often, and of what age, uploads and results are deleted
TILE, GAP, GREY = 112, 4, 255  # of a film strip: pixels of a frame and between frames, the background
MAX_SIDE = 480  # pixels of a video's longer side
PICTURES = "frames, evidence, motion"
OVERHEAD = 1_000_000  # bytes of a request beside its files


class BodyLimit:
    """Middleware that answers 413 to a request of more than `size` bytes, or that does not announce its length.

    Gradio limits each file, not all of them. Servers read no more of a request than it announces.
    """

    def __init__(self, app: ASGIApp, size: int):
        self._app, self._size = app, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        known = b"transfer-encoding" not in headers and length.isdigit()
        if scope["type"] != "http" or (known and int(length) <= self._size + OVERHEAD):
            return await self._app(scope, receive, send)
        # Browsers read no answer before they have sent the whole body; it is dropped as it comes.
        while known and (await receive()).get("more_body"):
            pass
        text = f"The upload is too large: up to {self._size >> 20} MB are accepted, all files together."
        await PlainTextResponse(text, status_code=413)(scope, receive, send)


def find_examples(trained: TrainedModel, count: int, data_dir: str) -> dict[str, ClipRecord]:
    """Returns title -> clip of the evaluation split, up to `count` of different classes.

    Raises:
        ValueError: the data set in `data_dir` (empty: the config's) is damaged or lacks a modality.
        FileNotFoundError: it is not prepared.
    """
    data = trained.config.data
    split = open_split(data.dataset, data_dir or data.data_dir, data.eval_split)
    if not set(trained.model.modalities) <= set(split.modalities):
        raise ValueError(f"{split.directory} lacks {' or '.join(trained.model.modalities)} clips")
    examples: dict[int, ClipRecord] = {}
    for position in np.unique(np.linspace(0, len(split) - 1, 4 * count).round().astype(int)).tolist():
        examples.setdefault(split[position].label, split[position])
    chosen = sorted(examples.items())[:count]
    return {f"{split.class_names[label]}: {clip.name}": clip for label, clip in chosen}


class DemoPage:
    """The page for one model, compiled when this is made, with example clips by title.

    All of its files lie in `folder`, GRADIO_TEMP_DIR.
    """

    def __init__(self, trained: TrainedModel, limits: Limits, examples: Mapping[str, ClipRecord], folder: Path):
        self._busy = threading.Lock()  # held while files are written
        self._trained, self._limits, self._examples, self._folder = trained, limits, examples, folder
        self._config = trained.config.copy_and_resolve_references()
        self._config.eval.clips = self._config.eval.crops = 1  # one view, which the pictures show
        self._predictor = Predictor(trained, batch_size=1, explained=True)
        self._predictor.warm_up()
        self._blocks = self._layout()

    def launch(self, host: str, port: int) -> str:
        """Serves the page in threads of its own and returns its address.

        Raises:
            OSError: the address cannot be used.
        """
        theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            _, address, _ = self._blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=self._limits.size,
                app_kwargs={"middleware": [Middleware(BodyLimit, size=self._limits.size)]},
                theme=theme.set(button_primary_background_fill="*primary_700"),
                footer_links=[],
                share=False,
                ssr_mode=False,
                run_history=False,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            raise OSError(f"--host {host} --port {port} cannot be used: {error}; give another one") from error
        return address

    def close(self, patience: float) -> None:
        """Stops serving and deletes all files, after waiting up to `patience` seconds for the clip being explained."""
        self._busy.acquire(timeout=patience)
        self._blocks.close(verbose=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._busy.release()  # a clip that waited finds no folder

    def _layout(self) -> gr.Blocks:
        trained, limits, examples = self._trained, self._limits, list(self._examples)
        titles = [TITLES[modality] for modality in trained.model.modalities]
        several: dict[str, Any] = {"file_count": "multiple", "file_types": list(SUFFIXES), "height": 170}
        looped: dict[str, Any] = {"autoplay": True, "loop": True, "interactive": False}
        table: dict[str, Any] = {"label": "Prediction of each head", "interactive": False, "elem_id": "heads"}
        all_shown: dict[str, Any] = {"run_on_click": True, "examples_per_page": len(examples), "elem_id": "examples"}
        with gr.Blocks(title="rgbd_jax", analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
            gr.Markdown(
                f"# RGB-D motion recognition\n`{trained.path.resolve().name}` classifies {' and '.join(titles)} clips "
                f"of one motion into {len(trained.class_names)} classes."
            )
            with gr.Row():
                left = gr.Column(scale=2, min_width=280)
                with gr.Column(scale=5, min_width=280):
                    label = gr.Label(label="Predictions", num_top_classes=5, elem_id="predictions")
                    with gr.Row():
                        videos = [gr.Video(label=f"{x}: evidence for the class (Grad-CAM)", **looped) for x in titles]
                    strips = [gr.Image(label=f"{x}: {PICTURES}", buttons=["download", "fullscreen"]) for x in titles]
                    heads = gr.Dataframe(headers=["Head", "Class", "Probability"], **table)
                    details = gr.Textbox(label="Clip", interactive=False, elem_id="details")
            outputs = [label, *videos, *strips, heads, details]
            with left:
                self._fields = {
                    modality: gr.File(label=f"{TITLES[modality]} clip", elem_id=f"clip-{modality}", **several)
                    for modality in trained.model.modalities
                }
                button = gr.Button("Recognise", variant="primary", elem_id="recognise")
                gr.Markdown(
                    f"Choose {EXPECTED}; frames are ordered by their names. Up to {limits.megabytes} MB, "
                    f"{limits.frames} frames and {limits.side} pixels a side. Uploads are deleted with the answer."
                )
                if examples:
                    chosen = gr.Textbox(visible=False, label="Example")
                    gr.Examples(examples, chosen, outputs, self._recognise_example, **all_shown)
                gr.Textbox(", ".join(trained.class_names), label="Classes", max_lines=4)
            fields = self._fields.values()
            button.click(self._recognise, set(fields), [*outputs, *fields], scroll_to_output=True)
        return blocks

    def _recognise(self, files: dict[gr.File, list[str] | None], progress: gr.Progress = PROGRESS) -> list[Any]:
        """Returns the outputs for uploaded files, and empty fields: the files are deleted."""
        uploads = {modality: files[field] or [] for modality, field in self._fields.items()}
        with self._busy, tempfile.TemporaryDirectory(dir=self._folder) as name:
            try:
                progress(0.1, desc="Reading the frames")
                clip = clip_of_uploads(uploads, Path(name), self._limits)
                outputs = self._explain(read_user_clip(clip), frame_rate(clip), progress)
            except (ValueError, OSError) as error:
                gr.Warning(html.escape(str(error).replace(f"{name}/", "")), duration=None)
                outputs = [None] * (3 + 2 * len(uploads))
        return outputs + [None] * len(uploads)

    def _recognise_example(self, title: str, progress: gr.Progress = PROGRESS) -> list[Any]:
        with self._busy:
            return self._explain(self._examples[title], DEFAULT_FRAME_RATE, progress)

    def _explain(self, record: ClipRecord, rate: float, progress: gr.Progress) -> list[Any]:
        """Returns the outputs for a clip: probabilities, videos, strips of frames, heads and details."""
        times = [time.perf_counter()]
        frames = loader.load_clip(record, self._config)  # modality -> t h w 3
        progress(0.4, desc="Inference and drawing")
        times.append(time.perf_counter())
        prediction = self._predictor({modality: x[None] for modality, x in frames.items()})
        times.append(time.perf_counter())
        videos, strips, folder = [], [], Path(tempfile.mkdtemp(dir=self._folder))
        for modality, seen in frames.items():
            videos.append(str(folder / f"{modality}.mp4"))
            evidence = prediction.class_activation_map[modality][0]  # t h2 w2
            pictures = drawing.overlay(record.frames[modality], modality, self._config, evidence, MAX_SIDE)
            write_video(Path(videos[-1]), pictures, rate)
            rows = drawing.strip(seen, prediction, 0, modality, TILE)
            strips.append(drawing.film(list(rows.values()), TILE, GAP, GREY))
        times.append(time.perf_counter())
        names, heads = self._trained.class_names, []
        for head, title in self._trained.model.family.heads.items():
            probabilities = softmax(prediction.heads[head][0])
            heads.append([title, names[probabilities.argmax()], f"{probabilities.max():.1%}"])
        stages = zip(("loading", "inference", "drawing"), np.diff(times), strict=True)
        details = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in stages)
        details = f"{Path(record.name).name}: {len(next(iter(record.frames.values())))} frames; {details}"
        best = dict(zip(names, prediction.probabilities[0].tolist(), strict=True))
        return [best, *videos, *strips, heads, details]
