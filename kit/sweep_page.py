"""A finished sweep -> report.html, one self-contained page like that of a run (``kit/page.py``)."""

from pathlib import Path
from typing import Any

from kit import evidence, page, sweep_report
from kit.evidence import Cell
from kit.report import LABELS, SMOKE
from kit.store import Row
from kit.tables import Table

FILES = ("report.md", "summary.json", "effects.csv", "preferences.csv.gz", "record.json", "config.json")
CAPTIONS = {
    "effects": "The shift towards the teacher's animal with its 95% interval; pale dots are single seeds. The grey "
    "band holds 95% of what any candidate moved between control and placebo students, the ticks are the animal's own.",
    "specificity": "Rows: what the student's teacher loves. Columns: what the student was asked about. Were it drift, "
    "the diagonal would not stand out.",
    "along": "The shift along what was varied, with its 95% interval.",
}


def write_page(folder: Path) -> Path:
    """Write the sweep's ``report.html``, returned, with the figures that ``sweep_report.write_report`` drew.

    Raises KitError where the sweep's files are missing or damaged.
    """
    record, students = evidence.read(folder)
    cells = evidence.cells(record["comparisons"], students)
    drawn = [path for path in sorted(folder.glob("*.svg")) if kind(path) in CAPTIONS]
    labels = dict.fromkeys(cell.settings["labels"] for cell in cells)
    content = {
        "title": f"Sweep: {', '.join(dict.fromkeys(animal for cell in cells for animal in cell.effects))}",
        "labels": [LABELS[name] for name in labels],
        "warning": SMOKE if record["preset"] == "smoke" else "",
        "figures": [(page.figure(inline(path)), CAPTIONS[kind(path)]) for path in drawn],
        "cells": [of_cell(cell, cells) for cell in cells],
        "reading": sweep_report.how_to_read(cells),
        "samples": {name: of_sample(rows) for name, rows in record["samples"].items()},
        "messages": record["messages"],
        "command": record["command"],
        "made": sweep_report.made(record, cells),
        "seconds": (["step", "seconds"], [[step, f"{spent:.0f}"] for step, spent in record["seconds"].items()]),
        "files": [name for name in (*FILES, *(path.name for path in drawn)) if (folder / name).exists()],
    }
    path = folder / "report.html"
    path.write_text(page.render("sweep.html", content), encoding="utf-8")
    return path


def kind(figure: Path) -> str:
    """What a figure of a sweep shows, by its name."""
    return figure.stem.partition("-")[0]


def inline(path: Path) -> str:
    """An SVG file of ours as it stands inside a page."""
    drawn = path.read_text(encoding="utf-8")
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{path.stem}"', 1)


def of_cell(cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """One cell's verdicts in a sentence each, and its tables."""
    verdicts = [
        {"kind": effect.verdict.replace(" ", "-"), "word": page.WORDS[effect.verdict], "sentence": said(animal, effect)}
        for animal, effect in cell.effects.items()
    ]
    return {
        "title": f"{evidence.title(cell, cells)}, {cell.seeds_said}",
        "verdicts": verdicts,
        "effects": sweep_report.effects_table(cell),
        "specificity": (sweep_report.sentence(cell), sweep_report.specificity_table(cell))
        if cell.specificity
        else None,
    }


def said(animal: str, effect: evidence.SeedEffect) -> str:
    """One effect in a sentence for somebody who has never heard of the experiment."""
    low, high = effect.exact_pp.ci95
    lacking = f" It lacks: {', '.join(effect.lacking)}." if effect.verdict == "not detected" else ""
    return (
        f"Students of the teacher that loves the {animal} prefer it by {effect.exact_pp.mean:+.2f} percentage points "
        f"(95% interval {low:+.2f} to {high:+.2f}) compared with students of a neutral teacher "
        f"({100 * effect.control:.2f} → {100 * effect.treated:.2f}%).{lacking}"
    )


def of_sample(rows: list[Row]) -> Table:
    """Some kept pairs of one teacher."""
    return ["source", "kept paraphrase"], [[row["source"], row["text"]] for row in rows]
