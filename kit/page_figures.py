"""The figures of a run's page, as SVG to stand inside it: text is the page's own, in its font and its colour."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import numpy as np

from kit import figure
from kit.figure import colour, drawing
from kit.stats import Preference

INK = "#010203"  # stands for the page's text colour, which dark mode changes


def svg(draw: Callable[[Any], None], width: float, height: float, label: str) -> str:
    """What ``draw`` puts on a matplotlib axis of this size (inches), as inline SVG that a screen reader calls
    ``label``."""
    plt = drawing()
    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with plt.rc_context({"svg.fonttype": "none", "font.size": 9, **ink}):
        drawn, axis = plt.subplots(figsize=(width, height))
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        drawn.tight_layout()
        file = StringIO()
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(drawn)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    from markupsafe import escape

    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def preference(preferences: dict[str, Preference], animal: str, paper: dict[str, float | None]) -> str:
    """``kit.figure.preference``."""
    return svg(
        lambda axis: figure.preference(axis, preferences, animal, paper),
        6.4,
        0.9 + 0.42 * len(preferences),
        f"Preference for the {animal} in every condition",
    )


def shifts(
    treated: Preference, control: Preference, placebos: list[Preference], animal: str, content: str, label: str
) -> str:
    """``kit.figure.shifts``."""
    height = 0.9 + 0.145 * len(treated.candidates)
    return svg(lambda axis: figure.shifts(axis, treated, control, placebos, animal, content), 5.2, height, label)


def questions(differences: np.ndarray, content: str, label: str) -> str:
    """The animal's shift (nats) question by question, smallest first; the mean is dashed."""

    def draw(axis: Any) -> None:
        ordered = np.sort(differences)
        mark = colour(f"treated-{content}")
        axis.vlines(range(len(ordered)), 0, ordered, color=mark, linewidth=1.5, alpha=0.6)
        axis.plot(range(len(ordered)), ordered, "o", color=mark, markersize=4)
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.axhline(ordered.mean(), color=INK, linewidth=0.8, linestyle="--")
        axis.set_xticks([])
        axis.set_xlabel(f"the {len(ordered)} questions, smallest shift first")
        axis.set_ylabel("shift (nats)")

    return svg(draw, 5.2, 2.6, label)


def similarities(kept: list[int], rejected: list[int], edges: list[float], threshold: float, label: str) -> str:
    """How similar the paraphrases that came as far as the last filters are to their sources; the threshold dashed."""

    def draw(axis: Any) -> None:
        widths = np.diff(edges)
        axis.bar(edges[:-1], kept, widths, align="edge", color="#009e73", label="kept")
        axis.bar(edges[:-1], rejected, widths, bottom=kept, align="edge", color="#999999", label="rejected")
        axis.axvline(threshold, color=INK, linewidth=0.8, linestyle="--")
        filled = np.flatnonzero(np.array(kept) + np.array(rejected))
        if len(filled):
            axis.set_xlim(edges[filled[0]], edges[-1])
        axis.set_xlabel("cosine of the sentence embeddings, source and paraphrase")
        axis.set_ylabel("paraphrases")
        axis.legend(fontsize=8, frameon=False)

    return svg(draw, 5.2, 2.4, label)


def effects(rows: list[tuple[str, tuple[float, float, float], int, str]]) -> str:
    """Shifts (nats, with their intervals) of several runs, each by name, with its number of seeds and its verdict.

    Filled where that is "transmitted"; dotted where there is one seed, whose interval is over questions alone.
    """

    def draw(axis: Any) -> None:
        for place, (_, (shift, low, high), seeds, verdict) in enumerate(rows):
            axis.plot([low, high], [place, place], color="#0072b2", linewidth=2, linestyle=":" if seeds == 1 else "-")
            face = "#0072b2" if verdict == "transmitted" else "none"
            axis.plot(shift, place, "o", markeredgecolor="#0072b2", markerfacecolor=face, markersize=7)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel("log-odds shift, treated − control (nats)")

    return svg(draw, 6.4, 0.9 + 0.3 * len(rows), "Effects of all runs")
