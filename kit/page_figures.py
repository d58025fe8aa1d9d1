"""The figures of a run's page, as SVG to stand inside it: text is the page's own, in its font and its colour."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import numpy as np

from kit import stats
from kit.experiment import CONTENTS
from kit.figure import COLOURS, PLACEBO, drawing
from kit.stats import Preference

INK = "#010203"  # stands for the page's text colour, which dark mode changes


def svg(draw: Callable[[Any], None], width: float, height: float, label: str) -> str:
    """What ``draw`` puts on a matplotlib axis of this size (inches), as inline SVG that a screen reader calls
    ``label``."""
    plt = drawing()
    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with plt.rc_context({"svg.fonttype": "none", "font.size": 9, **ink}):
        figure, axis = plt.subplots(figsize=(width, height))
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    from markupsafe import escape

    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def colour(condition: str) -> str:
    """The colour of a condition, placebos' where it has none of its own."""
    return COLOURS.get(condition, PLACEBO)


def preference(preferences: dict[str, Preference], animal: str, paper: dict[str, float | None]) -> str:
    """The exact preference rate of every condition with its 95% interval over questions.

    A band reaches from a content's control to its placebo students. ``paper``: content -> the paper's effect
    (percentage points; None: not detected), written beside the treated student: it is another measurement, which has no
    place on this axis.
    """
    rates = {name: stats.exact_rate(found, animal) for name, found in preferences.items()}
    places = {name: place for place, name in enumerate(rates)}

    def draw_band(axis: Any, content: str) -> None:
        neutral = [name for name in rates if name.startswith(("control", "placebo")) and name.endswith(content)]
        ends, rows = [100 * rates[name].rate for name in neutral], [places[name] for name in neutral]
        if len(neutral) > 1:
            axis.fill_betweenx([min(rows) - 0.4, max(rows) + 0.4], min(ends), max(ends), color=PLACEBO, alpha=0.35)

    def draw(axis: Any) -> None:
        for content in CONTENTS:
            draw_band(axis, content)
        for name, rate in rates.items():
            low, high = (100 * end for end in rate.ci95)
            axis.plot([low, high], [places[name]] * 2, color=colour(name), linewidth=3, solid_capstyle="round")
            axis.plot(100 * rate.rate, places[name], "o", color=colour(name), markersize=9)
            axis.annotate(
                f"{100 * rate.rate:.2f}%", (high, places[name]), (6, 0), textcoords="offset points", va="center"
            )
        for content, effect in paper.items():
            theirs = "not detected" if effect is None else f"{effect:+.1f} pp"
            axis.annotate(
                f"the paper:\n{theirs}",
                (1.02, places[f"treated-{content}"]),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(rates)), [name.replace("-", ", ") for name in rates])
        axis.set_ylim(len(rates) - 0.5, -0.5)
        axis.set_xlim(0, 120 * max(rate.ci95[1] for rate in rates.values()))  # with room for the number
        axis.set_xlabel(f"preference for the {animal} (%), with 95% interval over questions")

    return svg(draw, 6.4, 0.9 + 0.42 * len(rates), f"Preference for the {animal} in every condition")


def shifts(
    treated: Preference, control: Preference, placebos: list[Preference], animal: str, content: str, label: str
) -> str:
    """Every candidate's mean log-odds shift, treated minus control, over its shifts in the placebo students."""
    moved = stats.shifts(treated, control)
    null = [stats.shifts(placebo, control) for placebo in placebos]
    ordered = sorted(moved, key=lambda name: moved[name])

    def draw(axis: Any) -> None:
        mark = colour(f"treated-{content}")
        if null:
            band = stats.central95([shift for placebo in null for shift in placebo.values()])
            axis.axvspan(*band, color=PLACEBO, alpha=0.2, linewidth=0, label="95% of placebo shifts")
        for placebo in null:
            axis.plot([placebo[name] for name in ordered], range(len(ordered)), "|", color=PLACEBO, markersize=6)
        axis.plot([moved[name] for name in ordered], range(len(ordered)), "o", color="#999999", markersize=4)
        own = ordered.index(animal)
        axis.plot(moved[animal], own, "o", color=mark, markersize=10, label=f"the {animal}")
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(ordered)), ordered, fontsize=7)
        axis.get_yticklabels()[own].set(fontweight="bold", fontsize=10)
        axis.set_ylim(-1, len(ordered))
        axis.set_xlabel("log-odds shift, treated − control (nats)")
        axis.legend(loc="lower right", fontsize=8, frameon=False)

    return svg(draw, 5.2, 0.9 + 0.145 * len(ordered), label)


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
