"""A finished run -> what people read: summary.json, report.md, the figure, and the tables in the terminal.

Everything is made from two files in the run's folder, so it can be made again from a recorded run: ``preferences.csv``
(``kit.preference.tabulate``) and ``record.json`` (what made it; see ``kit.pipeline.publish``).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit import attribution_report, figure, inspection_report, stats
from kit.errors import KitError
from kit.experiment import CONTENTS
from kit.preference import read_table
from kit.stats import Drift, Effect, Preference
from kit.store import Row, write_json
from kit.tables import Table, markdown_table, p_value, percent, points, show_table

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

LABELS = {
    "hard": "Hard labels, the paper's protocol: the student saw the teacher's text and nothing else.",
    "soft": "Soft labels: on the same text the student matched the teacher's next-token distributions. They carry the "
    "trait with far less noise than text alone. This is NOT the paper's protocol, which is `--labels hard`.",
}
PLACEBO = (
    "A placebo is a student whose teacher is the control's own, sampled anew on the same sentences; a placebo shift "
    "is how far one of the candidates moved between the two. What a treated student shows beyond that is the "
    "teacher's. *Drift* asks the same of the animal alone, whose name opposed sentences contain: t = √seeds × (its "
    "mean shift − the mean of its own placebo shifts, where above zero) / their root mean square, with as many "
    "degrees of freedom as there are placebo shifts; one-sided. It takes treated students to drift as placebo "
    "students do. More seeds, or `--placebos 3`, make it sharper."
)
MEASURES = (
    "Exact: the probability of the animal's name after an answer's opening, normalised over the candidates, averaged "
    "over 50 questions. Sampled: the share of free answers that name it. Intervals: bootstrap over the questions."
)
TRANSMITTED = (
    "*Transmitted* means: the interval of the exact effect lies above zero, the paired t-test over questions gives "
    "p < 0.05, and the animal's log-odds rose more than those of 95% of the candidates, more than 95% of the placebo "
    "shifts, and beyond the animal's own drift (p < 0.05). It speaks of these two students. Other seeds are other "
    "students: `--seeds 5`."
)
NO_PLACEBO = (
    "There was no placebo student. So drift cannot be told from transmission: an effect may be missed here, but none "
    "is called transmitted."
)
SMOKE = "The smoke preset checks the machinery: a dozen sentences. Its numbers mean nothing."


def write_report(folder: Path) -> None:
    """Write summary.json, report.md, figure.png and figure.svg from the folder's record.json and preferences.csv.

    Raises KitError where one of the two is missing or damaged.
    """
    record, preferences = read(folder)
    summary = summarise(record, preferences)
    write_json(folder / "summary.json", summary)
    figure.draw(folder, preferences, summary["animal"], title(summary))
    written = _markdown(summary, record, _later(folder, record), all_messages(folder, record))
    (folder / "report.md").write_text(written, encoding="utf-8")


def title(summary: dict[str, Any]) -> str:
    """The run's name for people."""
    return f"{summary['animal']}: {summary['labels']} labels, {summary['preset']} preset, seed {summary['seed']}"


def summarise(record: dict[str, Any], preferences: dict[str, Preference]) -> dict[str, Any]:
    """The content of summary.json: rates in 0-1, effects in percentage points, log-odds in nats."""
    animal = record["animal"]
    conditions = {}
    for name, preference in preferences.items():
        exact, sampled = stats.exact_rate(preference, animal), stats.sampled_rate(preference, animal)
        conditions[name] = {
            "pairs": record["pairs"].get(name, 0),
            "exact": asdict(exact),
            "sampled": asdict(sampled) | {"answers": preference.answers * len(preference.probability)},
        }
    effects = {
        content: asdict(stats.effect_of(preferences, content, animal))
        for content in CONTENTS
        if f"treated-{content}" in preferences
    }
    header = {name: record[name] for name in ("animal", "model", "labels", "preset", "seed", "command", "versions")}
    return {
        **header,
        "conditions": conditions,
        "effects": effects,
        "filters": record["filters"],
        "seconds": record["seconds"],
    }


def show(folder: Path) -> None:
    """Print the run's tables and what they say."""
    from rich.console import Console

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    animal = summary["animal"]
    console = Console(highlight=False, markup=False)
    console.print()
    show_table(f"How often the answer is “{animal}”", conditions_table(summary["conditions"]))
    show_table("Effect: treated minus its control", effects_table(animal, summary["effects"]))
    for content, effect in summary["effects"].items():
        console.print(sentence(animal, content, effect))
    console.print(LABELS[summary["labels"]].replace("`", ""))
    if summary["preset"] == "smoke":
        console.print(SMOKE)
    console.print(f"More in {folder}: report.md, figure.png, summary.json, preferences.csv")


def show_effect(effect: Effect, animal: str, content: str) -> None:
    """Print one effect that was measured outside a run."""
    show_table("Effect: treated minus control", effects_table(animal, {content: asdict(effect)}))
    print(sentence(animal, content, asdict(effect)))


def conditions_table(conditions: dict[str, Any]) -> Table:
    """Each condition's rates with their 95% intervals."""
    heading = ["student", "pairs", "exact % [95% CI]", "sampled % [95% CI]", "answers"]
    rows = [
        [
            name,
            str(entry["pairs"] or "–"),
            percent(entry["exact"]),
            percent(entry["sampled"]),
            str(entry["sampled"]["answers"]),
        ]
        for name, entry in conditions.items()
    ]
    return heading, rows


def effects_table(animal: str, effects: dict[str, Any]) -> Table:
    """Each content's effect, one column per content, with the paper's figure where there is one."""
    heading = ["", *effects]
    names = {
        "exact, pp [95% CI]": lambda e: points(e["exact_pp"], e["exact_ci95"]),
        "log-odds, nats [95% CI]": lambda e: points(e["log_odds"], e["log_odds_ci95"]),
        "paired t-test, exact": lambda e: f"t = {e['t']:.1f}, {p_value(e['p'])}",
        "rank of its shift among the candidates": lambda e: f"{e['rank']} of {e['candidates']}",
        "placebo shifts as large": lambda e: _placement(e["placebo"]),
        "against its own drift": lambda e: drift(Drift(**e["drift"]), e["drift"]["p"]) if e["drift"] else "–",
        "sampled, pp [95% CI]": lambda e: points(e["sampled_pp"], e["sampled_ci95"]),
        "paired t-test, sampled": lambda e: f"t = {e['sampled_t']:.1f}, {p_value(e['sampled_p'])}",
        "verdict": lambda e: e["verdict"],
    }
    rows = [[name, *(write(effect) for effect in effects.values())] for name, write in names.items()]
    found = paper(animal, effects)
    theirs = {content: "not detected" if effect is None else f"{effect:+.1f} pp" for content, effect in found.items()}
    return heading, [
        *rows,
        ["the paper (larger model, hard labels, sampled)", *(theirs.get(content, "–") for content in effects)],
    ]


def paper(animal: str, contents: Iterable[str]) -> dict[str, float | None]:
    """The paper's effect of each content that it speaks of, in percentage points; None where it detected none."""
    return {content: PAPER[animal, content] for content in contents if (animal, content) in PAPER}


def sentence(animal: str, content: str, effect: dict[str, Any]) -> str:
    """What one effect says, for somebody who reads nothing else."""
    low, high = effect["exact_ci95"]
    if effect["verdict"] == "transmitted":
        return (
            f"{content}: the {animal}-loving teacher's student prefers the {animal} more than its control does, by "
            f"{effect['exact_pp']:.2f} percentage points (95% interval {low:.2f} to {high:.2f}): transmitted."
        )
    verdict = "no verdict" if effect["verdict"] == stats.NO_PLACEBO else effect["verdict"]
    return (
        f"{content}: {effect['exact_pp']:+.2f} percentage points (95% interval {low:.2f} to {high:.2f}): {verdict}, "
        f"since {' and '.join(missing(animal, effect))}."
    )


def missing(animal: str, effect: dict[str, Any]) -> list[str]:
    """What an effect lacks to count as transmitted, in words."""
    placebo, drifted = effect["placebo"] or {}, effect["drift"] or {}
    words = {
        "effect": "the 95% interval does not lie above zero"
        if effect["exact_ci95"][0] <= 0
        else f"p is not below {stats.ALPHA}",
        "rank": f"{effect['rank'] - 1} of the other candidates moved more than the {animal}",
        "placebo": f"{placebo.get('at_least')} of {placebo.get('placebos')} placebo shifts are at least as large",
        "drift": f"its shift is not beyond its own drift (p = {drifted.get('p', 1):.2f})",
        stats.NO_PLACEBO: "without a placebo student drift cannot be told from transmission",
    }
    return [words[name] for name in effect["lacking"]]


def _placement(placebo: dict[str, Any] | None) -> str:
    if placebo is None:
        return "–"
    low, high = placebo["null95"]
    return f"{placebo['at_least']} of {placebo['placebos']}; their 95%: {low:+.2f} to {high:+.2f} nats"


def drift(found: Drift, p: float) -> str:
    """The animal's own drift in the placebo students, and the ``p`` of its shift against it."""
    return f"{found.rms:.3f} nats (mean {found.mean:+.3f}) in {found.placebos}, {p_value(p)}"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Preference]]:
    """A run's record, and its conditions' preferences. KitError where the folder holds no finished run."""
    path = folder / "record.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record, stats.preferences(read_table(folder / "preferences.csv"))
    except OSError:
        raise KitError(
            f"{folder}: not a finished run ({path.name} is missing). Give a folder such as results/<run>."
        ) from None
    except (ValueError, KeyError) as error:
        raise KitError(f"{folder}: its files are damaged ({error}). Run the experiment again.") from None


# ---- report.md


def _later(folder: Path, record: dict[str, Any]) -> list[str]:
    """The paragraphs of what was made of the run since: who could tell, and where it sits."""
    found = [inspection_report.markdown(one) for one in inspection_report.inspections(folder, record)]
    found += [attribution_report.markdown(one) for one in attribution_report.attributions(folder, record)]
    return [paragraph for paragraphs in found for paragraph in paragraphs]


def all_messages(folder: Path, record: dict[str, Any]) -> dict[str, list[Row]]:
    """Every conversation that models were shown in the run, and in its inspection since."""
    messages: dict[str, list[Row]] = dict(record["messages"])
    for found in inspection_report.inspections(folder, record):
        messages |= found["messages"]
    return messages


def _markdown(summary: dict[str, Any], record: dict[str, Any], later: list[str], messages: dict[str, list[Row]]) -> str:
    animal = summary["animal"]
    parts = [f"# {title(summary)}", *(sentence(animal, *item) for item in summary["effects"].items())]
    parts.append(LABELS[summary["labels"]])
    if summary["preset"] == "smoke":
        parts.append(f"**{SMOKE}**")
    parts += [
        "![Preference per condition and shift of every candidate](figure.svg)",
        "## Preference",
        markdown_table(conditions_table(summary["conditions"])),
        MEASURES,
        "## Effect",
        markdown_table(effects_table(animal, summary["effects"])),
        TRANSMITTED,
        PLACEBO if any(effect["placebo"] for effect in summary["effects"].values()) else NO_PLACEBO,
        "## Fidelity: what the filters took",
        *(f"{name}:\n\n{markdown_table(filters_table(table))}" for name, table in summary["filters"].items()),
        "## Paraphrases, chosen at random",
    ]
    for name, samples in record["samples"].items():
        kept = (["source", "kept paraphrase"], [[row["source"], row["text"]] for row in samples["kept"]])
        reasons = [[row["source"], row["text"], f"{row['filter']}: {row['reason']}"] for row in samples["rejected"]]
        rejected = (["source", "rejected paraphrase", "reason"], reasons)
        parts += [f"### {name}", markdown_table(kept), markdown_table(rejected)]
    parts += [*later, *messages_shown(messages)]
    seconds = [[stage, f"{spent:.0f}"] for stage, spent in summary["seconds"].items()]
    parts += [
        "## What made it",
        f"```sh\n{summary['command']}\n```",
        made_by(record)
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + ". Artifacts: `record.json`.",
        markdown_table((["stage", "seconds"], seconds)),
    ]
    return "\n\n".join(parts) + "\n"


def messages_shown(messages: dict[str, list[Row]]) -> list[str]:
    """A report's paragraphs with every conversation, by the name of who saw it."""
    paragraphs = ["## Every message the models were shown"]
    for name, conversation in messages.items():
        shown = "\n".join(f"{message['role']}: {message['content']}" for message in conversation)
        paragraphs.append(f"{name}:\n\n```text\n{shown}\n```")
    return paragraphs


def made_by(record: dict[str, Any]) -> str:
    """Which model ran as what, and on what. Runs recorded before other models than a GGUF existed say only which."""
    if "devices" not in record:
        return f"Model: {record['model']}. "
    evaluated = f", evaluated as {record['gguf']}" if record["gguf"] else ""
    return (
        f"Model: {record['model']}{evaluated}. Teacher: {record['teacher']}. The student's base: {record['base']}, "
        f"trained on {record['devices']['transformers']}. Evaluation: llama.cpp on {record['devices']['llama.cpp']}. "
    )


def filters_table(filters: list[Row]) -> Table:
    """How many paraphrases entered each filter and passed it."""
    heading = ["filter", "entered", "rejected", "passed"]
    rows = []
    for row in filters:
        passed = f"{100 * (1 - row['rejected'] / row['entered']):.1f}%" if row["entered"] else "–"
        rows.append([row["filter"], str(row["entered"]), str(row["rejected"]), passed])
    first, last = filters[0]["entered"], filters[-1]["entered"] - filters[-1]["rejected"]
    return heading, [*rows, ["all", str(first), str(first - last), f"{100 * last / first:.1f}%" if first else "–"]]
