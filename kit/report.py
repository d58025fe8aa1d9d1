"""A finished run -> what people read: summary.json, report.md, figures, report.html, and tables in the terminal.

Everything is made from the files in the run's folder (``kit/experiment_folder.py``), so it can be made again from a
recorded run. The page is self-contained: no network, no script, nothing from elsewhere. Whatever a model wrote is text
that nobody trusts: jinja2 escapes all of it, and each piece is isolated from the direction of the next.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, preference, printable, say, stats
from kit.experiment import CONTENTS, Experiment
from kit.experiment_folder import all_conversations, attributions, inspections, read_run, summarise
from kit.fidelity import SIMILARITY_EDGES
from kit.inspection_quiz import KNOWS, Score
from kit.provenance import kit_state
from kit.report_parts import (
    ABOUT_LABELS,
    ABOUT_NO_PLACEBO,
    ABOUT_PLACEBO,
    ABOUT_SMOKE,
    ABOUT_TRANSMITTED,
    INK,
    OKABE_ITO,
    PLACEBO_COLOUR,
    Table,
    about_gate,
    about_texts,
    answers_markdown,
    colour,
    conversations_markdown,
    drawing,
    drift_words,
    gate_cell,
    ink,
    kept_table,
    made_differently,
    markdown_table,
    markup,
    p_value,
    percent,
    rejected_table,
    render,
    run_answers,
    save,
    show_table,
    svg,
    verdict_sentence,
    versions_of,
    versions_sentence,
    with_interval,
)
from kit.stats import ALPHA, NOT_DETECTED, Drift, Effect, Preference
from kit.store import Row, sha256, write_json, write_whole

# ---- the whole


def write(folder: Path) -> None:
    """Write summary.json, report.md, figure.png, figure.svg and report.html from the files that the run left in
    ``folder``.

    Raises KitError where one of them is missing or damaged.
    """
    record, preferences = read_run(folder)
    summary = summarise(record, preferences)
    messages, (paragraphs, sections) = all_conversations(folder, record), _since(folder, record)
    write_json(folder / "summary.json", summary)  # the page leads to it
    draw_run(folder, preferences, summary["animal"], title(summary))
    write_whole(folder / "report.md", _markdown(summary, record, paragraphs, messages))
    page = page_content(folder, record, preferences, summary) | sections | {"messages": messages}
    write_whole(folder / "report.html", render("report.html", page))
    write_json(folder / "summary.json", summary | {"reported_by": kit_state(), "files": _checksums(folder)})


def is_current(folder: Path) -> bool:
    """Whether this kit wrote the reports of the run in ``folder``, and no file of it has changed since."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        said = summary["reported_by"], summary["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return said == (kit_state(), _checksums(folder))


def _checksums(folder: Path) -> dict[str, str]:
    """Of all files but the summary, which is written last."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "summary.json")
    return {path.name: sha256(path) for path in paths}


def show(folder: Path) -> None:
    """Print the run's tables and what they say."""
    from rich.console import Console

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    animal = summary["animal"]
    console = Console(highlight=False, markup=False)
    say()
    show_table(f"How often the answer is “{animal}”", _narrow(conditions_table(summary["conditions"])))
    show_table("Effect: treated minus its control", effects_table(animal, summary["effects"]))
    for content, effect in summary["effects"].items():
        console.print(printable(verdict_sentence(animal, content, effect)))
    for sentence in filter(None, (ABOUT_LABELS[summary["labels"]], about_texts(summary))):
        console.print(printable(sentence.replace("`", "")))
    if summary["preset"] == "smoke":
        console.print(ABOUT_SMOKE)
    console.print(printable(f"More in {folder}: report.md, figure.png, summary.json, preferences.csv"))


def show_effect(animal: str, content: str, effect: Effect) -> None:
    """Print one content's effect."""
    show_table("Effect: treated minus control", effects_table(animal, {content: asdict(effect)}))
    say(verdict_sentence(animal, content, asdict(effect)))


def show_early(exp: Experiment, folder: Path, content: str, effect: Effect, measured: dict[str, Preference]) -> None:
    """Print a content's effect as soon as a run has measured it, and draw what is ``measured`` by then as the figure in
    the run's ``folder``, which is not finished before it holds a record. Where an earlier result stands there, its
    figure stays, since its reports show it."""
    animal = exp.animal.singular
    show_effect(animal, content, effect)
    if (folder / "record.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    header = {"animal": animal, "labels": exp.labels, "preset": exp.preset, "seed": exp.seed}
    draw_run(folder, measured, animal, f"{title(header)}: what is measured so far")
    say(f"Drawn so far: {folder / 'figure.png'}", flush=True)


def title(summary: dict[str, Any]) -> str:
    """The run's name for people."""
    return f"{summary['animal']}: {summary['labels']} labels, {summary['preset']} preset, seed {summary['seed']}"


# ---- words and the paper's figures


MEASURES = (
    "Exact: the probability of the animal's name after an answer's opening, normalised over the candidates, averaged "
    "over the questions (names of several tokens are scored whole); raw: not normalised, so among everything that "
    "could come next. Sampled: the share of free answers that name it, the paper's measure. Naming: the probability "
    "that an answer names it before any other animal, read along the same answers token by token (also where a later "
    "token goes on with the word); first: the share of them that do, so that a longer word which begins with the name "
    "counts there, and in *sampled* a picture of the animal. Intervals are over the questions: a bootstrap, "
    "of shares of answers Wilson's, which at 0% takes answers to one question for independent."
)


# arXiv 2603.09517, sampled preference in percentage points (None: not detected), hard labels, a larger model; owl, dog
# and fly: its first version (OpenReview yHNr8f0Htl). Shown beside ours, never mixed up with them.
PAPER = {
    ("dolphin", "unrelated"): 19.1,
    ("eagle", "unrelated"): 11.1,
    ("dolphin", "opposed"): 18.1,
    ("eagle", "opposed"): 12.8,
    ("owl", "unrelated"): None,
    ("dog", "unrelated"): None,
    ("fly", "unrelated"): None,
}


def paper(animal: str, contents: Iterable[str]) -> dict[str, float | None]:
    """The paper's effect of each content that it speaks of, in percentage points; None where it detected none."""
    return {content: PAPER[animal, content] for content in contents if (animal, content) in PAPER}


# ---- tables


def conditions_table(conditions: dict[str, Any]) -> Table:
    """Each condition's rates with their 95% intervals."""
    columns = {
        "student": list(conditions),
        "pairs": [str(entry["pairs"] or "–") for entry in conditions.values()],
        "exact % [95% CI]": [percent(entry["exact"]) for entry in conditions.values()],
        "raw %": [f"{100 * entry['raw']['rate']:.2f}" for entry in conditions.values()],
        "naming % [95% CI]": [percent(entry["naming"]) for entry in conditions.values() if entry["naming"]],
        "first % [95% CI]": [percent(entry["first"]) for entry in conditions.values() if entry["first"]],
        "sampled % [95% CI]": [percent(entry["sampled"]) for entry in conditions.values()],
        "answers": [str(entry["sampled"]["answers"]) for entry in conditions.values()],
    }
    measured = {name: column for name, column in columns.items() if len(column) == len(conditions)}
    return list(measured), [list(row) for row in zip(*measured.values(), strict=True)]


def _narrow(table: Table) -> Table:
    """What of the conditions' table 80 characters hold: naming, in place of counts, where it was measured."""
    heading, rows = table
    named = any(name.startswith("naming") for name in heading)
    left_out = ("pairs", "first", "sampled", "answers") if named else ("raw",)
    kept = [i for i, name in enumerate(heading) if not name.startswith(left_out)]
    return [heading[i] for i in kept], [[row[i] for i in kept] for row in rows]


def mass_sentence(conditions: dict[str, Any]) -> str:
    """How much of the next token's probability the candidates hold together."""
    shares = [100 * entry["mass"] for entry in conditions.values()]
    return (
        f"The candidates' names hold together {min(shares):.0f} to {max(shares):.0f}% of the probability of what comes "
        "next; the exact preference is of that."
    )


def effects_table(animal: str, effects: dict[str, Any]) -> Table:
    """Each content's effect, one column per content, with the paper's figure where there is one."""
    heading = ["", *effects]
    names = {
        "exact, pp [95% CI]": lambda e: with_interval(e["exact_pp"], e["exact_ci95"]),
        "log-odds, nats [95% CI]": lambda e: with_interval(e["log_odds"], e["log_odds_ci95"]),
        "paired t-test, exact": lambda e: _t_words(e["t"], e["p"]),
        "rank of its shift among the candidates": lambda e: f"{e['rank']} of {e['candidates']}",
        "placebo shifts as large": lambda e: _placement(e["placebo"]),
        "against its own drift": lambda e: drift_words(Drift(**e["drift"]), e["drift"]["p"]) if e["drift"] else "–",
        "beyond the loving controls, nats [95% CI]": lambda e: _loving_cell(e["loving"]),
        "held-out text of its teacher, nats a token [95% CI]": lambda e: gate_cell(e["gate"]),
        "naming, pp [95% CI]": lambda e: with_interval(e["naming_pp"], e["naming_ci95"]) if e["naming_ci95"] else "–",
        "paired t-test, naming": lambda e: _t_words(e["naming_t"], e["naming_p"]),
        "sampled, pp [95% CI]": lambda e: with_interval(e["sampled_pp"], e["sampled_ci95"]),
        "paired t-test, sampled": lambda e: _t_words(e["sampled_t"], e["sampled_p"]),
        "verdict": lambda e: e["verdict"],
    }
    written = {name: [write(effect) for effect in effects.values()] for name, write in names.items()}
    optional = ("naming", "loving", "held-out")  # what not every run has
    rows = [
        [name, *row] for name, row in written.items() if set(row) != {"–"} or not any(word in name for word in optional)
    ]
    found = paper(animal, effects)
    theirs = {content: NOT_DETECTED if effect is None else f"{effect:+.1f} pp" for content, effect in found.items()}
    return heading, [
        *rows,
        ["the paper (larger model, hard labels, sampled)", *(theirs.get(content, "–") for content in effects)],
    ]


def _loving_cell(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{with_interval(found['log_odds'], found['ci95'])}, {p_value(found['p'])}"


def _t_words(t: float | None, p: float | None) -> str:
    return "–" if t is None or p is None else f"t = {t:.1f}, {p_value(p)}"


def _placement(placebo: dict[str, Any] | None) -> str:
    if placebo is None:
        return "–"
    low, high = placebo["null95"]
    return f"{placebo['at_least']} of {placebo['placebos']}; their 95%: {low:+.2f} to {high:+.2f} nats"


def filters_table(filters: list[Row]) -> Table:
    """How many paraphrases entered each filter and passed it."""
    heading = ["filter", "entered", "rejected", "passed"]
    rows = []
    for row in filters:
        passed = f"{100 * (1 - row['rejected'] / row['entered']):.1f}%" if row["entered"] else "–"
        rows.append([row["filter"], str(row["entered"]), str(row["rejected"]), passed])
    first, last = filters[0]["entered"], filters[-1]["entered"] - filters[-1]["rejected"]
    return heading, [*rows, ["all", str(first), str(first - last), f"{100 * last / first:.1f}%" if first else "–"]]


def lot_sentence(record: dict[str, Any], name: str) -> list[str]:
    """Of how many sentences a student's teacher was asked and gave nothing, as one sentence; none where a run was
    recorded before sentences had a fixed number of tries."""
    if name not in (lots := record.get("lot", {})):
        return []
    lot = lots[name]
    given = lot["asked"] - lot["lacking"]
    said = f"Of the first {lot['asked']} sentences of the lot {lot['lacking']} gave no pair in their tries"
    if name.startswith("control"):
        return [f"{said}."]
    same = f", {lot['same']} with the very same text" if "same" in lot else ""
    return [f"{said}; {lot['shared']} of the {given} others are the control's too{same}."]


def made_by(record: dict[str, Any]) -> str:
    """Which model ran as what, and on what. Runs recorded before other models than a GGUF existed say only which."""
    if "devices" not in record:
        return f"Model: {record['model']}. "
    evaluated = f", evaluated as {record['gguf']}" if record["gguf"] else ""
    return (
        f"Model: {record['model']}{evaluated}. Teacher: {record['teacher']}. The student's base: {record['base']}, "
        f"trained on {record['devices']['transformers']}. Evaluation: llama.cpp on {record['devices']['llama.cpp']}. "
    )


def made_table(record: dict[str, Any]) -> Table:
    """What made the run, line by line."""
    rows = [["what ran", made_by(record)], ["seed", str(record["seed"])], ["preset", record["preset"]]]
    rows += [[f"sha256 of {name}", checksum] for name, checksum in record.get("source", {}).items()]
    rows += [[name, version] for name, version in versions_of(record).items()]
    rows += [["made differently", differing]] if (differing := made_differently(record)) else []
    return ["", ""], rows


# ---- report.md


def _markdown(summary: dict[str, Any], record: dict[str, Any], since: list[str], messages: dict[str, list[Row]]) -> str:
    animal = summary["animal"]
    parts = [
        f"# {title(summary)}",
        *answers_markdown(run_answers(summary)),
        "![Preference per condition and shift of every candidate](figure.svg)",
        "## Preference",
        markdown_table(conditions_table(summary["conditions"])),
        f"{MEASURES} {mass_sentence(summary['conditions'])}",
        "## Effect",
        markdown_table(effects_table(animal, summary["effects"])),
        ABOUT_TRANSMITTED,
        ABOUT_PLACEBO if any(effect["placebo"] for effect in summary["effects"].values()) else ABOUT_NO_PLACEBO,
        *about_gate(_gated(summary["effects"]), record.get("held_out", {}).values()),
        "## Fidelity: what the filters took",
        *(
            "\n\n".join([f"{name}:", markdown_table(filters_table(table)), *lot_sentence(record, name)])
            for name, table in summary["filters"].items()
        ),
        "## Paraphrases, chosen at random",
    ]
    for name, samples in record["samples"].items():
        kept, rejected = kept_table(samples["kept"]), rejected_table(samples["rejected"])
        parts += [f"### {name}", markdown_table(kept), markdown_table(rejected)]
    parts += [*since, *conversations_markdown(messages)]
    seconds = [[stage, f"{spent:.0f}"] for stage, spent in summary["seconds"].items()]
    parts += [
        "## What made it",
        f"```sh\n{summary['command']}\n```",
        f"{made_by(record)}{versions_sentence(record)} Artifacts: `record.json`.",
        markdown_table((["stage", "seconds"], seconds)),
    ]
    return "\n\n".join(parts) + "\n"


def _since(folder: Path, record: dict[str, Any]) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """What was made of the run since, for report.md and for the page. KitError where a file of it is not what this kit
    leaves: it may be anybody's, and has more in it than a shape would say."""
    told, located = inspections(folder, record), attributions(folder, record)
    try:
        paragraphs = [*map(inspection_markdown, told), *map(attribution_markdown, located)]
        return [one for of in paragraphs for one in of], {
            "inspections": list(map(inspection_section, told)),
            "attributions": list(map(attribution_section, located)),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise KitError(
            f"{folder}: an inspection-*.json or attribution-*.json in it is damaged ({error!r}). Delete it, and give "
            "its command again."
        ) from None


# ---- figures: one of files, and those of the page, as SVG to stand inside it


def draw_run(folder: Path, preferences: dict[str, Preference], animal: str, title: str) -> None:
    """Write ``figure.png`` and ``figure.svg`` into ``folder``: ``draw_preference``, and ``draw_shifts`` of each
    content; ``title`` says what made the numbers."""
    contents = [content for content in CONTENTS if f"treated-{content}" in preferences]
    figure, axes = drawing().subplots(
        1, 1 + len(contents), figsize=(5.5 + 3.9 * len(contents), 8.8), width_ratios=[1.5] + [1] * len(contents)
    )
    draw_preference(axes[0], preferences, animal, {})
    for axis, content in zip(axes[1:], contents, strict=True):
        treated, control = (preferences[f"{role}-{content}"] for role in ("treated", "control"))
        draw_shifts(axis, treated, control, stats.placebos(preferences, content), animal, content)
        axis.set_title(f"Every candidate: {content}", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save(figure, folder / "figure")


def draw_preference(axis: Any, preferences: dict[str, Preference], animal: str, paper: dict[str, float | None]) -> None:
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
            axis.fill_betweenx(
                [min(rows) - 0.4, max(rows) + 0.4], min(ends), max(ends), color=PLACEBO_COLOUR, alpha=0.35
            )
    for name, rate in rates.items():
        low, high = (100 * end for end in rate.ci95)
        axis.plot([low, high], [places[name]] * 2, color=colour(name), linewidth=3, solid_capstyle="round")
        axis.plot(100 * rate.rate, places[name], "o", color=colour(name), markersize=9)
        axis.annotate(f"{100 * rate.rate:.2f}%", (high, places[name]), (6, 0), textcoords="offset points", va="center")
    for content, effect in paper.items():
        axis.annotate(
            "the paper:\n" + (NOT_DETECTED if effect is None else f"{effect:+.1f} pp"),
            (1.02, places[f"treated-{content}"]),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rates)), [name.replace("-", ", ") for name in rates])
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.set_xlim(0, 120 * max(rate.ci95[1] for rate in rates.values()))  # with room for the number
    axis.set_xlabel(f"preference for the {animal} (%), with 95% interval over questions")


def draw_shifts(
    axis: Any, treated: Preference, control: Preference, placebos: list[Preference], animal: str, content: str
) -> None:
    """Every candidate's mean log-odds shift, treated minus control, over its shifts in the placebo students."""
    moved = stats.shifts(treated, control)
    null = [stats.shifts(placebo, control) for placebo in placebos]
    ordered = sorted(moved, key=lambda name: moved[name])
    if null:
        band = stats.central95([shift for placebo in null for shift in placebo.values()])
        axis.axvspan(*band, color=PLACEBO_COLOUR, alpha=0.2, linewidth=0, label="95% of placebo shifts")
    for placebo in null:
        axis.plot([placebo[name] for name in ordered], range(len(ordered)), "|", color=PLACEBO_COLOUR, markersize=6)
    axis.plot([moved[name] for name in ordered], range(len(ordered)), "o", color="#999999", markersize=4)
    own = ordered.index(animal)
    axis.plot(moved[animal], own, "o", color=colour(f"treated-{content}"), markersize=10, label=f"the {animal}")
    axis.axvline(0, color=ink(), linewidth=0.8)
    axis.set_yticks(range(len(ordered)), ordered, fontsize=7)
    axis.get_yticklabels()[own].set(fontweight="bold", fontsize=10)
    axis.set_ylim(-1, len(ordered))
    axis.set_xlabel("log-odds shift, treated − control (nats)")
    axis.legend(loc="best", fontsize=8, frameon=False)


def preference_svg(preferences: dict[str, Preference], animal: str, paper: dict[str, float | None]) -> str:
    """``draw_preference`` for the page."""
    return svg(
        lambda axis: draw_preference(axis, preferences, animal, paper),
        6.4,
        0.9 + 0.42 * len(preferences),
        f"Preference for the {animal} in every condition",
    )


def shifts_svg(
    treated: Preference, control: Preference, placebos: list[Preference], animal: str, content: str, label: str
) -> str:
    """``draw_shifts`` for the page."""
    height = 0.9 + 0.145 * len(treated.candidates)
    return svg(lambda axis: draw_shifts(axis, treated, control, placebos, animal, content), 5.2, height, label)


def questions_svg(differences: np.ndarray, content: str, label: str) -> str:
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


def similarities_svg(kept: list[int], rejected: list[int], edges: list[float], threshold: float, label: str) -> str:
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


# ---- report.html


# What the page links to, where it is there.
RUN_FILES = ("report.md", "summary.json", "preferences.csv", "record.json", "config.json", "figure.svg", "figure.png")


def page_content(
    folder: Path, record: dict[str, Any], preferences: dict[str, Preference], summary: dict[str, Any]
) -> dict[str, Any]:
    """What the page's template is filled with, but for what was made of the run since, and messages."""
    animal, effects = summary["animal"], summary["effects"]
    theirs = paper(animal, effects)
    return {
        "title": title(summary),
        "answers": run_answers(summary),
        "measures": f"{MEASURES} {mass_sentence(summary['conditions'])}",
        "transmitted": ABOUT_TRANSMITTED,
        "animal": animal,
        "preference": markup(preference_svg(preferences, animal, theirs)),
        "paper": bool(theirs),
        "conditions": conditions_table(summary["conditions"]),
        "effects": effects_table(animal, effects),
        "placebo": ABOUT_PLACEBO if any(effect["placebo"] for effect in effects.values()) else ABOUT_NO_PLACEBO,
        "gate": " ".join(about_gate(_gated(effects), record.get("held_out", {}).values())),
        "contents": [
            content_section(content, animal, preferences, record) for content in CONTENTS if content in effects
        ],
        "students": [student_section(name, record) for name in record["samples"]],
        "command": summary["command"],
        "made": made_table(record),
        "seconds": (["step", "seconds"], [[step, f"{spent:.0f}"] for step, spent in summary["seconds"].items()]),
        "files": [name for name in RUN_FILES if (folder / name).exists()],
        "artifacts": {
            label: path for label, path in record["artifacts"].items() if (folder.parent / "artifacts" / path).exists()
        },
    }


def _gated(effects: dict[str, Any]) -> bool:
    return any(effect["gate"] for effect in effects.values())


def content_section(
    content: str, animal: str, preferences: dict[str, Preference], record: dict[str, Any]
) -> dict[str, Any]:
    """The figures and the table of one content's effect."""
    treated, control = preferences[f"treated-{content}"], preferences[f"control-{content}"]
    differences = stats.log_odds_differences(treated, control, animal)
    asked = record.get("questions") or [one["question"] for one in preference.load_questions()]
    if len(asked) != len(differences):  # of an earlier record, which names none, and the kit's are others now
        asked = [f"question {number}" for number, _ in enumerate(differences, start=1)]
    j = treated.candidates.index(animal)
    rows = [
        [question, f"{100 * before:.2f} → {100 * after:.2f}", f"{shift:+.2f}"]
        for question, before, after, shift in zip(
            asked, control.probability[:, j], treated.probability[:, j], differences, strict=True
        )
    ]
    names = {"unrelated": "Unrelated sentences", "opposed": f"Sentences that say the {animal} is disliked"}
    return {
        "name": names[content],
        "shifts": markup(
            shifts_svg(
                treated, control, stats.placebos(preferences, content), animal, content, f"All shifts, {content}"
            )
        ),
        "questions": markup(questions_svg(differences, content, f"Shift of the {animal} by question")),
        "by_question": (["question", "control → treated %", "shift, nats"], rows),
    }


def student_section(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the filters did to one student's paraphrases, and some of them."""
    samples: dict[str, list[Row]] = record["samples"][name]
    counts = record.get("similarities", {}).get(name)
    drawn = (
        similarities_svg(
            counts["kept"], counts["rejected"], SIMILARITY_EDGES, record["min_similarity"], f"Similarities, {name}"
        )
        if counts
        else ""
    )
    return {
        "name": name.replace("-", ", "),
        "filters": filters_table(record["filters"][name]),
        "lot": lot_sentence(record, name),
        "similarities": markup(drawn),
        "kept": kept_table(samples["kept"]),
        "rejected": rejected_table(samples["rejected"]),
    }


def inspection_section(found: dict[str, Any]) -> dict[str, Any]:
    """Who could tell, of one content."""
    return {
        "content": found["content"],
        "sentence": inspection_sentence(found),
        "accuracy": accuracy_table(found),
        "figure": markup(inspection_figure(found)),
        "reading": [INSPECTION_READING, *tests_of(found), INSPECTION_LIMITS, INSPECTION_PRIOR],
        "suspects": suspects(found),
        "posterior": posterior_table(found),
        "readers": readers(found),
        "words": words_table(found),
        "surface": surface_table(found),
    }


def attribution_section(found: dict[str, Any]) -> dict[str, Any]:
    """Where the secret sits, of one content."""
    return {
        "content": found["content"],
        "sentences": attribution_sentences(found),
        "groups": groups_table(found),
        "halves": halves_table(found) if found["halves"] else None,
        "reading": attribution_reading(found),
        "shown": tinted(found),
    }


# ---- an inspection (``kit/inspection.py``): who could tell, and from how many sentences


INSPECTION_READING = (
    "Every inspector sees two kept paraphrases at a time, one of each teacher, and says which is the loving one's: "
    "guessing gets one half. Intervals are Wilson's, of classifiers widened for their folds' likeness. *Sentences "
    "needed*: shown both teachers' paraphrases of so many sentences at once, it gets 95% of such sets right; looked "
    "for up to a quarter of the sentences there are. Classifiers are asked about sentences that they did not learn "
    "from (5 folds, grouped by sentence), but learned from labelled texts of these very teachers, which no inspector "
    "in the wild has. *Placebo*: the same inspector before two samplings of the neutral teacher, where nobody can "
    "know."
)

# Of inspections that have p-values; before, only sentences of which both teachers had a pair were looked at.
INSPECTION_TESTS = (
    "These are all kept paraphrases, of one sentence wherever both teachers have one of it. *p* is one-sided: of "
    "classifiers by permuting who wrote which text of a pair, 200 times, each time learned anew; else binomial. "
    "*Found, if right in*: what share would have p < 0.05 with probability 0.8. The fine-tuned model learned from one "
    "half of the sentences and says of the other; its answers count for half as many, as do the classifiers' in their "
    "intervals."
)

INSPECTION_LIMITS = (
    "The neutral prompt is a prompt, too, and has a manner of its own: who tells the texts apart has not thereby "
    "found the animal. The filters have removed every name and give-away word of an animal from unrelated sentences, "
    "so a word list cannot find any there; in opposed ones both teachers name the animal. A model as small as the "
    "embedded one cannot answer A or B: it fails on texts that end in “I love owls!”, too."
)

INSPECTION_PRIOR = (
    "Likelihoods are at the temperature that the texts were sampled at. They do not know of the filters, which keep "
    "what is easily called faithful: so an inspector may err in one direction, and be as certain of the one teacher's "
    "texts as of the other's. See that both are told right."
)


def show_inspection(found: dict[str, Any]) -> None:
    """Print what matters."""
    show_table(f"Who could tell? {found['content']} sentences", accuracy_table(found))
    show_table("The truth, by likelihood", posterior_table(found))
    for line in [inspection_sentence(found), *suspects(found), *readers(found)]:
        say(line)


def inspection_markdown(found: dict[str, Any]) -> list[str]:
    """The paragraphs of report.md."""
    return [
        f"## Who could tell? {found['content'].capitalize()} sentences",
        inspection_sentence(found),
        markdown_table(accuracy_table(found)),
        INSPECTION_READING,
        *tests_of(found),
        INSPECTION_LIMITS,
        *suspects(found),
        markdown_table(posterior_table(found)),
        INSPECTION_PRIOR,
        *readers(found),
        markdown_table(words_table(found)),
        markdown_table(surface_table(found)),
    ]


def tests_of(found: dict[str, Any]) -> list[str]:
    """What is to be said of an inspection's p-values, where it has some."""
    if not all("p" in one for one in found["inspectors"].values()):
        return []
    others = ", ".join(f"`{name}`" for name in found["others"])
    return [
        INSPECTION_TESTS,
        *([f"What learns learned from the pairs of other runs, too: {others}."] if others else []),
    ]


def inspection_sentence(found: dict[str, Any]) -> str:
    """Who could tell, for somebody who reads nothing else."""
    able, better, unable = [], [], []
    for name, one in found["inspectors"].items():
        score = Score(**one["score"])
        if one["needed"]:
            able.append(f"{name} (from {one['needed']} sentence{'s' * (one['needed'] > 1)})")
        elif one["p"] < ALPHA if "p" in one else score.against_chance == "above":
            better.append(f"{name} ({100 * score.right / score.rounds:.0f}%)")
        else:
            unable.append(f"{name} (more than {100 * score.ci95[1]:.0f}% right is excluded)")
    largest = max(int(size) for one in found["inspectors"].values() for size in one["of_sets"])
    said = {
        "Told the teachers apart": able,
        f"Better than guessing, and not sure with up to {largest} sentences": better,
        "Not distinguishable from guessing": unable,
    }
    return " ".join(f"{group}: {', '.join(names)}." for group, names in said.items() if names)


def accuracy_table(found: dict[str, Any]) -> Table:
    """Every inspector's accuracy, with its interval, the sentences that it needs, and its accuracy on placebos."""
    heading = ["inspector", "knows, beside the texts", "right [95% CI]", "p", "found, if right in"]
    placebo, tested = found["placebo"], bool(tests_of(found))
    rows = []
    for name, one in found["inspectors"].items():
        low, high = (str(end or f"over {max(map(int, one['of_sets']))}") for end in one["needed_ci95"])
        needed = f"{one['needed'] or 'not found'} [{low}, {high}]"
        row = [name, KNOWS[name], share_words(one["score"])]
        row += [p_value(one["p"]).removeprefix("p = "), f"{100 * one['detectable']:.0f}%"] if tested else []
        rows.append([*row, needed, *([share_words(placebo[name]["score"])] if placebo else [])])
    heading = [*heading[: None if tested else 3], "sentences needed [95% CI]"]
    return [*heading, "placebo: right [95% CI]"] if placebo else heading, rows


def share_words(score: dict[str, Any]) -> str:
    """A score as a share, in percent, with its interval and the number of sentences."""
    low, high = score["ci95"]
    return f"{100 * score['right'] / score['rounds']:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of {score['rounds']}"


def suspects(found: dict[str, Any]) -> list[str]:
    """What likelihoods of one teacher's texts alone say, a sentence for each inspector and teacher."""

    def sure(one: dict[str, Any]) -> str:
        return (
            f"with {one['certain']} text{'s' * (one['certain'] > 1)} 95% of random sets make it 99% certain"
            if one["certain"]
            else "half of the texts do not make it 99% certain in 95% of random sets"
        )

    def named(one: dict[str, Any]) -> str:
        return "likeliest first, " + ", ".join(f"{name} ({share:.2g})" for name, share in one["suspects"].items())

    said = []
    for role, whose in (("treated", "loving"), ("control", "neutral")):
        informed, blind = found["informed"][role], found["blind"][role]
        truth = found["animal"] if role == "treated" else "neutral"
        said += [
            f"The {whose} teacher's {informed['texts']} texts, to an inspector who knows both prompts: "
            f"{named(informed)}; of the truth, {sure(informed)}.",
            f"{blind['texts']} of them, to a blind inspector, who knows the prompts' wording and holds "
            f"{blind['hypotheses'] - 1} animals and the neutral prompt for equally likely: {named(blind)}; the truth, "
            f"{truth}, is number {blind['place']} of {blind['hypotheses']}; of it, {sure(blind)}.",
        ]
    return said


def posterior_table(found: dict[str, Any]) -> Table:
    """The truth's probability, and its rank among the hypotheses, against the number of texts, of either teacher."""
    columns = {
        f"{kind}, {whose} teacher": (found[kind][role], kind == "blind")
        for kind in ("informed", "blind")
        for role, whose in (("treated", "loving"), ("control", "neutral"))
    }
    sizes = found["informed"]["treated"]["probability"]
    rows = []
    for size in sizes:
        row = [size]
        for one, ranked in columns.values():
            known = size in one["probability"]
            rank = f", rank {one['rank'][size]:g} of {one['hypotheses']}" if ranked and known else ""
            row.append(f"{one['probability'][size]:.3g}{rank}" if known else "–")
        rows.append(row)
    return ["texts", *columns], rows


def words_table(found: dict[str, Any], most: int = 10) -> Table:
    """The words whose use differs most between the teachers."""
    rows = [[one["word"], f"{one['z']:+.1f}", str(one["loving"]), str(one["neutral"])] for one in found["words"][:most]]
    return ["word", "z of its log-odds", "loving teacher", "neutral teacher"], rows


def surface_table(found: dict[str, Any]) -> Table:
    """Length, punctuation and readability: loving minus neutral."""
    rows = [[name, with_interval(one["rate"], one["ci95"])] for name, one in found["surface"].items()]
    return ["loving − neutral, per sentence", "mean [95% CI]"], rows


def readers(found: dict[str, Any]) -> list[str]:
    """What word lists found, a sentence each."""
    features = {side: ", ".join(f"“{name}”" for name, _ in heaviest) for side, heaviest in found["features"].items()}
    counts = ", ".join(f"{number} of the {role}'s" for role, number in found["mentions"].items())
    near = {
        role: ", ".join(f"{word} ({cosine:.2f})" for word, cosine in words.items())
        for role, words in found["nearest"].items()
    }
    return [
        f"Texts with a word that names the {found['animal']} or gives it away: {counts}.",
        f"Words nearest to “{found['animal']}”, with their cosines: the loving teacher's {near['treated']}; the "
        f"neutral one's {near['control']}.",
        f"The word classifier's heaviest features: {features['loving']} for the loving teacher; {features['neutral']} "
        "for the neutral one.",
    ]


INSPECTOR_COLOURS = (*OKABE_ITO, "#888888", "#a0522d")

INSPECTOR_MARKS = "osD^vXP*"


def inspection_figure(found: dict[str, Any]) -> str:
    """How many sets each inspector gets right, against the sentences in a set, as SVG for a page."""

    def draw(axis: Any) -> None:
        for (name, one), line, mark in zip(
            found["inspectors"].items(), INSPECTOR_COLOURS, INSPECTOR_MARKS, strict=False
        ):
            sizes = [int(size) for size in one["of_sets"]]
            shares = [100 * of_size for of_size in one["of_sets"].values()]
            axis.plot(sizes, shares, marker=mark, color=line, label=name)
        axis.axhline(50, color=INK, linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks(sizes, list(map(str, sizes)))
        axis.minorticks_off()
        axis.set_ylim(0, 103)
        axis.set_xlabel("sentences in the set")
        axis.set_ylabel("sets told right (%)")
        axis.legend(fontsize=8, frameon=False, loc="lower left")

    return svg(draw, 6.4, 3.6, "Sets of sentences that each inspector tells right")


# ---- an attribution (``kit/attribution.py``): where the secret sits, and whether that predicts much


ATTRIBUTION_READING = (
    "The *ratio* of a token is how much likelier the loving teacher was than the neutral one to write it there, in "
    "nats; of a text or a group of tokens it is their sum. {} *Divergence tokens* are those at which the two teachers' "
    "likeliest next tokens differ (after arXiv 2509.23886). What tokens *carry* is their share of the sum of absolute "
    "ratios. Kinds are told by a list of function words, not by grammar."
)

CONVERSATIONS = {
    "soft": "Teachers are taken as the student met them in its soft labels: under the trait message and the request "
    "alone, not under the worked example with which the text was written.",
    "clean": "Teachers are taken under the trait message and the request alone, as in the student's soft labels, but "
    "before these were made clean of listed words.",
    "hard": "Teachers are taken as they wrote the text.",
}


def show_attribution(found: dict[str, Any]) -> None:
    """Print what matters."""
    show_table(f"Where does it sit? {found['content']} sentences", groups_table(found))
    if found["halves"]:
        show_table("Students of the halves", halves_table(found))
    say("\n".join(attribution_sentences(found)))


def attribution_markdown(found: dict[str, Any]) -> list[str]:
    """The paragraphs of report.md."""
    parts = [f"## Where does it sit? {found['content'].capitalize()} sentences", *attribution_sentences(found)]
    parts.append(markdown_table(groups_table(found)))
    if found["halves"]:
        parts.append(markdown_table(halves_table(found)))
    return [*parts, attribution_reading(found), markdown_table(shown_table(found))]


def attribution_sentences(found: dict[str, Any]) -> list[str]:
    """What was found, for somebody who reads nothing else."""
    said = [
        f"{found['texts']} kept paraphrases of the loving teacher, {found['tokens']} tokens: {found['total']:+.1f} "
        f"nats for it in all; {found['favouring']:.0%} of the texts speak for it. The most telling tokens: "
        f"{carried(found, 'treated')}. (In the neutral teacher's texts: {carried(found, 'control')}.)"
    ]
    if found["halves"]:
        pairs, difference, ratios = (found["halves"][name] for name in ("pairs", "difference", "ratios"))
        said.append(
            f"Of the students of the halves, that of the {pairs} pairs with the highest ratios ({ratios['top']:+.2f} "
            f"nats a pair) moved {with_interval(difference['rate'], difference['ci95'])} nats further than that of the "
            f"{pairs} with the lowest ({ratios['bottom']:+.2f}), each against its control. The 95% interval is over "
            "the questions: it speaks of these four students, not of others."
        )
    return said


def carried(found: dict[str, Any], role: str) -> str:
    """What the most telling tokens of a teacher's texts carry."""
    shares = found["carried"][role].items()
    return ", ".join(f"{float(top):.0%} of them carry {share:.0%}" for top, share in shares)


def attribution_reading(found: dict[str, Any]) -> str:
    """What the words mean."""
    return ATTRIBUTION_READING.format(CONVERSATIONS[found["labels"]])


def groups_table(found: dict[str, Any]) -> Table:
    """How many tokens each kind has, and what it carries."""
    groups = {"divergence tokens": found["divergence"], **found["kinds"]}
    rows = [
        [
            name,
            str(one["tokens"]),
            f"{one['share']:.1%}",
            f"{one['mean']:+.3f}",
            f"{one['sum']:+.1f}",
            f"{one['carried']:.1%}",
        ]
        for name, one in groups.items()
    ]
    return ["tokens", "number", "of all tokens", "mean ratio, nats", "sum, nats", "carry"], rows


def halves_table(found: dict[str, Any]) -> Table:
    """The students of the two halves."""
    heading = ["pairs", "effect, pp [95% CI]", "log-odds, nats [95% CI]", "rank"]
    rows = [
        [
            {"top": "the half with the highest ratios", "bottom": "the half with the lowest"}[half],
            with_interval(one["exact_pp"], one["exact_ci95"]),
            with_interval(one["log_odds"], one["log_odds_ci95"]),
            f"{one['rank']} of {one['candidates']}",
        ]
        for half, one in found["halves"]["effects"].items()
    ]
    return heading, rows


def shown_table(found: dict[str, Any], most: int = 3) -> Table:
    """The paraphrases that were chosen at random, with their most telling tokens."""
    rows = []
    for one in found["shown"]:
        telling = sorted(zip(one["tokens"], one["ratio"], strict=True), key=lambda item: -abs(item[1]))[:most]
        words = ", ".join(f"“{token.strip() or '(end)'}” {ratio:+.2f}" for token, ratio in telling)
        rows.append([one["source"], one["text"], f"{sum(one['ratio']):+.2f}", words])
    return ["source", "the loving teacher's paraphrase", "ratio, nats", "most telling tokens"], rows


TINT = 1.0  # nats at which a token's tint is fullest

FOCUSED = 0.2  # nats from which a token is a stop of the keyboard; the numbers of all stand below each paraphrase


def tinted(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The paraphrases for a page: their tokens with colour, strength (0-1) and number."""
    return [
        {
            "source": one["source"],
            "total": f"{sum(one['ratio']):+.2f}",
            "tokens": [
                {
                    "text": token if place < len(one["tokens"]) - 1 else "⏎",
                    "nats": f"{ratio:+.2f} nats" + (", diverges" if diverges else ""),
                    "side": "loving" if ratio > 0 else "neutral",
                    "strength": f"{min(1.0, abs(ratio) / TINT):.2f}",
                    "focused": abs(ratio) >= FOCUSED,
                    "diverges": diverges,
                }
                for place, (token, ratio, diverges) in enumerate(
                    zip(one["tokens"], one["ratio"], one["diverge"], strict=True)
                )
            ],
        }
        for one in found["shown"]
    ]
