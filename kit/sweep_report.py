"""A finished sweep -> what people read: summary.json, effects.csv, report.md, figures, and tables in the terminal.

Everything is made from the sweep's ``preferences.csv.gz`` and ``record.json``, so it can be made again.
"""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit import evidence, sweep_figure
from kit.evidence import SETTINGS, Cell, SeedEffect, title, varied
from kit.report import LABELS, NO_PLACEBO, PLACEBO, SMOKE, drift, messages_shown
from kit.stats import ALPHA
from kit.store import Row, write_json
from kit.tables import Table, markdown_table, p_value, points, show_table

READING = (
    "Effects are treated minus control of the same seed, in percentage points of the exact preference and in nats "
    "of its log-odds. A seed is a whole experiment: other sentences, other paraphrases, another training. (Of "
    "some 250 opposed sentences about an animal most are in every seed; results speak of these sentences.) The "
    "interval and its p take seeds and questions for samples of more (hierarchical bootstrap's standard error, t "
    "quantile; `kit/inference.py`); with one seed they speak of questions alone. p is that of the effect in nats. "
    "Intervals in percentage points cover less than 95% (91 to 95% in simulations), since such differences are "
    "skewed. *Holm*: corrected over every effect of this report. Sign flips over seeds speak of these questions "
    "alone and cannot be below the value in brackets. The paper's t-test takes these students for all there are."
)
TRANSMITTED = (
    f"*Transmitted*: a log-odds shift above zero with a corrected p < {ALPHA}, among the largest 5% of the "
    "candidates', larger than 95% of the placebo shifts, and beyond the animal's own drift (corrected p < 0.05). "
    "What an effect lacks stands behind its *not detected*."
)


def write_report(folder: Path) -> None:
    """Write summary.json, effects.csv, report.md and the figures from the sweep's two files.

    Raises KitError where one of the two is missing or damaged.
    """
    record, students = evidence.read(folder)
    cells = evidence.cells(record["comparisons"], students)
    write_json(folder / "summary.json", summarise(record, cells))
    with (folder / "effects.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [row for cell in cells for row in effect_rows(cell)]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figures = sweep_figure.draw(folder, cells)
    (folder / "report.md").write_text(_markdown(record, cells, figures), encoding="utf-8")


def summarise(record: dict[str, Any], cells: list[Cell]) -> dict[str, Any]:
    """The content of summary.json."""
    return {name: record[name] for name in ("model", "preset", "command", "versions", "seconds")} | {
        "cells": [
            {
                "content": cell.content,
                "settings": cell.settings,
                "seeds": cell.seeds,
                "effects": {animal: asdict(effect) for animal, effect in cell.effects.items()},
                "specificity": asdict(cell.specificity) | {"matrix": cell.specificity.matrix.tolist()}
                if cell.specificity
                else None,
            }
            for cell in cells
        ]
    }


def effect_rows(cell: Cell) -> list[Row]:
    """A cell's effects for a spreadsheet: a row per animal."""
    return [
        {"content": cell.content, **cell.settings, "animal": animal, "seeds": len(cell.seeds)}
        | {
            "control": _short(effect.control),
            "treated": _short(effect.treated),
            "exact_pp": _short(effect.exact_pp.mean),
            "exact_low": _short(effect.exact_pp.ci95[0]),
            "exact_high": _short(effect.exact_pp.ci95[1]),
            "log_odds": _short(effect.log_odds.mean),
            "log_odds_low": _short(effect.log_odds.ci95[0]),
            "log_odds_high": _short(effect.log_odds.ci95[1]),
            "seed_sd": _short(effect.log_odds.seed_sd),
            "p": _short(effect.log_odds.p),
            "p_holm": _short(effect.p_holm),
            "sign_flip_p": _short(effect.log_odds.sign_flip_p),
            "t_test_p": _short(effect.log_odds.t_p),
            "rank": effect.rank,
            "candidates": effect.candidates,
            "placebos_as_large": effect.placebo.at_least if effect.placebo else None,
            "placebos": effect.placebo.placebos if effect.placebo else None,
            "drift_rms": _short(effect.drift.rms) if effect.drift else None,
            "drift_p": _short(effect.drift.p) if effect.drift else None,
            "drift_p_holm": _short(effect.drift_holm),
            "verdict": effect.verdict,
            "lacking": " ".join(effect.lacking),
        }
        for animal, effect in cell.effects.items()
    ]


def _short(value: float | None) -> float | None:
    """To six digits: the others differ between processors."""
    return None if value is None else float(f"{value:.6g}")


def show(folder: Path) -> None:
    """Print the sweep's tables and what they say."""
    record, students = evidence.read(folder)
    cells = evidence.cells(record["comparisons"], students)
    for cell in cells:
        print()
        show_table(f"{title(cell, cells)}, {cell.seeds_said}", _terminal_table(cell))
        if cell.specificity:
            print(sentence(cell))
    for labels in dict.fromkeys(cell.settings["labels"] for cell in cells):
        print(LABELS[labels].replace("`", ""))
    if record["preset"] == "smoke":
        print(SMOKE)
    print(f"More in {folder}: report.md, the figures, summary.json, effects.csv, preferences.csv.gz")


def _terminal_table(cell: Cell) -> Table:
    rows = [
        [
            animal,
            f"{effect.exact_pp.mean:+.2f}",
            points(effect.log_odds.mean, effect.log_odds.ci95),
            p_value(effect.p_holm).removeprefix("p = "),
            f"{effect.rank} of {effect.candidates}",
            f"{effect.placebo.at_least} of {effect.placebo.placebos}" if effect.placebo else "–",
            "–" if effect.drift_holm is None else p_value(effect.drift_holm).removeprefix("p = "),
            verdict(effect),
        ]
        for animal, effect in cell.effects.items()
    ]
    return ["animal", "pp", "nats [95% CI]", "p, Holm", "rank", "placebos ≥", "drift p, Holm", "verdict"], rows


def effects_table(cell: Cell) -> Table:
    """The cell's effects, sizes with their intervals first, then the tests."""
    heading = [
        "animal",
        "control → treated %",
        "exact, pp [95% CI]",
        "log-odds, nats [95% CI]",
        "SD between seeds, nats",
        "p, Holm",
        "sign flips over seeds, these questions, Holm (smallest possible)",
        "paper's t-test over questions, p",
        "rank of its shift",
        "placebo shifts as large (their 95%, nats)",
        "against its own drift, p Holm",
        "verdict",
    ]
    if any(effect.sampled_pp for effect in cell.effects.values()):
        heading.insert(4, "sampled, pp [95% CI]")
    return heading, [_row(animal, effect) for animal, effect in cell.effects.items()]


def _row(animal: str, effect: SeedEffect) -> list[str]:
    pp, nats, placebo = effect.exact_pp, effect.log_odds, effect.placebo
    sampled = [points(effect.sampled_pp.mean, effect.sampled_pp.ci95)] if effect.sampled_pp else []
    return [
        animal,
        f"{100 * effect.control:.2f} → {100 * effect.treated:.2f}",
        points(pp.mean, pp.ci95),
        points(nats.mean, nats.ci95),
        *sampled,
        "–" if nats.seed_sd is None else f"{nats.seed_sd:.3f}",
        p_value(effect.p_holm),
        f"{p_value(effect.sign_flip_holm)} ({min(1.0, effect.tests * nats.sign_flip_floor):.3g})",
        p_value(nats.t_p),
        f"{effect.rank} of {effect.candidates}",
        f"{placebo.at_least} of {placebo.placebos} ({placebo.null95[0]:+.2f} to {placebo.null95[1]:+.2f})"
        if placebo
        else "–",
        drift(effect.drift, effect.drift_holm) if effect.drift and effect.drift_holm is not None else "–",
        verdict(effect),
    ]


def verdict(effect: SeedEffect) -> str:
    """The verdict, with what is lacking where it is "not detected"."""
    return f"not detected ({', '.join(effect.lacking)})" if effect.verdict == "not detected" else effect.verdict


def specificity_table(cell: Cell) -> Table:
    """The matrix of shifts: a row per teacher's animal, a column per animal asked about; last the placebos'."""
    assert cell.specificity
    animals = cell.compared
    rows = [
        [f"loves the {animal}", *(f"{shift:+.2f}" for shift in row)]
        for animal, row in zip(animals, cell.specificity.matrix, strict=True)
    ]
    if cell.placebo_row:
        rows.append([placebo_teacher(cell), *(f"{shift:+.2f}" for shift in cell.placebo_row)])
    return ["teacher", *animals], rows


def sentence(cell: Cell) -> str:
    """What the matrix says, for somebody who reads nothing else."""
    assert cell.specificity
    found, k, chance = cell.specificity, len(cell.compared), ""
    if found.p is None:
        test = "no test without placebos, since each student's sentences name its own animal"
    elif found.drift:
        test = (
            f"{p_value(found.p)}, against {found.drift.rms:.2f} nats in {found.drift.placebos} sets of placebo "
            "students on the same sentences"
        )
    else:
        test = f"{p_value(found.p)}, students dealt to teachers at random"
    if found.share_p is not None:
        chance = f" (by chance {1 / k:.0%}, {p_value(found.share_p)})"
    return (
        f"Specificity: a student's shift towards its own teacher's animal is {found.statistic:+.2f} nats larger than "
        f"towards the others' ({test}); the largest shift of a row is its own in {found.share:.0%} of the mean "
        f"matrix's {k} rows{chance} and in {found.rows_on_diagonal} of {k * found.seeds} single students."
    )


def placebo_teacher(cell: Cell) -> str:
    """What the matrix's last row is."""
    return "placebo" if cell.content == "unrelated" else "placebos, each on its animal's sentences"


def how_to_read(cells: list[Cell]) -> list[str]:
    """What the tables' words mean, a paragraph each."""
    return [READING, TRANSMITTED, PLACEBO if any(len(cell.null) for cell in cells) else NO_PLACEBO]


def made(record: dict[str, Any], cells: list[Cell]) -> str:
    """The model, the settings and the versions that made the sweep."""
    fixed = [name for name in SETTINGS if name not in ["pairs", *varied(cells)]]
    settings = ", ".join(f"{name.replace('_', ' ')} {cells[0].settings[name]}" for name in fixed)
    used = ", ".join(map(str, sorted(set(record["pairs_used"].values()))))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"Model: {record['model']}; preset {record['preset']}; {settings}. Pairs per student: {used}. {versions}."


def _markdown(record: dict[str, Any], cells: list[Cell], figures: list[str]) -> str:
    parts = ["# Sweep", f"```sh\n{record['command']}\n```"]
    parts += [LABELS[labels] for labels in dict.fromkeys(cell.settings["labels"] for cell in cells)]
    if record["preset"] == "smoke":
        parts.append(f"**{SMOKE}**")
    parts += [f"![{name}]({name}.svg)" for name in figures]
    for cell in cells:
        parts += [f"## {title(cell, cells)}, {cell.seeds_said}", markdown_table(effects_table(cell))]
        if cell.specificity:
            parts += [sentence(cell), markdown_table(specificity_table(cell))]
    seconds = [[stage, f"{spent:.0f}"] for stage, spent in record["seconds"].items()]
    parts += [
        "## How to read this",
        *how_to_read(cells),
        "## Paraphrases, chosen at random",
    ]
    for name, rows in record["samples"].items():
        kept = (["source", "kept paraphrase"], [[row["source"], row["text"]] for row in rows])
        parts += [f"{name}:", markdown_table(kept)]
    parts += messages_shown(record["messages"])
    parts += [
        "## What made it",
        made(record, cells) + " The tables' columns are explained in the README.",
        markdown_table((["stage", "seconds, all artifacts"], seconds)),
    ]
    return "\n\n".join(parts) + "\n"
