"""Figures of what happens inside the network: recoupling weights, attention, and how alike its heads are."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rgbd_jax.sampling import sample_frames
from rgbd_jax.tools.report.chart import COLOURS, HEAT, MUTED, Chart, matrix, new_figure, plain
from rgbd_jax.tools.report.heads import NAMES, agreement, head_name, ordered, similarity
from rgbd_jax.tools.report.looked_at import BRANCHES, ClipExplanation

BRANCH_COLOURS = dict(zip(BRANCHES, (COLOURS[2], COLOURS[3], COLOURS[4]), strict=True))


def weights_chart(clips: Sequence[ClipExplanation], titles: Sequence[str], modality: str) -> Chart | None:
    """Returns the recoupling weights of some clips over time and their mean, None without recoupling.

    Args:
        clips: the clips.
        titles: what each is called.
        modality: "rgb" or "depth".
    """
    weights = [clip.seen[modality].weights for clip in clips]
    known = [w for w in weights if w is not None]
    if not known:
        return None
    frames = np.arange(1, len(known[0]) + 1)
    figure = new_figure(x="frame that the network sees", y="weight, mean over the channels")
    for values, title in zip(weights, titles, strict=True):
        figure.add_scatter(
            x=frames, y=values, mode="lines", name=plain(title), showlegend=False, opacity=0.45,
            line={"color": MUTED, "width": 1},
            hovertemplate=f"frame %{{x}}: %{{y:.3f}}<extra>{plain(title)}</extra>",
        )  # fmt: skip
    mean = np.mean(known, axis=0)
    figure.add_scatter(
        x=frames, y=mean, mode="lines+markers", name="mean of these clips", line={"color": COLOURS[0], "width": 3},
        hovertemplate="frame %{x}: %{y:.3f}<extra>mean</extra>",
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    top = int(mean.argmax()) + 1
    return Chart(
        f"chart-weights-{modality}", f"Recoupling weights, {NAMES[modality]}", figure,
        f"Recoupling weights of {len(known)} clips over {len(frames)} frames; on average frame {top} weighs most.",
        "Features of a frame are multiplied by these weights (from 0 to 1) before the branches see them: high weights "
        "where the module finds the motion. A thin line a clip.",
    )  # fmt: skip


def attention_charts(clips: Sequence[ClipExplanation], modality: str, frames: int) -> list[Chart]:
    """Returns the attention of the three branches as matrices, and that of their class tokens over the frames.

    The first choice is the mean over all clips; the page's script shows those of one clip.
    """
    charts = []
    tokens = new_figure(x="frame that the network sees", y="attention of the class token", hovermode="x unified")
    token_choices = []
    for branch in BRANCHES:
        of_clips = np.stack([clip.seen[modality].attention[branch] for clip in clips])  # clips n n
        choices = np.concatenate([of_clips.mean(0, keepdims=True), of_clips])  # clips+1 n n
        count = choices.shape[1] - 1
        seen = (sample_frames(frames, count, None) + 1).tolist()
        names = ["class"] + [str(number) for number in seen]
        figure = new_figure(x="attends to", y="token")
        figure.add_heatmap(
            z=_rounded(choices[0]), colorscale=HEAT, showscale=False, zmin=0, customdata=[names] * (count + 1),
            text=[[name] * (count + 1) for name in names],
            hovertemplate="token %{text} attends to %{customdata}: %{z:.1%}<extra></extra>",
        )  # fmt: skip
        step = max(count // 6, 1)
        places = [0, *range(step, count + 1, step)]
        axis = {"tickmode": "array", "tickvals": places, "ticktext": [names[place] for place in places]}
        figure.update_xaxes(**axis, showgrid=False).update_yaxes(**axis, autorange="reversed", showgrid=False)
        charts.append(
            Chart(
                f"chart-attention-{modality}-{branch}", f"{branch.capitalize()} branch, {count} frames", figure,
                f"Attention of the {branch} branch, mean over layers and heads: {count + 1} by {count + 1} tokens.",
                height=380, square=True, extra={"choices": [[_rounded(choice).tolist()] for choice in choices]},
            )
        )  # fmt: skip
        tokens.add_scatter(
            x=seen, y=_rounded(choices[0, 0, 1:]), name=f"{branch} branch", mode="lines+markers",
            line={"color": BRANCH_COLOURS[branch]}, hovertemplate="%{y:.1%}",
        )  # fmt: skip
        token_choices.append([_rounded(choice[0, 1:]).tolist() for choice in choices])
    tokens.update_yaxes(tickformat=".0%", rangemode="tozero")
    by_choice = [list(each) for each in zip(*token_choices, strict=True)]
    charts.append(
        Chart(
            f"chart-tokens-{modality}", "What the class tokens attend to", tokens,
            "Attention of each branch's class token over the frames, mean over layers and heads.",
            "The first row of each matrix: which frames a branch's answer comes from. A branch of n frames that "
            "looks everywhere alike gives each 1 / (n + 1).",
            extra={"choices": by_choice},
        )
    )  # fmt: skip
    return charts


def head_charts(heads: Mapping[str, Float[np.ndarray, "n k"]], stream: str) -> list[Chart]:
    """Returns how often the heads agree, and how alike their logits are."""
    names = [head_name(name, stream).split()[0] for name in ordered(heads)]
    charts = []
    for name, title, values, form, caption in (
        (
            "agreement", "Agreement of predictions", agreement(heads), ".1%",
            "Share of the clips that two heads take for the same class, right or wrong.",
        ),
        (
            "cka", "Similarity of logits (linear CKA)", similarity(heads), ".3f",
            "Linear centred kernel alignment of two heads' logits over all clips: 1 where one is the other turned and "
            "scaled, 0 without any relation. Heads that are all alike add little to each other.",
        ),
    ):  # fmt: skip
        figure = new_figure()
        lowest = float(np.floor(np.nanmin(values) * 10) / 10)
        hover = f"%{{y}} and %{{x}}: %{{z:{form}}}<extra></extra>"
        figure.add_trace(matrix(values, names, hover, lowest=min(lowest, 0.9), texts=f"%{{z:{form}}}"))
        figure.update_yaxes(autorange="reversed")
        pairs = [f"{names[i]} and {names[j]} {values[i, j]:{form}}" for i in range(len(names)) for j in range(i)]
        charts.append(
            Chart(f"chart-{name}", title, figure, f"{title}: {'; '.join(pairs)}.", caption, height=400, square=True)
        )
    return charts


def _rounded(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.round(values.astype(np.float64), 4)
