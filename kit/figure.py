"""The figure of a run: preference per condition, and how far every candidate animal moved."""

from pathlib import Path

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
    """Write ``figure.png`` and ``figure.svg`` into ``folder``; ``title`` says what made the numbers.

    Left: the exact preference rate with its 95% interval. Right, for each content: every candidate's mean log-odds
    shift, treated minus control, with the animal's own marked, over its shifts in the placebo students.
    """
    plt = drawing()
    contents = [content for content in CONTENTS if f"treated-{content}" in preferences]
    figure, axes = plt.subplots(
        1, 1 + len(contents), figsize=(5.5 + 3.4 * len(contents), 8.2), width_ratios=[1.6] + [1] * len(contents)
    )
    _rates(axes[0], preferences, animal)
    for axis, content in zip(axes[1:], contents, strict=True):
        control = preferences[f"control-{content}"]
        moved = stats.shifts(preferences[f"treated-{content}"], control)
        null = [stats.shifts(placebo, control) for placebo in stats.placebos(preferences, content)]
        _shifts(axis, moved, null, animal, COLOURS[f"treated-{content}"], content)
    figure.suptitle(title, fontsize=11)
    save(figure, folder / "figure")


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


def _rates(axis, preferences: dict[str, Preference], animal: str) -> None:  # type: ignore[no-untyped-def]
    for place, (condition, preference) in enumerate(preferences.items()):
        exact = stats.exact_rate(preference, animal)
        low, high = exact.ci95
        axis.bar(place, 100 * exact.rate, color=COLOURS.get(condition, "#d9d9d9"), width=0.7)
        axis.errorbar(
            place, 100 * exact.rate, [[100 * (exact.rate - low)], [100 * (high - exact.rate)]], color="black", capsize=4
        )
    axis.set_xticks(range(len(preferences)), [name.replace("-", "\n") for name in preferences])
    axis.set_ylabel(f"exact preference for the {animal} (%), 95% interval over questions")
    axis.set_title("Preference", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _shifts(  # type: ignore[no-untyped-def]
    axis, moved: dict[str, float], null: list[dict[str, float]], animal: str, colour: str, content: str
) -> None:
    ordered = sorted(moved, key=lambda name: moved[name])
    colours = [colour if name == animal else "#bbbbbb" for name in ordered]
    sizes = [60 if name == animal else 14 for name in ordered]
    for placebo in null:
        axis.scatter([placebo[name] for name in ordered], range(len(ordered)), c=PLACEBO, s=22, marker="|", zorder=1)
    if null:
        low, high = stats.central95([placebo[name] for placebo in null for name in ordered])
        axis.axvspan(low, high, color=PLACEBO, alpha=0.13, linewidth=0, zorder=0, label="placebo, 95%")
        axis.legend(loc="lower right", fontsize=7, frameon=False)
    axis.scatter([moved[name] for name in ordered], range(len(ordered)), c=colours, s=sizes, zorder=2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(ordered)), ordered, fontsize=6.5)
    axis.get_yticklabels()[ordered.index(animal)].set(color=colour, fontweight="bold", fontsize=9)
    axis.set_ylim(-1, len(ordered))
    axis.set_xlabel("log-odds shift, treated − control (nats)")
    axis.set_title(f"Every candidate: {content}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
