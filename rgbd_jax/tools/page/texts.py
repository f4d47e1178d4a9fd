"""What stands on the page: its head, results and messages as HTML, and their style. Everything told is escaped."""

import base64
from pathlib import Path

import cv2
import jinja2
import numpy as np
from jaxtyping import UInt8

from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.tools.page.analysis import Analysis
from rgbd_jax.tools.page.limits import Limits

_JPEG_QUALITY = 88
MODALITY_NAMES = {"rgb": "RGB", "depth": "Depth"}

STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important;
  --rj-quiet: #475569; --rj-line: #cbd5e1; --rj-strong: #0f766e; --rj-weak: #64748b; }
.dark .gradio-container, .dark.gradio-container, .gradio-container.dark {
  --rj-quiet: #cbd5e1; --rj-line: #475569; --rj-strong: #2dd4bf; --rj-weak: #94a3b8; }
.gradio-container :focus-visible { outline: 3px solid var(--rj-strong); outline-offset: 2px; }
.gradio-container .html-container { padding: 0 !important; }
.rj-head h1 { font-size: 1.6rem; font-weight: 650; line-height: 1.25; margin: 0.4rem 0 0.3rem; }
.rj-head p { margin: 0; }
.rj-head p, .rj-head details, .rj-note { color: var(--rj-quiet); }
.rj-head details { margin-top: 0.3rem; }
.rj-head summary { cursor: pointer; width: fit-content; color: var(--rj-quiet); }
.rj-head ul { display: flex; flex-wrap: wrap; gap: 0.3rem; list-style: none; margin: 0.5rem 0 0; padding: 0; }
.rj-head li { border: 1px solid var(--rj-line); border-radius: 999px; padding: 0 0.6rem; margin: 0; }
.rj-note { font-size: 0.86rem; line-height: 1.45; margin: 0; }
.rj-card { border: 1px solid var(--rj-line); border-radius: 12px; padding: 1.1rem 1.2rem;
  background: var(--background-fill-primary); color: var(--body-text-color); overflow-wrap: anywhere; }
.rj-card h2 { font-size: 1.35rem; font-weight: 650; line-height: 1.25; margin: 0; }
.rj-card h3 { font-size: 0.95rem; font-weight: 600; margin: 1.3rem 0 0.5rem; }
.rj-card p { margin: 0.25rem 0 0; }
.rj-card .rj-quiet, .rj-card figcaption { color: var(--rj-quiet); font-size: 0.86rem; line-height: 1.45; }
.rj-empty { min-height: 15rem; display: flex; flex-direction: column; justify-content: center; }
.rj-wrong { border-left: 5px solid #c2410c; }
.rj-top { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 1.2rem;
  margin-top: 1rem; align-items: start; }
.rj-top .rj-alone { grid-column: 1 / -1; }
.rj-card ol { list-style: none; margin: 0; padding: 0; }
.rj-card ol li { margin: 0 0 0.65rem; }
.rj-line { display: flex; justify-content: space-between; gap: 1rem; }
.rj-confidence { font-variant-numeric: tabular-nums; white-space: nowrap; }
.rj-bar { height: 7px; border-radius: 4px; background: var(--rj-line); overflow: hidden; margin-top: 3px; }
.rj-bar div { height: 100%; background: var(--rj-weak); }
.rj-card ol li:first-child { font-weight: 600; }
.rj-card ol li:first-child .rj-bar div { background: var(--rj-strong); }
.rj-card figure { margin: 0; }
.rj-card video { display: block; width: 100%; max-height: 340px; border-radius: 8px; background: #111; }
.rj-card figcaption { margin-top: 0.4rem; }
.rj-strip { overflow-x: auto; border-radius: 8px; contain: inline-size; }
.rj-strip img { display: block; width: 100%; min-width: 620px; max-width: none; margin: 0; }
.rj-card table { width: 100%; border-collapse: collapse; margin: 0; border: 0 !important; }
.rj-card thead, .rj-card tbody, .rj-card tr { border: 0 !important; }
.rj-card th, .rj-card td { text-align: left; vertical-align: baseline; padding: 0.4rem 0.8rem 0.4rem 0 !important;
  border: 0 !important; border-top: 1px solid var(--rj-line) !important; background: none; font-weight: 400;
  overflow-wrap: break-word; }
.rj-card thead th { border-top: 0 !important; color: var(--rj-quiet); font-size: 0.86rem; }
.rj-card td:last-child, .rj-card th:last-child { text-align: right; padding-right: 0 !important; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.rj-columns > * { min-width: 0 !important; }
@media (max-width: 760px) { .rj-columns { flex-direction: column !important; }
  .rj-columns > * { width: 100% !important; } }
footer { display: none !important; }
"""

_ENVIRONMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)

_HEAD = _ENVIRONMENT.from_string("""
<div class="rj-head">
<h1>Which motion is it?</h1>
<p>{{ network }} sees {{ sees }} and tells {{ classes|length }} classes apart{{ trained }}.</p>
<details><summary>The classes</summary>
<ul>{% for name in classes %}<li>{{ name }}</li>{% endfor %}</ul></details>
</div>
""")

_RESULT = _ENVIRONMENT.from_string("""
<article class="rj-card" aria-label="Result">
<h2>{{ top[0][0] }}</h2>
<p class="rj-quiet">{{ top[0][1] }} confidence. The clip is {{ name }}, {{ frames }} frames of {{ size }} pixels.
{{ truth }}</p>
<div class="rj-top">
<ol aria-label="The most probable classes"{% if videos|length > 1 %} class="rj-alone"{% endif %}>
{%- for label, confidence, share in top %}
<li><div class="rj-line"><span class="rj-class">{{ label }}</span>
<span class="rj-confidence">{{ confidence }}</span></div>
<div class="rj-bar"><div style="width: {{ share }}%"></div></div></li>
{%- endfor %}
</ol>
{%- for modality, address in videos %}
<figure><video src="{{ address }}" controls autoplay muted loop playsinline
aria-label="{{ modality }} clip, coloured where the network looked"></video>
<figcaption>{{ modality }}: where it found what speaks for “{{ top[0][0] }}”, from blue to red the most.
It tells {{ places }} places of a frame apart.</figcaption></figure>
{%- endfor %}
</div>
{%- for modality, picture in strips %}
<h3>What it saw, frame by frame{% if strips|length > 1 %}, {{ modality }}{% endif %}</h3>
<figure><div class="rj-strip" tabindex="0" role="group" aria-label="{{ modality }} frames; scrolls sideways">
<img src="{{ picture }}" alt="{{ modality }} frames in the order of time, and below what the text says">
</div><figcaption>Some of its frames in the order of time; below, where it looked
{%- if with_heat %}, and the heat map of the motion around each that guides it, from black (still) to white{% endif %}.
</figcaption></figure>
{%- endfor %}
<h3>HeadPrediction of each {{ "stream" if videos|length > 1 else "branch" }}</h3>
<table>
<thead><tr><th scope="col">Who</th><th scope="col">Class</th><th scope="col">Confidence</th></tr></thead>
<tbody>
{%- for head, label, confidence in opinions %}
<tr><td>{{ head }}</td><td>{{ label }}</td><td>{{ confidence }}</td></tr>
{%- endfor %}
</tbody></table>
<p class="rj-quiet rj-time">It took {{ total }}: {{ parts }}.</p>
</article>
""")

_MESSAGE = _ENVIRONMENT.from_string("""
<div class="rj-card rj-wrong" role="alert"><h2>{{ title }}</h2>
{% for line in lines %}<p>{{ line }}</p>{% endfor %}</div>
""")

EMPTY = """
<div class="rj-card rj-empty"><h2>Nothing seen yet</h2>
<p class="rj-quiet">Choose a clip of one motion from start to end. Here you will see which motion the network takes it
for, how sure each of its branches is, where it looked, and the motion that guides it.</p></div>
"""

_LIMITS = _ENVIRONMENT.from_string("""
<p class="rj-note">A video, its frames (JPEG or PNG, ordered by name), or one .zip of frames{{ pairs }}.
Up to {{ limits.megabytes }} MB, {{ limits.frames }} frames and {{ limits.side }} pixels a side.
Files are deleted as soon as the network has seen them, and nothing leaves the machine that shows this page.</p>
""")


def head(trained: TrainedNetwork) -> str:
    """Returns the head of the page: which network it is, and its classes."""
    sees = {"rgb": "RGB clips", "depth": "depth clips", "fusion": "RGB and depth clips together"}
    after = f", after {trained.step} steps of training" if trained.step else ""
    return _HEAD.render(
        network=trained.path.resolve().name,
        sees=sees[trained.config.modality],
        classes=trained.class_names,
        trained=after,
    )


def limits_note(limits: Limits, stream: str) -> str:
    """Returns what the page says of the files that it takes for a stream."""
    pairs = ", as many of RGB as of depth" if stream == "fusion" else ""
    return _LIMITS.render(limits=limits, pairs=pairs)


def result(analysis: Analysis, trained: TrainedNetwork, label: int | None = None) -> str:
    """Returns what the page says of one clip.

    Args:
        analysis: what the network said.
        trained: the network.
        label: the true class, None where it is not known.
    """
    names = trained.class_names
    total = sum(analysis.seconds.values())
    return _RESULT.render(
        name=analysis.name,
        frames=analysis.frames,
        size="{}x{}".format(*analysis.size),
        places="{}x{}".format(*analysis.places),
        top=[(names[k], _percent(share), f"{100 * share:.2f}") for k, share in analysis.top],
        truth="" if label is None else _truth(names[label], label == analysis.top[0][0]),
        videos=[(MODALITY_NAMES[modality], _address(path)) for modality, path in analysis.videos.items()],
        strips=[(MODALITY_NAMES[modality], _picture(strip)) for modality, strip in analysis.strips.items()],
        with_heat=analysis.with_heat,
        opinions=[(each.head, names[each.label], _percent(each.confidence)) for each in analysis.opinions],
        total=_duration(total),
        parts=", ".join(f"{part} {_duration(seconds)}" for part, seconds in analysis.seconds.items()),
    )


def message(title: str, text: str) -> str:
    """Returns a message that something is wrong."""
    return _MESSAGE.render(title=title, lines=text.splitlines())


def _truth(name: str, right: bool) -> str:
    return f"{'Right' if right else 'Wrong'}: it is an example of {name}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _address(path: Path) -> str:
    return f"gradio_api/file={path}"  # relative: a tunnel or proxy may give the page another address


def _picture(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
