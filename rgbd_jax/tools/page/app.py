"""The page as a Gradio app: the prediction for one clip at a time, with videos and pictures of the evidence for it."""

import html
import ipaddress
import itertools
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio import route_utils
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord, open_split
from rgbd_jax.inference import drawing
from rgbd_jax.inference.clips import UserClip, read_user_clip
from rgbd_jax.inference.example import example
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
OVERHEAD = 1_000_000  # bytes of a request beside its files


class OwnUpload(route_utils.GradioUploadFile):
    """An uploaded file with a folder of its own. Gradio names folders by the content of files, across all users."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sha.update(secrets.token_bytes(32))


route_utils.GradioUploadFile = OwnUpload  # type: ignore[misc]  # there is no setting for it


class RequestCheck:
    """Middleware that answers 400 to requests for a host by a name that is not the page's, 413 to those too large.

    A page of somebody else, whose name is made to lead to this machine (DNS rebinding), could read this one through the
    browser of whoever visits it. That takes a name: any IP address will do. Gradio limits each file, not all of them;
    servers read no more of a request than it announces.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], size: int):
        self._app, self._names, self._size = app, {"localhost", *(name.lower() for name in names)}, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        name = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin1").lower())
        length = headers.get(b"content-length", b"0")
        known = b"transfer-encoding" not in headers and length.isdigit()
        if scope["type"] in ("http", "websocket") and name not in self._names and not _is_address(name):
            status, text = (
                400,
                f"This page is not served as {name[:80]!r}; its owner can allow that name (--allow_host).",
            )
        elif scope["type"] == "http" and not (known and int(length) <= self._size + OVERHEAD):
            # Browsers read no answer before they have sent the whole body; it is dropped as it comes.
            while known and (await receive()).get("more_body"):
                pass
            limit = f"up to {self._size >> 20} MB are accepted, all files together"
            status, text = 413, f"The upload is too large: {limit}."
        else:
            return await self._app(scope, receive, send)
        await PlainTextResponse(text, status_code=status)(scope, receive, send)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False


def find_examples(trained: TrainedModel, count: int, data_dir: str) -> dict[str, ClipRecord]:
    """Returns title -> clip, up to `count` of different classes.

    They are clips of the evaluation split; for a network of the demo, unless there is a `data_dir`, they are rendered.

    Raises:
        ValueError: the data set in `data_dir` (empty: the config's) is damaged or lacks a modality.
        FileNotFoundError: it is not prepared.
    """
    data = trained.config.data
    if data.dataset == "rgbd_demo" and not data_dir:
        return {name: _rendered(name, trained.model.modalities) for name in trained.class_names[:count]}
    split = open_split(data.dataset, data_dir or data.data_dir, data.eval_split)
    if not set(trained.model.modalities) <= set(split.modalities):
        raise ValueError(f"{split.directory} lacks {' or '.join(trained.model.modalities)} clips")
    examples: dict[int, ClipRecord] = {}
    for position in np.unique(np.linspace(0, len(split) - 1, 4 * count).round().astype(int)).tolist():
        examples.setdefault(split[position].label, split[position])
    chosen = sorted(examples.items())[:count]
    return {f"{split.class_names[label]}: {clip.name}": clip for label, clip in chosen}


def _rendered(motion: str, modalities: Sequence[str]) -> ClipRecord:
    clip = example(motion)
    return read_user_clip(UserClip(motion, {modality: clip[modality] for modality in modalities}))


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

    def launch(self, host: str, port: int, names: Collection[str] = ()) -> str:
        """Serves the page in threads of its own and returns its address; `names` are further ones of this host.

        Raises:
            OSError: the address cannot be used.
        """
        check = Middleware(RequestCheck, names=[host, *names], size=self._limits.size)
        theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            _, address, _ = self._blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=self._limits.size,
                app_kwargs={"middleware": [check]},
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
        block = trained.model.family.explained(trained.config, trained.model.modalities[0]).rpartition("/")[2]
        maps = f"Grad-CAM at {block}"
        rows = "frames, Grad-CAM, motion" if trained.config.model.frp else "frames, Grad-CAM"
        table: dict[str, Any] = {"label": "Prediction of each head", "interactive": False, "elem_id": "heads"}
        all_shown: dict[str, Any] = {"run_on_click": True, "examples_per_page": len(examples), "elem_id": "examples"}
        with gr.Blocks(title="rgbd_jax", analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
            gr.Markdown(
                f"# RGB-D motion recognition\n`{trained.path.resolve().name}` recognises {len(trained.class_names)} "
                f"motions in {' and '.join(titles)} clips. Choose an example, or a clip of your own."
            )
            with gr.Row():
                left = gr.Column(scale=2, min_width=280)
                with gr.Column(scale=5, min_width=280):
                    label = gr.Label(label="Predictions", num_top_classes=5, elem_id="predictions")
                    with gr.Row():
                        videos = [gr.Video(label=f"{x}: {maps}", **looped) for x in titles]
                    strips = [gr.Image(label=f"{x}: {rows}", buttons=["download", "fullscreen"]) for x in titles]
                    heads = gr.Dataframe(headers=["Head", "Class", "Probability"], **table)
                    details = gr.Textbox(label="Clip", interactive=False, elem_id="details")
            outputs = [label, *videos, *strips, heads, details]
            with left:
                self._fields = {
                    modality: gr.File(label=f"{TITLES[modality]} clip", elem_id=f"clip-{modality}", **several)
                    for modality in trained.model.modalities
                }
                self._camera = None
                if trained.model.modalities == ("rgb",):  # cameras of browsers have no depth
                    sides = {"width": 640, "height": 480}  # Gradio's own 1920 x 1440 can exceed the limit
                    video = {name: {"ideal": side, "max": limits.side} for name, side in sides.items()}
                    options = gr.WebcamOptions(mirror=False, constraints={"video": video})
                    camera: dict[str, Any] = {"include_audio": False, "webcam_options": options, "height": 220}
                    self._camera = gr.Video(sources=["webcam"], label="Or record a clip", elem_id="camera", **camera)
                    # The recording as it is: Gradio needs the program ffmpeg to remove sound, of which there is none.
                    self._camera.preprocess = lambda sent: sent and sent.path
                button = gr.Button("Recognise", variant="primary", elem_id="recognise")
                gr.Markdown(
                    f"Choose {EXPECTED}; frames are ordered by their names. Up to {limits.megabytes} MB, "
                    f"{limits.frames} frames and {limits.side} pixels a side. Uploads are deleted with the answer."
                )
                if examples:
                    chosen = gr.Textbox(visible=False, label="Example")
                    gr.Examples(examples, chosen, outputs, self._recognise_example, **all_shown)
                gr.Textbox(", ".join(trained.class_names), label="Classes", max_lines=4)
            fields = [*self._fields.values(), *([self._camera] if self._camera else [])]
            button.click(self._recognise, set(fields), [*outputs, *fields], scroll_to_output=True)
        return blocks

    def _recognise(self, files: dict[gr.Component, Any], progress: gr.Progress = PROGRESS) -> list[Any]:
        """Returns the outputs for uploaded files, and empty fields: the files are deleted."""
        uploads = {modality: files[field] or [] for modality, field in self._fields.items()}
        if self._camera and files[self._camera]:
            uploads["rgb"] = [*uploads["rgb"], files[self._camera]]
        with self._busy, tempfile.TemporaryDirectory(dir=self._folder) as name:
            try:
                # A request may name any file in Gradio's folder: another user's result too, which would be deleted.
                if not self._blocks.upload_file_set.issuperset(itertools.chain(*uploads.values())):
                    raise ValueError("these files were not uploaded: choose them again")
                progress(0.1, desc="Reading the frames")
                clip = clip_of_uploads(uploads, Path(name), self._limits)
                outputs = self._explain(read_user_clip(clip), frame_rate(clip), progress)
            except (ValueError, OSError) as error:
                gr.Warning(html.escape(str(error).replace(f"{name}/", "")), duration=None)
                outputs = [None] * (3 + 2 * len(uploads))
        return outputs + [None] * len(files)

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
