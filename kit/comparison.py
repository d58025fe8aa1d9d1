"""Several finished runs and sweeps -> comparison.html, one page with all their effects.

python run.py report results/*/
"""

import os
from pathlib import Path
from typing import Any

from kit import evidence, page, page_figures, report
from kit.errors import KitError
from kit.report import points

Estimate = tuple[float, float, float]  # with its 95% interval


def write_comparison(folders: list[Path]) -> Path:
    """Write one page that compares the effects of several runs and sweeps, in the folder that holds them all; its path.

    A folder without a finished run is named and left out. Raises KitError where none is left, or files are damaged.
    """
    within = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    skipped = [folder for folder in folders if not (folder / "record.json").exists()]
    rows: list[dict[str, Any]] = []
    for folder in folders:
        if folder not in skipped:
            rows += compared(folder, os.path.relpath(folder.resolve(), within))
    if not rows:
        raise KitError(f"{folders[0]}: not a finished run. Give folders such as results/<run>.")
    path = within / "comparison.html"
    content = {
        "title": f"{len({row['run'] for row in rows})} runs compared",
        "effects": page.figure(page_figures.effects([(row["label"], row["shift"], row["verdict"]) for row in rows])),
        "heading": ["animal", "sentences", "labels", "seeds", "effect, pp [95% CI]", "nats [95% CI]", "verdict"],
        "rows": rows,
        "skipped": [str(folder) for folder in skipped],
    }
    path.write_text(page.render("comparison.html", content), encoding="utf-8")
    return path


def compared(folder: Path, name: str) -> list[dict[str, Any]]:
    """A row for each effect of one run or sweep, called ``name``."""
    found: list[tuple[list[str], Estimate, Estimate, str]] = []
    if (folder / "preferences.csv.gz").exists():
        record, students = evidence.read(folder)
        cells = evidence.cells(record["comparisons"], students)
        for cell in cells:
            for animal, effect in cell.effects.items():
                words = [animal, evidence.title(cell, cells), cell.settings["labels"], str(len(cell.seeds))]
                pp, nats = ((measure.mean, *measure.ci95) for measure in (effect.exact_pp, effect.log_odds))
                found.append((words, pp, nats, effect.verdict))
    else:
        record, preferences = report.read(folder)
        for content, one in report.summarise(record, preferences)["effects"].items():
            words = [record["animal"], content, record["labels"], "1"]
            pp, nats = (one["exact_pp"], *one["exact_ci95"]), (one["log_odds"], *one["log_odds_ci95"])
            found.append((words, pp, nats, one["verdict"]))
    return [
        {
            "run": name,
            "link": f"{name}/report.html" if (folder / "report.html").exists() else "",
            "label": f"{words[0]}, {words[1]}, {words[2]}",
            "shift": nats,
            "verdict": verdict,
            "cells": [*words, points(pp[0], pp[1:]), points(nats[0], nats[1:]), verdict],
        }
        for words, pp, nats, verdict in found
    ]
