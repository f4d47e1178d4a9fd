"""The page as a Gradio app."""

import html
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from rgbd_jax.data.source import ClipRecord, open_split, prepared_directory
from rgbd_jax.inference.clips import read_user_clip
from rgbd_jax.inference.overlay import DEFAULT_FRAME_RATE, frame_rate
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.tools.page.body_limit import BodyLimit
from rgbd_jax.tools.page.explanation import DemoModel
from rgbd_jax.tools.page.uploads import EXPECTED, SUFFIXES, Limits, clip_of_uploads

TITLES = {"rgb": "RGB", "depth": "Depth"}
PROGRESS = gr.Progress()
DELETE_CACHE = (30, 600)  # seconds: how often, and of what age, uploads and results are deleted


def find_examples(trained: TrainedModel, count: int, data_dir: str) -> dict[str, ClipRecord]:
    """Returns title -> clip of the evaluation split, up to `count` of different classes.

    Raises:
        ValueError: the data set is not prepared in `data_dir` (empty: the config's), or lacks a modality.
    """
    data = trained.config.data
    folder = data_dir or data.data_dir
    if prepared_directory(data.dataset, folder) is None:
        raise ValueError(f"{data.dataset} is not prepared in {folder}")
    split = open_split(data.dataset, folder, data.eval_split)
    if not set(trained.model.modalities) <= set(split.modalities):
        raise ValueError(f"{split.directory} lacks {' or '.join(trained.model.modalities)} clips")
    examples: dict[int, ClipRecord] = {}
    for position in np.unique(np.linspace(0, len(split) - 1, 4 * count).round().astype(int)).tolist():
        examples.setdefault(split[position].label, split[position])
    shown = sorted(examples)[:count]
    return {f"{split.class_names[label]}: {examples[label].name}": examples[label] for label in shown}


class DemoPage:
    """The page for one model, with example clips by title; all of its files lie in `folder`, GRADIO_TEMP_DIR."""

    def __init__(self, model: DemoModel, limits: Limits, examples: Mapping[str, ClipRecord], folder: Path):
        self._busy = threading.Lock()  # held while files are written
        self._model, self._limits, self._examples, self._folder = model, limits, examples, folder
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
        trained, limits = self._model.trained, self._limits
        kinds = " and ".join(TITLES[modality] for modality in trained.model.modalities)
        with gr.Blocks(title="rgbd_jax", analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
            gr.Markdown(
                f"# RGB-D motion recognition\n`{trained.path.resolve().name}` classifies {kinds} clips of one motion "
                f"into {len(trained.class_names)} classes."
            )
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    fields = {
                        modality: gr.File(
                            label=f"{TITLES[modality]} clip",
                            file_count="multiple",
                            file_types=list(SUFFIXES),
                            height=170,
                            elem_id=f"clip-{modality}",
                        )
                        for modality in trained.model.modalities
                    }
                    button = gr.Button("Recognise", variant="primary", elem_id="recognise")
                    gr.Markdown(
                        f"Choose {EXPECTED}; frames are ordered by their names. Up to {limits.megabytes} MB, "
                        f"{limits.frames} frames and {limits.side} pixels a side. Uploads are deleted with the answer."
                    )
                    chosen = gr.Textbox(visible=False, label="Example")
                    examples = gr.Column()
                    gr.Textbox(", ".join(trained.class_names), label="Classes", max_lines=4)
                with gr.Column(scale=5, min_width=280):
                    outputs = self._outputs()
            with examples:
                if self._examples:
                    gr.Examples(
                        list(self._examples),
                        chosen,
                        outputs,
                        self._recognise_example,
                        run_on_click=True,
                        cache_examples=False,
                        examples_per_page=len(self._examples),
                        elem_id="examples",
                    )
            button.click(self._recognise, set(fields.values()), [*outputs, *fields.values()], scroll_to_output=True)
        self._fields = fields
        return blocks

    def _outputs(self) -> list[gr.components.Component]:
        titles = [TITLES[modality] for modality in self._model.trained.model.modalities]
        label = gr.Label(label="Predictions", num_top_classes=5, elem_id="predictions")
        with gr.Row():
            videos = [
                gr.Video(
                    label=f"{title}: evidence for the class (Grad-CAM)", autoplay=True, loop=True, interactive=False
                )
                for title in titles
            ]
        strips = [
            gr.Image(label=f"{title}: frames, evidence, motion", buttons=["download", "fullscreen"]) for title in titles
        ]
        heads = gr.Dataframe(
            headers=["Head", "Class", "Probability"],
            label="Prediction of each head",
            interactive=False,
            elem_id="heads",
        )
        return [label, *videos, *strips, heads, gr.Textbox(label="Clip", interactive=False, elem_id="details")]

    def _recognise(self, files: dict[gr.File, list[str] | None], progress: gr.Progress = PROGRESS) -> list[Any]:
        """Returns the outputs for uploaded files, and empty fields: the files are deleted."""
        uploads = {modality: files[field] or [] for modality, field in self._fields.items()}
        with self._busy, tempfile.TemporaryDirectory(dir=self._folder) as name:
            try:
                progress(0.1, desc="Reading the frames")
                clip = clip_of_uploads(uploads, Path(name), self._limits)
                outputs = self._explain(read_user_clip(clip), frame_rate(clip), progress)
            except (ValueError, OSError) as error:
                text = html.escape(str(error).replace(f"{name}/", ""))
                gr.Warning(text, duration=None)
                outputs = [None] * (3 + 2 * len(uploads))
        return outputs + [None] * len(uploads)

    def _recognise_example(self, title: str, progress: gr.Progress = PROGRESS) -> list[Any]:
        with self._busy:
            return self._explain(self._examples[title], DEFAULT_FRAME_RATE, progress)

    def _explain(self, record: ClipRecord, rate: float, progress: gr.Progress) -> list[Any]:
        progress(0.4, desc="Inference and drawing")
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        explanation = self._model.explain(record, rate, folder)
        heads = [[head.title, head.class_name, f"{head.probability:.1%}"] for head in explanation.heads]
        frames = len(next(iter(record.frames.values())))
        times = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in explanation.seconds.items())
        details = f"{Path(record.name).name}: {frames} frames; {times}"
        videos, strips = explanation.videos.values(), explanation.strips.values()
        return [dict(explanation.probabilities), *map(str, videos), *strips, heads, details]
