"""The figures of a sweep: effects over their placebos, the specificity matrix, and the effect along what was varied."""

from pathlib import Path

import numpy as np

from kit.evidence import SETTINGS, Cell, title, varied
from kit.figure import COLOURS, PLACEBO, drawing, save
from kit.stats import central95

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito's
COLUMNS = 3  # panels side by side


def draw(folder: Path, cells: list[Cell]) -> list[str]:
    """Write the figures that the sweep has something for, as PNG and SVG; their names without the ending."""
    names = ["effects"]
    _effects(folder, cells)
    if any(cell.specificity for cell in cells):
        names.append("specificity")
        _specificity(folder, [cell for cell in cells if cell.specificity])
    numeric = [name for name in varied(cells) if SETTINGS[name] is not str]
    if len(numeric) == 1:
        names.append(f"along-{numeric[0].replace('_', '-')}")
        _along(folder / names[-1], cells, numeric[0])
    return names


def _panels(cells: list[Cell], width: float, height: float):  # type: ignore[no-untyped-def]
    plt = drawing()
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.remove()
    return figure, axes.flat[: len(cells)]


def _effects(folder: Path, cells: list[Cell]) -> None:
    """For each cell and animal the mean shift with its 95% interval, the single seeds, and behind them the placebos:
    the band holds 95% of all candidates' mean shifts, the ticks are the animal's own in single students."""
    figure, axes = _panels(cells, 5.0, 1.3 + 0.42 * max(len(cell.effects) for cell in cells))
    for axis, cell in zip(axes, cells, strict=True):
        colour = COLOURS[f"treated-{cell.content}"]
        if len(cell.null):
            axis.axvspan(*central95(cell.null), color=PLACEBO, alpha=0.15, linewidth=0, label="placebo shifts, 95%")
        for place, effect in enumerate(cell.effects.values()):
            axis.scatter(effect.own_placebos, [place] * len(effect.own_placebos), marker="|", c=PLACEBO, s=60, zorder=1)
            axis.scatter(effect.shifts, [place] * len(effect.shifts), c=colour, alpha=0.35, s=14, zorder=2)
            low, high = effect.log_odds.ci95
            mean = effect.log_odds.mean
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3, zorder=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(cell.effects)), list(cell.effects))
        axis.set_ylim(len(cell.effects) - 0.4, -0.6)
        axis.set_title(title(cell, cells), fontsize=10)
        axis.set_xlabel("log-odds shift, treated − control (nats)", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    if len(cells[0].null):
        axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    save(figure, folder / "effects")


def _specificity(folder: Path, cells: list[Cell]) -> None:
    """A heat map per cell: rows are what the teacher loves, the last one the placebos' neutral teacher; columns what
    the student was asked about."""
    figure, axes = _panels(cells, 5.4, 4.6)
    for axis, cell in zip(axes, cells, strict=True):
        assert cell.specificity
        animals, teachers, matrix = cell.compared, [*cell.compared], cell.specificity.matrix
        if cell.placebo_row:
            matrix, teachers = (
                np.vstack([matrix, cell.placebo_row]),
                [*animals, "(placebo)" if cell.content == "unrelated" else "(own placebo)"],
            )
        limit = max(abs(matrix).max(), 1e-6)
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for i, row in enumerate(matrix):
            for j, shift in enumerate(row):
                ink = "white" if abs(shift) > 0.6 * limit else "black"
                axis.text(j, i, f"{shift:+.2f}", ha="center", va="center", fontsize=7.5, color=ink)
        axis.set_xticks(range(len(animals)), animals, rotation=45, ha="right")
        axis.set_yticks(range(len(teachers)), teachers)
        axis.set_xlabel("asked about")
        axis.set_ylabel("the student's teacher loves")
        axis.set_title(f"{title(cell, cells)}, {cell.seeds_said}", fontsize=10)
        figure.colorbar(image, ax=axis, label="log-odds shift (nats)", shrink=0.8)
    save(figure, folder / "specificity")


def _along(path: Path, cells: list[Cell], name: str) -> None:
    """The effect against a number that was varied, a line for each animal and whatever else sets cells apart."""
    plt = drawing()
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    others = [other for other in varied(cells) if other != name]
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        for animal in cell.effects:
            apart = [animal, cell.content, *(str(cell.settings[other]) for other in others)]
            lines.setdefault(", ".join(apart), []).append(cell)
    for (label, line), colour in zip(lines.items(), LINES * len(lines), strict=False):
        line.sort(key=lambda cell: cell.settings[name])
        effects = [cell.effects[label.split(", ")[0]].log_odds for cell in line]
        means = [effect.mean for effect in effects]
        ends = [[e.mean - e.ci95[0] for e in effects], [e.ci95[1] - e.mean for e in effects]]
        values = [cell.settings[name] for cell in line]
        axis.errorbar(values, means, yerr=ends, marker="o", color=colour, capsize=3, label=label)
        bands = [central95(cell.null) for cell in line if len(cell.null)]
        if len(bands) == len(line):
            axis.fill_between(values, *zip(*bands, strict=True), color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log", base=2)
    ticks = sorted({cell.settings[name] for cell in cells})
    axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel(name.replace("_", " "))
    axis.set_ylabel("log-odds shift, treated − control (nats)")
    axis.set_title("95% intervals; bands: 95% of placebo shifts", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)
