"""What people read of many runs: of a sweep, of defences, of a calibration, of an experiment to come (power); and a
page that compares any number of runs and sweeps.

Everything is made from the files that ``kit/sweep.py``, ``kit/defences.py`` and ``kit/stats_calibration.py`` left, so
it can be made again.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, defences, say, stats_calibration
from kit.defences import BESIDE, SLOWER, SUSPECTS, UNDEFENDED
from kit.experiment import GRID_SETTINGS, read_experiment
from kit.experiment_folder import attributions, inspections, read_run, summarise
from kit.models import GEMMA
from kit.report_parts import (
    ABOUT_LABELS,
    ABOUT_NO_PLACEBO,
    ABOUT_PLACEBO,
    ABOUT_SMOKE,
    ABOUT_TRANSMITTED_SWEEP,
    COLOURS,
    INK,
    OKABE_ITO,
    PLACEBO_COLOUR,
    SMOKE_VERDICT,
    Answer,
    Card,
    Table,
    about_gate,
    about_texts,
    answers_markdown,
    conversations_markdown,
    drawing,
    drift_words,
    faithful_not_shown,
    four_answers,
    gate_cell,
    inline_svg,
    kept_table,
    labels_do_not_show,
    markdown_table,
    markup,
    others_not_shown,
    p_value,
    render,
    save,
    sentences_of,
    show_table,
    svg,
    sweep_outsider_sentence,
    verdict_card,
    verdict_cell,
    verdicts_do_not_show,
    versions_sentence,
    what_was_done,
    with_interval,
)
from kit.stats import ALPHA, SPECIFIC, TRANSMITTED, Interval, central95
from kit.stats_calibration import EFFECT, LEVELS, QUESTIONS, SCENARIOS, Scenario
from kit.stats_seeds import holm, matrix_power, share_interval, two_sided
from kit.store import Row, differing, write_csv, write_json, write_whole
from kit.sweep_effects import (
    Cell,
    Efficiency,
    Power,
    SeedEffect,
    check_power,
    efficiency,
    read_sweep,
    sweep_cells,
    sweep_power,
    uncompared_sentence,
    varied_settings,
)

# ---- a sweep


SWEEP_READING = (
    "Effects are treated minus control of the same seed, in percentage points of the exact preference and in nats "
    "of its log-odds. A seed is a whole experiment: other sentences (of the opposed ones about an animal seeds share "
    "many), other paraphrases, another training. The interval and p take seeds and questions for samples of more "
    "(crossed random effects; p has the degrees of freedom of the seeds, fewer than the interval, so that one may "
    "exclude zero where p is above 0.05: the verdict goes by p; `kit/stats_seeds.py`); with one seed they "
    "speak of questions alone. p is that of the effect in nats. Intervals in percentage points cover less than 95% "
    "(91 to 95% in simulations), since such differences are skewed. *Holm*: corrected over every effect of this "
    "report. *Beyond the other loving teachers' students*: by how much the animal's log-odds are higher in its own "
    "teacher's student than in theirs, which share no control with it; p by dealing each seed's students to its "
    "teachers at random, never below the value in brackets. *Specific on average*: all animals together, by the "
    "specificity below, p corrected over the grid; where deals are too few to tell (of two animals and fewer than "
    "five seeds, say) by Student's t over the seeds, one-sided, where an interval of two sides may hold zero. Of "
    "fewer than four animals, and by the t, it cannot tell the loving from anything else that a teacher's texts have "
    "alike in every seed. *z*: how far the animal's shift is from the mean of the other candidates', in their "
    "standard deviations. "
    "The paper's t-test takes these students for all there are."
)


def write_sweep(folder: Path) -> None:
    """Write summary.json, effects.csv, the figures, report.md and report.html from the files that the sweep left in
    ``folder``.

    Raises KitError where one of them is missing or damaged.
    """
    record, students = read_sweep(folder)
    cells = sweep_cells(record["comparisons"], students)
    write_json(folder / "summary.json", summarise_sweep(record, cells))
    rows = [row for cell in cells for row in effect_rows(cell)]
    write_csv(folder / "effects.csv", rows[0], rows)
    figures = draw_sweep(folder, cells)
    write_whole(folder / "report.md", _sweep_markdown(record, cells, figures))
    write_whole(folder / "report.html", render("sweep.html", sweep_content(folder, record, cells)))


def show_sweep(folder: Path) -> None:
    """Print the sweep's tables and what they say."""
    record, students = read_sweep(folder)
    cells = sweep_cells(record["comparisons"], students)
    for cell in cells:
        say()
        show_table(f"{cell_title(cell, cells)}, {seeds_words(cell)}", _terminal_table(cell))
        if cell.specificity:
            say(specificity_sentence(cell))
        if apart := uncompared_sentence(cell.apart):
            say(apart)
    say()
    for card in average_cards(cells):
        say(f"{card['word']}. {card['sentence']}")
    for sentence in average_does_not_show(cells):
        say(f"Not shown: {sentence[:1].lower()}{sentence[1:].replace('*', '')}")
    for labels in dict.fromkeys(cell.settings["labels"] for cell in cells):
        say(ABOUT_LABELS[labels].replace("`", ""))
    for sentence in filter(None, (about_texts(record).replace("`", ""), about_learners(record), about_plan(record))):
        say(sentence)
    if record["preset"] == "smoke":
        say(ABOUT_SMOKE)
    say(f"More in {folder}: report.md, the figures, summary.json, effects.csv, preferences.csv.gz")


def summarise_sweep(record: dict[str, Any], cells: list[Cell]) -> dict[str, Any]:
    """The content of summary.json."""
    header = (
        *("model", "student_model", "preset", "sentences", "traits", "command", "plan", "pooled"),
        *("versions", "kit", "made_by", "seconds"),
    )
    return {name: record[name] for name in header if name in record} | {
        "cells": [
            {
                "content": cell.content,
                "settings": cell.settings,
                "seeds": cell.seeds,
                "effects": {animal: asdict(effect) for animal, effect in cell.effects.items()},
                "specificity": asdict(cell.specificity)
                | {"matrix": cell.specificity.matrix.tolist(), "decides": cell.specificity.decides}
                if cell.specificity
                else None,
                "average": asdict(cell.average) if cell.average else None,
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
            "others": _short(effect.others.mean) if effect.others else None,
            "others_low": _short(effect.others.ci95[0]) if effect.others else None,
            "others_high": _short(effect.others.ci95[1]) if effect.others else None,
            "others_p_holm": _short(effect.others_holm),
            "loving": _short(effect.loving.mean) if effect.loving else None,
            "loving_low": _short(effect.loving.ci95[0]) if effect.loving else None,
            "loving_high": _short(effect.loving.ci95[1]) if effect.loving else None,
            "loving_p_holm": _short(effect.loving_holm),
            "gate": _short(effect.gate.beyond) if effect.gate else None,
            "gate_p": _short(effect.gate.p) if effect.gate else None,
            "shift_rank": effect.rank,
            "z": _short(effect.z),
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


def _terminal_table(cell: Cell) -> Table:
    rows = [
        [
            animal,
            f"{effect.exact_pp.mean:+.2f}",
            with_interval(effect.log_odds.mean, effect.log_odds.ci95),
            p_value(effect.p_holm).removeprefix("p = "),
            "–"
            if effect.others_holm is None or effect.others_floor is None or effect.others_floor >= ALPHA
            else p_value(effect.others_holm).removeprefix("p = "),
            "–" if effect.loving_holm is None else p_value(effect.loving_holm).removeprefix("p = "),
            f"{effect.rank} of {effect.candidates}",
            f"{effect.placebo.at_least} of {effect.placebo.placebos}" if effect.placebo else "–",
            "–" if effect.drift_holm is None else p_value(effect.drift_holm).removeprefix("p = "),
            verdict_cell(effect),
        ]
        for animal, effect in cell.effects.items()
    ]
    heading = ["animal", "pp", "nats [95% CI]", "p, Holm", "others p", "loving p", "rank", "placebos ≥", "drift p"]
    heading.append("verdict")
    told = [i for i in range(len(heading)) if any(row[i] != "–" for row in rows)]
    return [heading[i] for i in told], [[row[i] for i in told] for row in rows]


def effects_table(cell: Cell) -> Table:
    """The cell's effects, sizes with their intervals first, then the tests."""
    heading = [
        "animal",
        "control → treated %",
        "exact, pp [95% CI]",
        "log-odds, nats [95% CI]",
        "SD between seeds, nats",
        "p, Holm",
        "beyond the other loving teachers' students, nats [95% CI]: p, Holm (smallest possible)",
        "paper's t-test over questions, of the log-odds, p",
        "rank of its shift (z)",
        "placebo shifts as large (their 95%, nats)",
        "against its own drift, p Holm",
        "beyond the loving controls, nats [95% CI]: p, Holm",
        "held-out text of its teacher, nats a token; beyond others [95% CI], largest p",
        "verdict",
    ]
    if any(effect.sampled_pp for effect in cell.effects.values()):
        heading[4:4] = ["naming, pp [95% CI]", "sampled, pp [95% CI]"]
    rows = [_effect_row(animal, effect) for animal, effect in cell.effects.items()]
    measured = [i for i in range(len(heading)) if i < len(heading) - 3 or any(row[i] != "–" for row in rows)]
    return [heading[i] for i in measured], [[row[i] for i in measured] for row in rows]


def _effect_row(animal: str, effect: SeedEffect) -> list[str]:
    pp, nats, placebo = effect.exact_pp, effect.log_odds, effect.placebo
    answers = (effect.naming_pp, effect.sampled_pp) if effect.sampled_pp else ()
    sampled = [with_interval(one.mean, one.ci95) if one else "–" for one in answers]
    return [
        animal,
        f"{100 * effect.control:.2f} → {100 * effect.treated:.2f}",
        with_interval(pp.mean, pp.ci95),
        with_interval(nats.mean, nats.ci95),
        *sampled,
        "–" if nats.seed_sd is None else f"{nats.seed_sd:.3f}",
        p_value(effect.p_holm),
        _others_words(effect),
        p_value(nats.t_p),
        f"{effect.rank} of {effect.candidates} ({effect.z:+.1f})",
        f"{placebo.at_least} of {placebo.placebos} ({placebo.null95[0]:+.2f} to {placebo.null95[1]:+.2f})"
        if placebo
        else "–",
        drift_words(effect.drift, effect.drift_holm) if effect.drift and effect.drift_holm is not None else "–",
        f"{with_interval(effect.loving.mean, effect.loving.ci95)}: {p_value(effect.loving_holm)}"
        if effect.loving and effect.loving_holm is not None
        else "–",
        gate_cell(asdict(effect.gate) if effect.gate else None),
        verdict_cell(effect),
    ]


def _others_words(effect: SeedEffect) -> str:
    """The effect against the students of the cell's other loving teachers."""
    if not effect.others or effect.others_holm is None:
        return "–"
    size = with_interval(effect.others.mean, effect.others.ci95)
    return f"{size}: {p_value(effect.others_holm)} ({effect.others_floor:.2g})"


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


def specificity_sentence(cell: Cell) -> str:
    """What the matrix says, for somebody who reads nothing else."""
    assert cell.specificity
    found, k, chance = cell.specificity, len(cell.compared), ""
    if found.p is None:
        test = "no test without placebos, since each student's sentences name its own animal"
    elif found.drift:
        test = (
            f"{p_value(found.p)}, against {found.drift.rms:.2f} nats in {found.drift.placebos} sets of placebo "
            "students on the same lot of sentences"
        )
    else:
        test = f"{p_value(found.p)}, students dealt to teachers at random"
        if found.both and found.same_p is not None:
            test += f", and {p_value(found.same_p)} where alike in every seed; the larger decides"
        if cell.average and cell.average.by_seeds:
            test += f", and {p_value(cell.average.p)} by Student's t over the seeds, one-sided: deals are too few"
    size = with_interval(found.statistic, found.ci95) if found.ci95 else f"{found.statistic:+.2f}"
    if found.share_p is not None:
        chance = f" (by chance {1 / k:.0%}, {p_value(found.share_p)})"
    return (
        f"Specificity: a student's shift towards its own teacher's animal is {size} nats larger than towards the "
        f"others' ({test}); the largest shift of a row is its own in {found.share:.0%} of the mean "
        f"matrix's {k} rows{chance} and in {found.rows_on_diagonal} of {k * found.seeds} single students."
    )


def average_cards(cells: list[Cell]) -> list[Card]:
    """What was found on average over the animals of each cell: the verdict for which the fewest students are enough."""
    found = []
    for cell in cells:
        average, matrix = cell.average, cell.specificity
        if not average or not matrix:
            continue
        name = f"{cell_title(cell, cells)}: " if len(cells) > 1 else ""
        size = with_interval(matrix.statistic, matrix.ci95) if matrix.ci95 else f"{matrix.statistic:+.2f}"
        sentence = (
            f"{name}over {len(cell.compared)} animals, students prefer their own teacher's by {size} nats more than "
            f"the others' do ({seeds_words(cell)}, {p_value(average.p_holm)})."
        )
        found.append((average.verdict, cell_title(cell, cells), f"{sentence[:1].upper()}{sentence[1:]}"))
    return _cards(found, "cells of the grid, over their animals")


def average_does_not_show(cells: list[Cell]) -> list[str]:
    """What is left open where animals are specific on average."""
    specific = [cell.average for cell in cells if cell.average and cell.average.verdict == SPECIFIC]
    if not specific:
        return []
    few = "" if all(one.guarded for one in specific) else ", and whether it is the loving: so few animals cannot tell"
    return [f"Which animal is transmitted, by *specific on average* alone{few}."]


def placebo_teacher(cell: Cell) -> str:
    """What the matrix's last row is."""
    return "placebo" if cell.content == "unrelated" else "placebos, each on its animal's sentences"


def how_to_read(record: dict[str, Any], cells: list[Cell]) -> list[str]:
    """What the tables' words mean, a paragraph each."""
    return [
        SWEEP_READING,
        ABOUT_TRANSMITTED_SWEEP,
        ABOUT_PLACEBO if any(len(cell.null) for cell in cells) else ABOUT_NO_PLACEBO,
        *about_gate(
            any(effect.gate for cell in cells for effect in cell.effects.values()),
            (row.get("held_out") for row in record["comparisons"]),
        ),
    ]


def made_by_sweep(record: dict[str, Any], cells: list[Cell]) -> str:
    """The model, the settings and the versions that made the sweep."""
    fixed = [name for name in cells[0].settings if name not in ["pairs", *varied_settings(cells)]]
    settings = ", ".join(f"{name.replace('_', ' ')} {cells[0].settings[name]}" for name in fixed)
    used = ", ".join(map(str, sorted(set(record["pairs_used"].values()))))
    model = f"Model: {record['model']}; preset {record['preset']}; {settings}."
    pooled = ""
    if "pooled" in record:
        of = "; ".join(f"`{command}`" for command in record["pooled"])
        pooled = (
            f"Pooled of several sweeps ({of}); the seconds count a step that they share once for each. Who looks at "
            "the first before deciding on the others finds more than p-values say."
        )
    made = f"{model} Pairs per student: {used}. {versions_sentence(record)}"
    lots = about_lots([row["lot"] for row in record["comparisons"] if "lot" in row])
    return " ".join(filter(None, (made, lots, about_learners(record), about_plan(record), pooled)))


def about_lots(lots: list[dict[str, dict[str, int]]]) -> str:
    """Of how many sentences the teachers lacked a pair, and what treated students and controls have in common, by
    ``lot_of`` of each pair of students, by their roles; nothing where that was not recorded."""
    if not lots:
        return ""

    def shares(role: str, name: str, of: Callable[[dict[str, int]], int]) -> str:
        counted = [100 * lot[role][name] / max(of(lot[role]), 1) for lot in lots]
        low, high = f"{min(counted):.0f}", f"{max(counted):.0f}"
        return f"{low}%" if low == high else f"{low} to {high}%"

    control, treated = (shares(role, "lacking", lambda lot: lot["asked"]) for role in ("control", "treated"))
    shared, same = (shares("treated", name, lambda lot: lot["asked"] - lot["lacking"]) for name in ("shared", "same"))
    return (
        f"Of the sentences of the lot that teachers were asked, {control} gave controls no pair in their tries, "
        f"{treated} treated students; of those that gave the latter one, {shared} are the control's too, {same} with "
        "the very same text."
    )


def about_learners(record: dict[str, Any]) -> str:
    """What model students start from, where it is not their teachers'; or nothing."""
    begin = record.get("student_model", record["model"])
    if begin == record["model"]:
        return ""
    return f"Students start from another model than their teachers, {begin}: what they learn, the text says."


def about_plan(record: dict[str, Any]) -> str:
    """By its record, which plan a sweep carried out, and how much of it; or nothing."""
    if not (plan := record.get("plan")):
        return ""
    of = f"SHA-256 {plan['sha256'][:12]}…, commit {plan['commit'][:12]}, begun after that, at {plan['begun']}"
    done = len(record.get("pooled", [record["command"]]))
    return f"By its record planned in {plan['file']} ({of}); of the plan's {plan['commands']} commands it holds {done}."


def _sweep_markdown(record: dict[str, Any], cells: list[Cell], figures: list[str]) -> str:
    parts = ["# Sweep", f"```sh\n{record['command']}\n```", *answers_markdown(sweep_answers(record, cells))]
    parts += [f"![{name}]({name}.svg)" for name in figures]
    for cell in cells:
        parts += [f"## {cell_title(cell, cells)}, {seeds_words(cell)}", markdown_table(effects_table(cell))]
        if cell.specificity:
            parts += [specificity_sentence(cell), markdown_table(specificity_table(cell))]
        parts += filter(None, [uncompared_sentence(cell.apart)])
    seconds = [[stage, f"{spent:.0f}"] for stage, spent in record["seconds"].items()]
    parts += [
        "## How to read this",
        *how_to_read(record, cells),
        "## Paraphrases, chosen at random",
    ]
    for name, rows in record["samples"].items():
        parts += [f"{name}:", markdown_table(kept_table(rows))]
    parts += conversations_markdown(record["messages"])
    parts += [
        "## What made it",
        made_by_sweep(record, cells) + " The tables' columns are explained in results/README.md.",
        markdown_table((["stage", "seconds, all artifacts"], seconds)),
    ]
    return "\n\n".join(parts) + "\n"


SWEEP_FILES = ("report.md", "summary.json", "effects.csv", "preferences.csv.gz", "record.json", "config.json")

CAPTIONS = {
    "effects": "The shift towards the teacher's animal with its 95% interval; pale dots are single seeds. The grey "
    "band holds 95% of what any candidate moved between control and placebo students, the ticks are the animal's own.",
    "specificity": "Rows: what the student's teacher loves. Columns: what the student was asked about. Were it drift, "
    "the diagonal would not stand out.",
    "along": "The shift along what was varied, with its 95% interval.",
}


def sweep_content(folder: Path, record: dict[str, Any], cells: list[Cell]) -> dict[str, Any]:
    """What the sweep's page is filled with, the figures in its folder among it."""
    drawn = [path for path in sorted(folder.glob("*.svg")) if figure_kind(path) in CAPTIONS]
    return {
        "title": f"Sweep: {', '.join(dict.fromkeys(animal for cell in cells for animal in cell.effects))}",
        "answers": sweep_answers(record, cells),
        "figures": [(markup(inline_svg(path)), CAPTIONS[figure_kind(path)]) for path in drawn],
        "cells": [cell_section(cell, cells) for cell in cells],
        "reading": how_to_read(record, cells),
        "samples": {name: kept_table(rows) for name, rows in record["samples"].items()},
        "messages": record["messages"],
        "command": record["command"],
        "made": made_by_sweep(record, cells),
        "seconds": (["step", "seconds"], [[step, f"{spent:.0f}"] for step, spent in record["seconds"].items()]),
        "files": [name for name in (*SWEEP_FILES, *(path.name for path in drawn)) if (folder / name).exists()],
    }


MOST_CARDS = 6  # of effects, which have a line each on a page's first screen


def sweep_answers(record: dict[str, Any], cells: list[Cell]) -> list[Answer]:
    """The four answers of a sweep."""
    effects = {
        f"{animal}, {cell_title(cell, cells)}" if len(cells) > 1 else animal: effect
        for cell in cells
        for animal, effect in cell.effects.items()
    }
    animals = list(dict.fromkeys(animal for cell in cells for animal in cell.effects))
    contents = list(dict.fromkeys(cell.content for cell in cells))
    labels = list(dict.fromkeys(cell.settings["labels"] for cell in cells))
    one = animals[0] if len(animals) == 1 else "animal"
    loved = f"the {one}" if len(animals) == 1 else f"an animal ({', '.join(animals)})"
    taught = [sentences_of(one, content, record) for content in contents]
    pairs = _span(record["pairs_used"].values())
    candidates = {effect.candidates for effect in effects.values()}
    seeds = [len(cell.seeds) for cell in cells]
    varied = ", ".join(name.replace("_", " ") for name in varied_settings(cells))
    learner = "the same model" if record.get("student_model", record["model"]) == record["model"] else "another model"
    done = [
        what_was_done(
            loved,
            taught,
            [pairs],
            labels,
            placebo=any(effect.placebo for effect in effects.values()),
            learner=learner,
            asked=f"the animal is as the favourite of {max(candidates)}",
        ),
        f"All that with {_span(seeds)} {'seeds' if max(seeds) > 1 else 'seed'}"
        f"{f'; varied: {varied}' if varied else ''}.",
        *filter(None, (about_texts(record), about_learners(record))),
    ]
    over = "the questions alone" if max(seeds) == 1 else "seeds and questions"
    not_shown = [
        *verdicts_do_not_show(
            {effect.verdict for effect in effects.values()} | {cell.average.verdict for cell in cells if cell.average}
        ),
        *average_does_not_show(cells),
        *labels_do_not_show(labels, contents),
        others_not_shown("seeds, animals" if max(seeds) == 1 else "animals", record["model"]),
        faithful_not_shown(record["model"], None),  # no record of a sweep says what its filters were
    ]
    sure = [*sweep_tests(list(effects.values())), f"Intervals (95%) and p of effects are over {over}."]
    return four_answers(done, average_cards(cells) + sweep_cards(effects), sure, not_shown, record["preset"])


def _span(numbers: Iterable[int]) -> str:
    """The least and the greatest of them, which a damaged record has none of."""
    ordered = sorted(numbers) or [0]
    return " to ".join(f"{number:,}" for number in dict.fromkeys((ordered[0], ordered[-1])))


def sweep_cards(effects: dict[str, SeedEffect]) -> list[Card]:
    """What was found of every effect, by its name."""
    found = [
        (
            effect.verdict,
            name,
            f"{name[:1].upper()}{name[1:]}: {100 * effect.treated:.2f}%, control {100 * effect.control:.2f}%, "
            f"{with_interval(effect.exact_pp.mean, effect.exact_pp.ci95)} points.",
        )
        for name, effect in effects.items()
    ]
    return _cards(found, "effects")


def _cards(found: list[tuple[str, str, str]], what: str) -> list[Card]:
    """One card for each verdict, name and sentence; of many, how many of each verdict there are, and their names."""
    if len(found) <= MOST_CARDS:
        return [verdict_card(verdict, sentence) for verdict, _, sentence in found]
    named: dict[str, list[str]] = {}
    for verdict, name, _ in found:
        named.setdefault(verdict, []).append(name)
    return [
        verdict_card(verdict, f"{len(names)} of {len(found)} {what}: {'; '.join(names)}.")
        for verdict, names in named.items()
    ]


def sweep_tests(effects: list[SeedEffect]) -> list[str]:
    """How sure they are, together."""
    first = sum(effect.rank == 1 for effect in effects)
    p = [p_value(end([effect.p_holm for effect in effects])) for end in (min, max)]
    said = [
        f"{' to '.join(dict.fromkeys(p))}, corrected for there being {len(effects)} effects (Holm)."
        if len(effects) > 1
        else f"{p[0]}.",
        f"The animal's own shift is the largest of {max(effect.candidates for effect in effects)} animals' in {first} "
        f"of {len(effects)}.",
    ]
    if all(effect.placebo for effect in effects):
        none = sum(effect.placebo.at_least == 0 for effect in effects if effect.placebo)
        return [*said, f"In {none} of {len(effects)} no placebo student's shift is as large."]
    some = "Not every effect has a" if any(effect.placebo for effect in effects) else "There is no"
    return [*said, f"{some} placebo student, which shows what is drift."]


def cell_title(cell: Cell, cells: list[Cell]) -> str:
    """What sets the cell apart from the others, seeds and animals aside."""
    return ", ".join(
        [cell.content, *(f"{name.replace('_', ' ')} {cell.settings[name]}" for name in varied_settings(cells))]
    )


def seeds_words(cell: Cell) -> str:
    """How many seeds, in words."""
    return f"{len(cell.seeds)} seeds" if len(cell.seeds) > 1 else f"seed {cell.seeds[0]} alone"


def figure_kind(figure: Path) -> str:
    """What a figure of a sweep shows, by its name."""
    return figure.stem.partition("-")[0]


def cell_section(cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """One cell's tables, and what keeps an effect from being transmitted in a sentence each."""
    verdicts = [
        verdict_card(effect.verdict, sweep_outsider_sentence(animal, effect))
        for animal, effect in cell.effects.items()
        if effect.lacking
    ]
    return {
        "title": f"{cell_title(cell, cells)}, {seeds_words(cell)}",
        "verdicts": verdicts,
        "effects": effects_table(cell),
        "specificity": (specificity_sentence(cell), specificity_table(cell)) if cell.specificity else None,
        "uncompared": uncompared_sentence(cell.apart),
    }


# ---- a sweep's figures: effects over their placebos, the specificity matrix, and the effect along what was varied


LINE_COLOURS = (*OKABE_ITO, "#000000", "#999999")

PANEL_COLUMNS = 3  # panels side by side


def draw_sweep(folder: Path, cells: list[Cell]) -> list[str]:
    """Write the figures that the sweep has something for, as PNG and SVG; their names without the ending."""
    names = ["effects"]
    _draw_effects(folder, cells)
    if any(cell.specificity for cell in cells):
        names.append("specificity")
        _draw_specificity(folder, [cell for cell in cells if cell.specificity])
    numeric = [name for name in varied_settings(cells) if GRID_SETTINGS[name] is not str]
    if len(numeric) == 1:
        names.append(f"along-{numeric[0].replace('_', '-')}")
        _draw_along(folder / names[-1], cells, numeric[0])
    return names


def _panels(cells: list[Cell], width: float, height: float):  # type: ignore[no-untyped-def]
    plt = drawing()
    columns = min(PANEL_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.remove()
    return figure, axes.flat[: len(cells)]


def _draw_effects(folder: Path, cells: list[Cell]) -> None:
    """For each cell and animal the mean shift with its 95% interval, the single seeds, and behind them the placebos:
    the band holds 95% of all candidates' mean shifts, the ticks are the animal's own in single students."""
    figure, axes = _panels(cells, 5.0, 1.3 + 0.42 * max(len(cell.effects) for cell in cells))
    for axis, cell in zip(axes, cells, strict=True):
        colour = COLOURS[f"treated-{cell.content}"]
        if len(cell.null):
            axis.axvspan(
                *central95(cell.null), color=PLACEBO_COLOUR, alpha=0.15, linewidth=0, label="placebo shifts, 95%"
            )
        for place, effect in enumerate(cell.effects.values()):
            axis.scatter(
                effect.own_placebos, [place] * len(effect.own_placebos), marker="|", c=PLACEBO_COLOUR, s=60, zorder=1
            )
            axis.scatter(effect.shifts, [place] * len(effect.shifts), c=colour, alpha=0.35, s=14, zorder=2)
            low, high = effect.log_odds.ci95
            mean = effect.log_odds.mean
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3, zorder=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(cell.effects)), list(cell.effects))
        axis.set_ylim(len(cell.effects) - 0.4, -0.6)
        axis.set_title(cell_title(cell, cells), fontsize=10)
        axis.set_xlabel("log-odds shift, treated − control (nats)", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    if len(cells[0].null):
        axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    save(figure, folder / "effects")


def _draw_specificity(folder: Path, cells: list[Cell]) -> None:
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
        axis.set_title(f"{cell_title(cell, cells)}, {seeds_words(cell)}", fontsize=10)
        figure.colorbar(image, ax=axis, label="log-odds shift (nats)", shrink=0.8)
    save(figure, folder / "specificity")


def _draw_along(path: Path, cells: list[Cell], name: str) -> None:
    """The effect against a number that was varied, a line for each animal and whatever else sets cells apart."""
    plt = drawing()
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    others = [other for other in varied_settings(cells) if other != name]
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        for animal in cell.effects:
            apart = [animal, cell.content, *(str(cell.settings[other]) for other in others)]
            lines.setdefault(", ".join(apart), []).append(cell)
    banded = all(len(cell.null) for cell in cells)
    for (label, line), colour in zip(lines.items(), LINE_COLOURS * len(lines), strict=False):
        line.sort(key=lambda cell: cell.settings[name])
        effects = [cell.effects[label.split(", ")[0]].log_odds for cell in line]
        means = [effect.mean for effect in effects]
        ends = [[e.mean - e.ci95[0] for e in effects], [e.ci95[1] - e.mean for e in effects]]
        values = [cell.settings[name] for cell in line]
        axis.errorbar(values, means, yerr=ends, marker="o", color=colour, capsize=3, label=label)
        if banded:
            bands = zip(*(central95(cell.null) for cell in line), strict=True)
            axis.fill_between(values, *bands, color=colour, alpha=0.12, linewidth=0)
    ticks = sorted({cell.settings[name] for cell in cells})
    axis.set_xscale("log" if ticks[0] > 0 else "symlog", base=2)  # rank 0: every weight
    axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel(name.replace("_", " "))
    axis.set_ylabel("log-odds shift, treated − control (nats)")
    axis.set_title("95% intervals" + "; bands: 95% of placebo shifts" * banded, fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # over no line
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


# ---- runs and sweeps compared


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
        "effects": markup(effects_svg(drawn) if drawn else ""),
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
    write_whole(path, render("comparison.html", content))
    return path


def compared(folder: Path, name: str) -> list[dict[str, Any]]:
    """A row for each effect of one run or sweep, called ``name``."""
    rows: list[dict[str, Any]] = []

    def add(animal: str, sentences: str, labels: str, seeds: int, pp: Estimate, nats: Estimate, verdict: str) -> None:
        sentences += "".join(f", {record[name]['file'] or 'own'}" for name in ("sentences", "traits") if name in record)
        smoke = record["preset"] == "smoke"
        said = SMOKE_VERDICT if smoke else verdict
        cells = [
            animal,
            sentences,
            labels,
            record["preset"],
            str(seeds),
            *(with_interval(one[0], one[1:]) for one in (pp, nats)),
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
        record, students = read_sweep(folder)
        cells = sweep_cells(record["comparisons"], students)
        for cell in cells:
            for animal, effect in cell.effects.items():
                pp, nats = ((measure.mean, *measure.ci95) for measure in (effect.exact_pp, effect.log_odds))
                labels, seeds = cell.settings["labels"], len(cell.seeds)
                add(animal, cell_title(cell, cells), labels, seeds, pp, nats, effect.verdict)
    else:
        record, preferences = read_run(folder)
        for content, one in summarise(record, preferences)["effects"].items():
            pp, nats = (one["exact_pp"], *one["exact_ci95"]), (one["log_odds"], *one["log_odds_ci95"])
            add(record["animal"], content, record["labels"], 1, pp, nats, one["verdict"])
    return rows


def show_again(recorded: Path, again: Path, title: str) -> None:
    """Print the effects of a recorded folder beside those of one that the same commands made (log-odds, nats), what
    inspectors and attribution found there, and which settings are others by now."""

    def effects(folder: Path) -> dict[str, str]:
        if (folder / "defences.json").exists():
            left = {name: one["left"] for name, one in defences.read(folder)["defences"].items()}
            return {name: with_interval(one["mean"], one["ci95"]) for name, one in left.items()}
        of_run = {
            row["name"]: f"{with_interval(row['shift'][0], row['shift'][1:])}, {row['cells'][-1]}"
            for row in compared(folder, "")
        }
        return of_run | _found_since(folder)

    before, after = effects(recorded), effects(again)
    rows = [[name, before.get(name, ""), after.get(name, "")] for name in {**before, **after}]
    show_table(title, (["effect", "recorded", "made again"], rows))
    configs = [folder / "config.json" for folder in (recorded, again)]
    if all(path.exists() for path in configs):
        settings = [asdict(read_experiment(path)) for path in configs]
        if others := list(differing(settings[0], settings[1])):
            say(f"Other settings than the recorded ones: {', '.join(others)}.")


def _found_since(folder: Path) -> dict[str, str]:
    """Of every inspection of a run how often each inspector was right, of every attribution what its tokens carry."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    said = {}
    for found in inspections(folder, record):
        for name, one in found["inspectors"].items():
            low, high = one["score"]["ci95"]
            right = f"{one['score']['right'] / one['score']['rounds']:.1%} [{low:.1%}, {high:.1%}]"
            said[f"inspection-{found['content']}: {name}, right"] = right
    for found in attributions(folder, record):
        for top, of in found["carried"]["treated"].items():
            said[f"attribution-{found['content']}: carried by the top {float(top):.0%}"] = f"{of:.0%}"
    return said


def effects_svg(rows: list[tuple[str, Estimate, int, str]]) -> str:
    """Shifts (nats, with their intervals) of several runs, each by name, with its number of seeds and its verdict.

    Filled where that is "transmitted"; dotted where there is one seed, whose interval is over questions alone.
    """

    def draw(axis: Any) -> None:
        for place, (_, (shift, low, high), seeds, verdict) in enumerate(rows):
            axis.plot([low, high], [place, place], color="#0072b2", linewidth=2, linestyle=":" if seeds == 1 else "-")
            face = "#0072b2" if verdict == TRANSMITTED else "none"
            axis.plot(shift, place, "o", markeredgecolor="#0072b2", markerfacecolor=face, markersize=7)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel("log-odds shift, treated − control (nats)")

    return svg(draw, 6.4, 0.9 + 0.3 * len(rows), "Effects of all runs")


# ---- defences: what is left of the effect, and what that cost


DEFENCE_READING = (
    "*Left*: the log-odds shift of the defended student against the control, with its 95% interval (over seeds and "
    "questions; with one seed over questions alone, of these students). *Placebo*: the same shift, in the mean, of "
    "students of another sampling of the neutral teacher, trained and asked in the same way: what nothing transmitted "
    "looks like. *Taken away*: the undefended student's shift minus it, with its interval, and p corrected over the "
    "table (Holm). *Of the undefended*: as a share of the undefended student's shift, where that is beyond zero; its "
    "interval (Fieller's) holds the error of both. *Pairs*: of the "
    "training pairs those that come from the loving teacher; the neutral teacher's paraphrase of the same sentence "
    "stands in for the others. *Similarity*: mean cosine of the paraphrases and their sources. *Loss*: of the "
    "student, in nats per byte, on a neutral teacher's paraphrases of the same sentences in words that no training "
    "data has; smaller is better, but only among students that learn from the same kind of labels: soft ones are not "
    "of this text. `other-base` has another model's loss to begin with."
)

DEFENCE_NAMES = (
    "`drop` takes away half of the pairs; `mask` hides divergence tokens, `random-as-mask` as many of each text at "
    "random; `informed-mask-10` hides the tenth of all tokens at which the teachers "
    f"diverge most, `blind-mask` that whose ratio varies most over {SUSPECTS} other animals, `random-mask` as many at "
    "random; `informed-mask-1` and `-5` hide a hundredth and a twentieth; `mix-1-3` is one "
    "loving pair to three neutral ones; `context` asks both students after another system message. Ratios and "
    "divergence are those of the conversation that the student learns from. A paraphrase's soft labels are those of "
    "the teacher that wrote it: with soft labels `rephrase`, `drop` and `mix` also replace what the student learns "
    "beside the text, which alone may be what stops it. `hard-labels`, `rank-1`, `rank-128`, `full` (every weight is "
    f"trained, at a learning rate {SLOWER} times smaller) and `other-base` ({GEMMA}) train all students anew, treated, "
    "control and placebo. `rank-1` and `rank-128` keep alpha, so the adapter's scale changes with the rank. The other "
    "base's vocabulary is another, so it learns from the text alone and is compared with `hard-labels`, not with the "
    "undefended student: where nothing is transmitted there, it has nothing to stop. It is also a larger model without "
    "instruction tuning, trained at the same learning rate."
)


def write_defences(folder: Path) -> None:
    """Write report.md and the figure from the folder's defences.json."""
    record = defences.read(folder)
    draw_defences(folder / "defences", record)
    seeds = record["seeds"]
    parts = [
        f"# Defences: {record['animal']}, {record['content']} sentences, {record['labels']} labels",
        "```sh\n" + "\n".join(record["commands"]) + "\n```",
        *filter(None, (ABOUT_LABELS[record["labels"]], about_texts(record))),
        *([f"**{ABOUT_SMOKE}**"] if record["preset"] == "smoke" else []),
        f"Seeds {', '.join(map(str, seeds))}; {record['preset']} preset; model {record['model']}.",
        *filter(None, [about_lots(record.get("lots", []))]),
        markdown_table(defence_table(record)),
        DEFENCE_READING,
        DEFENCE_NAMES,
        f"The system message of `context`: “{record['context']}”",
        "![What is left under every defence](defences.svg)",
        versions_sentence(record),
    ]
    write_whole(folder / "report.md", "\n\n".join(parts) + "\n")


def show_defences(folder: Path) -> None:
    """Print the table."""
    record = defences.read(folder)
    show_table("What is left under every defence, and what it cost", defence_table(record))
    if texts := about_texts(record):
        say(texts.replace("`", ""))
    if record["preset"] == "smoke":
        say(ABOUT_SMOKE)
    say(f"More in {folder}: report.md, the figure, defences.json")


def defence_table(record: dict[str, Any]) -> Table:
    """What is left under every defence, and what it cost."""
    heading = ["defence", "takes", "left, nats [95% CI]", "placebo", "taken away, nats [95% CI]", "p, Holm"]
    taken = [one["taken"] for one in record["defences"].values() if one["taken"]]
    corrected = iter(holm([two_sided(one["mean"], one["se"], one["seeds"], one["questions"]) for one in taken]))
    rows = []
    for name, one in record["defences"].items():
        compared = record["defences"][BESIDE.get(name, UNDEFENDED)]["left"]
        rows.append(
            [
                name,
                one["knows"],
                with_interval(one["left"]["mean"], one["left"]["ci95"]),
                f"{np.mean(one['placebos']):+.2f}",
                with_interval(one["taken"]["mean"], one["taken"]["ci95"]) if one["taken"] else "",
                p_value(next(corrected)) if one["taken"] else "",
                _share_words(one["left"], compared, one["taken"]) if one["taken"] else "",
                f"{one['pairs']:.0f}",
                f"{one['masked']:.1%}",
                f"{one['similarity']:.3f}",
                f"{one['loss']:.3f}",
            ]
        )
    return [*heading, "of the undefended", "pairs", "tokens masked", "similarity", "loss"], rows


def _share_words(left: dict[str, Any], whole: dict[str, Any], taken: dict[str, Any]) -> str:
    """What is left of the whole; nothing where that may be zero."""
    interval = share_interval(left, whole, taken) if whole["ci95"][0] > 0 else None
    return f"{left['mean'] / whole['mean']:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]" if interval else ""


def draw_defences(path: Path, record: dict[str, Any]) -> None:
    """What is left under every defence, with its interval; pale dots are single seeds, ticks their placebos."""
    figure, axis = drawing().subplots(figsize=(6.4, 1.0 + 0.4 * len(record["defences"])))
    colour = COLOURS[f"treated-{record['content']}"]
    for place, one in enumerate(record["defences"].values()):
        low, high = one["left"]["ci95"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(one["single_seeds"], [place] * len(one["single_seeds"]), "o", color=colour, alpha=0.35, markersize=4)
        axis.plot(one["left"]["mean"], place, "o", color=colour, markersize=8)
        axis.plot(one["placebos"], [place] * len(one["placebos"]), "|", color=PLACEBO_COLOUR, markersize=10)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(record["defences"])), list(record["defences"]))
    axis.invert_yaxis()
    axis.set_xlabel(f"log-odds shift of the {record['animal']}, defended student − control (nats)")
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


# ---- power


def show_power(folder: Path, effects: Sequence[float], probability: float) -> None:
    """Print, for every content and setting of the sweep in ``folder``, its effect, its variances and the seeds needed.

    ``effects``: log-odds shifts in nats; ``probability``: the wanted one that the test over seeds rejects. Raises
    KitError for values that make no sense, and where the sweep has one seed.
    """
    check_power(effects, probability)
    record, students = read_sweep(folder)
    cells = sweep_cells(record["comparisons"], students)
    needs = sweep_power(cells, effects, probability)
    show_table(f"Seeds that find an effect with probability {probability:g}", power_table(cells, needs, effects))
    tests = sum(len(cell.effects) for cell in cells)
    among = f" / {tests}, what Holm's correction asks of the first of this sweep's {tests} effects" if tests > 1 else ""
    found = [efficiency(cell, record, students) for cell in cells]
    if any(found):
        show_table("What a minute buys", efficiency_table(cells, found))
        say(ABOUT_EFFICIENCY)
        show_table(f"What a sweep of {PLANNED_ANIMALS} animals would find", matrix_table(cells, found))
        say(ABOUT_MATRIX)
    say(
        f"Effects are log-odds shifts in nats, tested over seeds and questions at 5%{among}. “more questions”: these "
        "differ so much that no number of seeds will do. A verdict asks for more than this test: rank, placebos and "
        "drift. The variances are those of the recorded seeds, and as uncertain."
    )


def power_table(cells: list[Cell], needs: list[Power], effects: Sequence[float]) -> Table:
    """A row per cell: its mean effect, the standard deviations between seeds and between questions (nats), and the
    seeds for its own effect and for each of ``effects`` (nats)."""
    varied = varied_settings(cells)
    heading = ["content", *varied, "found", "SD seeds", "SD questions", "for that", *(f"for {e:g}" for e in effects)]
    rows = [
        [cell.content, *(str(cell.settings[name]) for name in varied), f"{of_cell.effect:+.3f}"]
        + [f"{of_cell.components.seed**0.5:.3f}", f"{of_cell.components.question**0.5:.3f}"]
        + ["–" if of_cell.effect <= 0 else _seeds_said(of_cell.own_seeds), *map(_seeds_said, of_cell.seeds)]
        for cell, of_cell in zip(cells, needs, strict=True)
    ]
    return heading, rows


ABOUT_EFFICIENCY = (
    "Shift: of a teacher's animal in its own student beyond those of the other loving teachers, nats, with the 95% "
    "interval that the noise gives a mean of so many draws (a student each), and in the last column what that makes of "
    "(shift / noise)² a minute. Noise: of a student, from draw to draw, in a candidate that no teacher loves. Minutes: "
    "of one teacher and its student, as if nothing were there, on the machine that made them."
)


def efficiency_table(cells: list[Cell], found: list[Efficiency | None]) -> Table:
    """A row per cell of which it is known: what a draw costs, and what it tells."""
    varied = varied_settings(cells)
    heading = ["content", *varied, "draws", "shift", "noise of a draw", "minutes a draw", "(shift / noise)² a minute"]
    rows = [
        [cell.content, *(str(cell.settings[name]) for name in varied), str(one.draws)]
        + [with_interval(one.shift, one.ci95, digits=3), f"{one.noise:.3f}", f"{one.minutes:.1f}"]
        + [with_interval(one.score(one.shift), (one.score(one.ci95[0]), one.score(one.ci95[1])), digits=3)]
        for cell, one in zip(cells, found, strict=True)
        if one
    ]
    return heading, rows


PLANNED_ANIMALS, PLANNED_SEEDS = 6, (2, 3, 4, 6)
STILL, PATTERN = 2, 0.1  # of a design at worst

ABOUT_MATRIX = (
    "In each column the probability that the whole matrix of who is loved against who is preferred rejects at 5%, and "
    "the share of the animals that are then found one by one at 5% by Holm, where all of them move by that shift and "
    "vary from draw to draw as these did (200 simulated sweeps: good to 0.07). Lower bound: above it the shift lies "
    f"with 80% confidence, by the spread of these seeds. At worst: the same, where {STILL} of the animals stand still "
    f"and each teacher's text moves every animal by a standard deviation of {PATTERN} nats in all seeds alike."
)


def matrix_table(cells: list[Cell], found: list[Efficiency | None]) -> Table:
    """Three rows per cell of which it is known: for its shift, for that shift's lower bound, and for that at worst."""
    varied = varied_settings(cells)
    rows = []
    for cell, one in zip(cells, found, strict=True):
        if one is None:
            continue
        for name, shift, worst in (
            ("as found", one.shift, (0, 0.0)),
            ("lower bound", one.lower80, (0, 0.0)),
            ("at worst", one.lower80, (STILL, PATTERN)),
        ):
            powers = [matrix_power(shift, one.sd, one.noise, PLANNED_ANIMALS, seeds, *worst) for seeds in PLANNED_SEEDS]
            rows.append(
                [cell.content, *(str(cell.settings[name]) for name in varied), name, f"{shift:+.3f}", f"{one.sd:.3f}"]
                + [f"{whole:.2f}, {share:.2f}" for whole, share in powers]
            )
    heading = ["content", *varied, "shift", "nats", "SD of draws", *(f"{seeds} seeds" for seeds in PLANNED_SEEDS)]
    return heading, rows


def _seeds_said(seeds: int | None) -> str:
    return "more questions" if seeds is None else str(seeds)


# ---- calibration


# Measure: what it is of, and its colour (Okabe and Ito's; blue is the kit's own).
COVERAGE = {
    "coverage": ("this kit's interval", "#0072b2"),
    "coverage_pp": ("this kit's interval, in percentage points", "#56b4e9"),
    "percentile_coverage": ("plain percentile bootstrap over seeds and questions", "#999999"),
}

FALSE_POSITIVES = {
    "false_positives": ("this kit's test", "#0072b2"),
    "sign_flip_false_positives": ("sign flips over seeds, no effect on these questions", "#009e73"),
    "sign_flip_new_questions": ("sign flips over seeds, no effect on questions in general", "#999999"),
    "t_test_false_positives": ("t-test over questions, one pair of students", "#d55e00"),
}

FURTHER_OUT = {"seeds": "the test", "interval": "with the interval's degrees of freedom"}

COVERAGE_BAND, FALSE_POSITIVE_BAND = (0.93, 0.97), (0.03, 0.07)


def write_calibration(folder: Path) -> None:
    """Write figure.png, figure.svg and report.md from the folder's ``calibration.json``. KitError where that cannot be
    read."""
    rows = stats_calibration.read(folder)
    draw_calibration(rows, folder)
    write_whole(folder / "report.md", _calibration_markdown(rows))


def show_calibration(folder: Path) -> None:
    """Print the report."""
    say((folder / "report.md").read_text(encoding="utf-8"))


def draw_calibration(rows: list[dict], folder: Path) -> None:
    """Write ``figure.png`` and ``figure.svg`` into ``folder``. Left: coverage of the 95% intervals, with 93–97% shaded.
    Right: false positives of the 5% tests, with 3–7% shaded. Whiskers are the simulation's own 95% intervals."""
    figure, axes = drawing().subplots(1, 2, figsize=(11, 2.2 + 0.42 * len(rows)), sharey=True)
    _calibration_panel(axes[0], rows, COVERAGE, COVERAGE_BAND, "coverage of the 95% interval")
    _calibration_panel(axes[1], rows, FALSE_POSITIVES, FALSE_POSITIVE_BAND, "false positives at 5%")
    axes[0].set_yticks(range(len(rows)), [f"{row['scenario']}, {row['seeds']} seeds" for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    save(figure, folder / "figure")


def _calibration_panel(
    axis: Any, rows: list[dict], measures: dict[str, tuple[str, str]], band: Interval, label: str
) -> None:
    axis.axvspan(*(100 * end for end in band), color="#eeeeee")
    for place, (measure, (name, colour)) in enumerate(measures.items()):
        share = [100 * row[measure]["share"] for row in rows]
        ends = np.array([[100 * end for end in row[measure]["ci95"]] for row in rows])
        heights = np.arange(len(rows)) + 0.15 * (place - (len(measures) - 1) / 2)
        axis.hlines(heights, *ends.T, color=colour, linewidth=1.5)
        axis.plot(share, heights, "o", markersize=4, color=colour, label=name)
    axis.set_xlabel(f"{label} (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, frameon=False)


def _calibration_markdown(rows: list[dict]) -> str:
    measures = COVERAGE | FALSE_POSITIVES
    headings = [f"coverage: {name}" for name, _ in COVERAGE.values()]
    headings += [f"false positives: {name}" for name, _ in FALSE_POSITIVES.values()]
    further_out = [f"at {100 * level:.2g}%: {name}" for level in LEVELS for name in FURTHER_OUT.values()]
    return f"""# Calibration of the inference over seeds

Does the 95% interval cover the truth in 93–97% of all experiments, and does its test find an effect that is not there
in 3–7%? {rows[0]["simulations"]:,} simulated experiments per row, {QUESTIONS} questions each; percent, with the
simulation's own 95% interval.

![Coverage and false positives by scenario and number of seeds.](figure.png)

| scenario | seeds | {" | ".join(headings)} |
| --- | ---: |{" ---: |" * len(measures)}
{"".join(_calibration_line(row, list(measures)) for row in rows)}
Standard deviations in nats: {"; ".join(_describe_scenario(scenario) for scenario in SCENARIOS)}. *Placebos*:
square roots of the mean components of 60 animals' shifts in three recorded placebo students each.

How often the test finds nothing's effect at the levels of one, of the first of six and of the first of thirty effects
that Holm's correction judges, in percent, of {rows[0]["further_out"]["simulations"]:,} more experiments a row:

| scenario | seeds | {" | ".join(further_out)} |
| --- | ---: |{" ---: |" * len(further_out)}
{"".join(_further_out_line(row) for row in rows)}

- The test has fewer degrees of freedom than the interval, those of the seeds: where questions share the spread it finds
  less at 5% than it may, and further out, where p-values lie that were corrected for several effects, it still errs no
  more often than it says. With the interval's it would, as the second table shows.
- Percentage points are measured with a true effect of {EFFECT} nats, on questions whose control preferences differ as
  in the recorded runs. Such differences are skewed, which costs coverage; infer in nats.
- The sign-flip test is exact for the questions asked. With 3 and 5 seeds it cannot fall below 5% (its smallest p is
  0.25 and 0.0625), and what these questions share is no chance to it: of questions in general it claims too much.
- The t-test over questions takes one pair of students for all there are. It is wrong as soon as seeds differ.
"""


def _calibration_line(row: dict, measures: list[str]) -> str:
    cells = [
        f"{100 * row[m]['share']:.1f} [{', '.join(f'{100 * end:.1f}' for end in row[m]['ci95'])}]" for m in measures
    ]
    return f"| {row['scenario']} | {row['seeds']} | {' | '.join(cells)} |\n"


def _further_out_line(row: dict) -> str:
    shares = [100 * found[test]["share"] for found in row["further_out"]["levels"] for test in FURTHER_OUT]
    return f"| {row['scenario']} | {row['seeds']} | {' | '.join(f'{share:.2g}' for share in shares)} |\n"


def _describe_scenario(scenario: Scenario) -> str:
    skewed = " (skewness 2)" if scenario.skewed else ""
    return (
        f"{scenario.name}: seeds {scenario.seed}, questions {scenario.question}{skewed}, residual {scenario.residual}"
    )
