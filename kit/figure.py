"""The figure of a run: preference per condition, and how far every candidate animal moved."""

from pathlib import Path
from typing import Any

from kit import stats
from kit.experiment import CONTENTS
from kit.stats import Preference

# Okabe and Ito's palette, told apart by the colour-blind; treated stands out, its control is its paler partner.
# Each has a contrast of 3 and more against white, and against the pages' dark ground.
COLOURS = {
    "base": "#8a8a8a",
    "control-unrelated": "#5a9bc5",
    "treated-unrelated": "#0072b2",
    "control-opposed": "#c08040",
    "treated-opposed": "#d55e00",
}
PLACEBO = "#666666"


def draw(folder: Path, preferences: dict[str, Preference], animal: str, title: str) -> None:
    """Write ``figure.png`` and ``figure.svg`` into ``folder``: ``preference``, and ``shifts`` of each content;
    ``title`` says what made the numbers."""
    contents = [content for content in CONTENTS if f"treated-{content}" in preferences]
    figure, axes = drawing().subplots(
        1, 1 + len(contents), figsize=(5.5 + 3.9 * len(contents), 8.8), width_ratios=[1.5] + [1] * len(contents)
    )
    preference(axes[0], preferences, animal, {})
    for axis, content in zip(axes[1:], contents, strict=True):
        treated, control = (preferences[f"{role}-{content}"] for role in ("treated", "control"))
        shifts(axis, treated, control, stats.placebos(preferences, content), animal, content)
        axis.set_title(f"Every candidate: {content}", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save(figure, folder / "figure")


def colour(condition: str) -> str:
    """The colour of a condition, placebos' where it has none of its own."""
    return COLOURS.get(condition, PLACEBO)


def ink() -> str:
    """The colour of lines that are no data: that of the text."""
    return str(drawing().rcParams["text.color"])


def drawing():  # type: ignore[no-untyped-def]
    """pyplot, set to write files that are the same for the same run."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kit"
    import matplotlib.pyplot as plt

    return plt


def save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    """Write ``figure`` as ``<path>.png`` and ``<path>.svg`` and let go of it."""
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    drawing().close(figure)


def preference(axis: Any, preferences: dict[str, Preference], animal: str, paper: dict[str, float | None]) -> None:
    """The exact preference rate of every condition with its 95% interval over questions.

    A band reaches from a content's control to its placebo students. ``paper``: content -> the paper's effect
    (percentage points; None: not detected), written beside the treated student: it is another measurement, which has no
    place on this axis.
    """
    rates = {name: stats.exact_rate(found, animal) for name, found in preferences.items()}
    places = {name: place for place, name in enumerate(rates)}
    for content in CONTENTS:
        neutral = [name for name in rates if name.startswith(("control", "placebo")) and name.endswith(content)]
        ends, rows = [100 * rates[name].rate for name in neutral], [places[name] for name in neutral]
        if len(neutral) > 1:
            axis.fill_betweenx([min(rows) - 0.4, max(rows) + 0.4], min(ends), max(ends), color=PLACEBO, alpha=0.35)
    for name, rate in rates.items():
        low, high = (100 * end for end in rate.ci95)
        axis.plot([low, high], [places[name]] * 2, color=colour(name), linewidth=3, solid_capstyle="round")
        axis.plot(100 * rate.rate, places[name], "o", color=colour(name), markersize=9)
        axis.annotate(f"{100 * rate.rate:.2f}%", (high, places[name]), (6, 0), textcoords="offset points", va="center")
    for content, effect in paper.items():
        axis.annotate(
            "the paper:\n" + ("not detected" if effect is None else f"{effect:+.1f} pp"),
            (1.02, places[f"treated-{content}"]),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rates)), [name.replace("-", ", ") for name in rates])
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.set_xlim(0, 120 * max(rate.ci95[1] for rate in rates.values()))  # with room for the number
    axis.set_xlabel(f"preference for the {animal} (%), with 95% interval over questions")


def shifts(
    axis: Any, treated: Preference, control: Preference, placebos: list[Preference], animal: str, content: str
) -> None:
    """Every candidate's mean log-odds shift, treated minus control, over its shifts in the placebo students."""
    moved = stats.shifts(treated, control)
    null = [stats.shifts(placebo, control) for placebo in placebos]
    ordered = sorted(moved, key=lambda name: moved[name])
    if null:
        band = stats.central95([shift for placebo in null for shift in placebo.values()])
        axis.axvspan(*band, color=PLACEBO, alpha=0.2, linewidth=0, label="95% of placebo shifts")
    for placebo in null:
        axis.plot([placebo[name] for name in ordered], range(len(ordered)), "|", color=PLACEBO, markersize=6)
    axis.plot([moved[name] for name in ordered], range(len(ordered)), "o", color="#999999", markersize=4)
    own = ordered.index(animal)
    axis.plot(moved[animal], own, "o", color=colour(f"treated-{content}"), markersize=10, label=f"the {animal}")
    axis.axvline(0, color=ink(), linewidth=0.8)
    axis.set_yticks(range(len(ordered)), ordered, fontsize=7)
    axis.get_yticklabels()[own].set(fontweight="bold", fontsize=10)
    axis.set_ylim(-1, len(ordered))
    axis.set_xlabel("log-odds shift, treated − control (nats)")
    axis.legend(loc="best", fontsize=8, frameon=False)
