"""Several finished runs and sweeps -> comparison.html, one page with all their effects.

python run.py report results/*/
"""

import os
from pathlib import Path
from typing import Any

from kit import evidence, page, page_figures, report
from kit.errors import KitError
from kit.tables import points

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
    drawn = [
        (f"{number}  {row['name']}", row["shift"], row["seeds"], row["verdict"])
        for number, row in enumerate(rows, start=1)
        if row["drawn"]
    ]
    path = within / "comparison.html"
    content = {
        "title": f"{len({row['run'] for row in rows})} runs compared",
        "effects": page.figure(page_figures.effects(drawn) if drawn else ""),
        "heading": [
            "animal",
            "sentences",
            "labels",
            "preset",
            "seeds",
            "effect, pp [95% CI]",
            "nats [95% CI]",
            "verdict",
        ],
        "rows": rows,
        "skipped": [str(folder) for folder in skipped],
    }
    path.write_text(page.render("comparison.html", content), encoding="utf-8")
    return path


def compared(folder: Path, name: str) -> list[dict[str, Any]]:
    """A row for each effect of one run or sweep, called ``name``."""
    rows: list[dict[str, Any]] = []

    def add(animal: str, sentences: str, labels: str, seeds: int, pp: Estimate, nats: Estimate, verdict: str) -> None:
        smoke = record["preset"] == "smoke"
        said = "smoke: means nothing" if smoke else verdict
        cells = [
            animal,
            sentences,
            labels,
            record["preset"],
            str(seeds),
            *(points(one[0], one[1:]) for one in (pp, nats)),
        ]
        effect = {
            "name": f"{animal}, {sentences}",
            "shift": nats,
            "seeds": seeds,
            "verdict": verdict,
            "drawn": not smoke,
        }
        link = f"{name}/report.html" if (folder / "report.html").exists() else ""
        rows.append(effect | {"run": name, "link": link, "cells": [*cells, said]})

    if (folder / "preferences.csv.gz").exists():
        record, students = evidence.read(folder)
        cells = evidence.cells(record["comparisons"], students)
        for cell in cells:
            for animal, effect in cell.effects.items():
                pp, nats = ((measure.mean, *measure.ci95) for measure in (effect.exact_pp, effect.log_odds))
                labels, seeds = cell.settings["labels"], len(cell.seeds)
                add(animal, evidence.title(cell, cells), labels, seeds, pp, nats, effect.verdict)
    else:
        record, preferences = report.read(folder)
        for content, one in report.summarise(record, preferences)["effects"].items():
            pp, nats = (one["exact_pp"], *one["exact_ci95"]), (one["log_odds"], *one["log_odds_ci95"])
            add(record["animal"], content, record["labels"], 1, pp, nats, one["verdict"])
    return rows
