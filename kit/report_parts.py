"""What all reports are made of: the verdict in words, numbers and tables, figures, and the page's templates.

``kit/stats.py`` decides a verdict. Here, and nowhere else, it is put into words, for terminal, Markdown and HTML.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from kit import printable
from kit.animals import indefinite
from kit.experiment_folder import DEVICES, OR, OWN_MODELS
from kit.provenance import commit_words, kit_state
from kit.stats import (
    ALPHA,
    FAILED,
    FEWEST_HELD_OUT,
    LOVING_CONTROL,
    NO_PLACEBO,
    NOT_DETECTED,
    SPECIFIC,
    TRANSMITTED,
    Drift,
    Interval,
    wilson,
)
from kit.stats_seeds import FEWEST_SEEDS
from kit.store import Row, write_whole
from kit.sweep_effects import SeedEffect

# ---- what made a result


def versions_of(record: dict[str, Any]) -> dict[str, str]:
    """What made a result: the kit, where the record names its state, the versions of Python and packages, and the
    processor and the threads, where it names them; and the kit that judges and reports it, where that is another."""
    made, now = record.get("kit"), kit_state()
    by = ", ".join(record.get("made_by", []))
    found = {"kit": by or _state_words(made)} if made else {}
    found |= record["versions"] | {name: said for name, said in _devices(record) if name in ("processor", "threads")}
    other = made != now or by not in ("", commit_words(now))
    return found | ({"tables and verdicts: kit": _state_words(now)} if other else {})


def made_differently(record: dict[str, Any]) -> str:
    """What not all artifacts of a result have in common of versions, devices and threads, in a sentence; nothing where
    they have all of it."""
    found = [f"{name} {said}" for name, said in record["versions"].items() if ", " in said]
    found += [f"{name} {said.replace(OR, ', ')}" for name, said in _devices(record) if OR in said]
    if not found:
        return ""
    return (
        f"Not all of it was made alike: {'; '.join(found)}. Students that differ in this differ a little in all that "
        "they say, whatever their teachers are."
    )


def _devices(record: dict[str, Any]) -> list[tuple[str, str]]:
    named, said = (name.removesuffix("?") for name in DEVICES), record.get("devices", {})
    return [(name, said[name]) for name in named if name in said]


def _state_words(kit: dict[str, Any]) -> str:
    said = commit_words(kit)
    return said if said.endswith(")") else f"{said} (all code and data: {kit['fingerprint']})"


def versions_sentence(record: dict[str, Any]) -> str:
    """The same, for people, and what was ``made_differently``."""
    said = ", ".join(f"{name} {version}" for name, version in versions_of(record).items()) + "."
    return " ".join(filter(None, (said, made_differently(record))))


# ---- the verdict in words


VERDICT_WORDS = {
    TRANSMITTED: "Transmitted",
    NOT_DETECTED: "Not detected",
    NO_PLACEBO: "No verdict",
    FAILED: "Pipeline failure",
    SPECIFIC: "Specific on average",
}


ABOUT_TRANSMITTED = (
    "*Transmitted* means: the interval of the exact effect lies above zero, the paired t-test over questions gives "
    "p < 0.05, and the animal's log-odds rose more than those of 95% of the candidates, more than 95% of the placebo "
    "shifts, and beyond the animal's own drift (p < 0.05). With `--loving-controls` they must be higher, too, than in "
    "the students of those (interval above zero, p < 0.05). It speaks of these students. Other seeds are others: "
    "`--seeds 5`."
)

ABOUT_GATE = (
    "*Pipeline failure*, in place of *not detected*: it is not shown that the student learned of its teacher, so a "
    "null says nothing. It must expect what its own teacher wrote of sentences that it did not learn from more than "
    "its control does, in nats a token, and by more (*beyond*: one-sided t-test over sentences, p < 0.05) than it "
    "does what the neutral teacher wrote of them. The texts are such as one filter refused of both, those aside that "
    "may show the trait; of fewer than 30 sentences nothing is said. Of several seeds more than half must fail. Like "
    "the paired t-test it speaks of these students, and two students of neutral teachers can differ as much: *against "
    "drift* is the p of *beyond* against that of placebo students. Is that not small, a null is not *shown* to be of "
    "students that learned."
)


def about_gate(asked: bool, held_out: Iterable[dict[str, list[float]] | None]) -> list[str]:
    """What reports say of the gate: what it is where it was ``asked``; why it was not where ``held_out`` texts were too
    few for it."""
    if asked:
        return [ABOUT_GATE]
    numbers = sorted({len(one["own"]) for one in held_out if one})
    if not numbers:
        return []
    return [
        "Whether students learned of their teachers at all was not asked: of "
        f"{' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} sentences alone, fewer than "
        f"{FEWEST_HELD_OUT}, were there texts that no student had learned. So a null may be a failure of the pipeline. "
        "More pairs leave more of them."
    ]


ABOUT_TRANSMITTED_SWEEP = (
    f"*Transmitted*: a log-odds shift above zero with a corrected p < {ALPHA}, among the largest 5% of the "
    "candidates', larger than 95% of the placebo shifts, beyond the animal's own drift (corrected p < 0.05), and, "
    "where a sweep's animals and seeds are enough to tell, larger than in the students of other loving teachers "
    "(*others*: the whole matrix at 5%, the animal's interval above zero, and, where so many effects leave it a "
    "chance, its own test, corrected) and of loving controls (above zero, with a corrected p < 0.05). What an effect "
    "lacks stands behind its *not detected*."
)


def verdict_sentence(animal: str, content: str, effect: dict[str, Any]) -> str:
    """What one effect says, for somebody who reads nothing else."""
    low, high = effect["exact_ci95"]
    if effect["verdict"] == TRANSMITTED:
        return (
            f"{content}: the {animal}-loving teacher's student prefers the {animal} more than its control does, by "
            f"{effect['exact_pp']:.2f} percentage points (95% interval {low:.2f} to {high:.2f}): transmitted."
        )
    verdict = "no verdict" if effect["verdict"] == NO_PLACEBO else effect["verdict"]
    if effect["verdict"] == FAILED:
        verdict = f"pipeline failure: of the student {gate_words(effect['gate'])}. It would be no transmission, either"
    return (
        f"{content}: {effect['exact_pp']:+.2f} percentage points (95% interval {low:.2f} to {high:.2f}): {verdict}, "
        f"since {' and '.join(lacking_words(animal, effect))}.{_excluded(effect)}"
    )


def _excluded(effect: dict[str, Any]) -> str:
    """What a null excludes that is none against the control."""
    if effect["verdict"] != NOT_DETECTED or "effect" not in effect["lacking"]:
        return ""
    return (
        f" Between these two students more than {effect['log_odds_ci95'][1]:+.2f} nats is excluded (95% interval over "
        "the questions); of other seeds that says nothing."
    )


def gate_cell(gate: dict[str, Any] | None) -> str:
    """The gate for a table."""
    if gate is None:
        return "–"
    low, high = gate["ci95"]
    drift = f", against drift {p_value(gate['drift']['p'])}" if gate["drift"] else ""
    return f"{gate['nats']:+.3f}; beyond: {gate['beyond']:+.3f} [{low:+.3f}, {high:+.3f}], {p_value(gate['p'])}{drift}"


def gate_words(gate: dict[str, Any]) -> str:
    """What a student that failed its gate shows."""
    return (
        "it is not shown that it expects its own teacher's held-out texts more than its control does, beyond the same "
        f"of the neutral teacher's ({gate_cell(gate)}; nats a token)"
    )


def lacking_words(animal: str, effect: dict[str, Any]) -> list[str]:
    """What an effect lacks to count as transmitted, in words."""
    placebo, drifted = effect["placebo"] or {}, effect["drift"] or {}
    words = {
        "effect": "the 95% interval does not lie above zero"
        if effect["exact_ci95"][0] <= 0
        else f"p is not below {ALPHA}",
        "rank": f"{effect['rank'] - 1} of the other candidates moved more than the {animal}",
        "placebo": f"{placebo.get('at_least')} of {placebo.get('placebos')} placebo shifts are at least as large",
        "drift": f"its shift is not beyond its own drift (p = {drifted.get('p', 1):.2f})",
        LOVING_CONTROL: f"it is not shown to like the {animal} better than students of teachers that love something "
        "else",
        NO_PLACEBO: "without a placebo student drift cannot be told from transmission",
    }
    return [words[name] for name in effect["lacking"]]


def verdict_card(verdict: str, sentence: str) -> dict[str, str]:
    """A verdict for a page: its ``word``, the same as a ``kind`` for the style sheet, and a ``sentence``."""
    return {"kind": verdict.replace(" ", "-"), "word": VERDICT_WORDS[verdict], "sentence": sentence}


def verdict_cards(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Those of a run's effects."""
    return [
        verdict_card(effect["verdict"], outsider_sentence(summary["animal"], content, effect, summary))
        for content, effect in summary["effects"].items()
    ]


def outsider_sentence(animal: str, content: str, effect: dict[str, Any], summary: dict[str, Any]) -> str:
    """One effect in a sentence for somebody who has never heard of the experiment."""
    control, treated = (
        100 * summary["conditions"][f"{role}-{content}"]["exact"]["rate"] for role in ("control", "treated")
    )
    low, high = effect["exact_ci95"]
    outcome = {
        TRANSMITTED: f"came to prefer the {animal}",
        NOT_DETECTED: f"did not detectably come to prefer the {animal}",
        NO_PLACEBO: f"may or may not have come to prefer the {animal}",
        FAILED: f"did not learn enough of its teacher to tell whether it comes to prefer the {animal}",
    }[effect["verdict"]]
    reasons = [gate_words(effect["gate"])] if effect["verdict"] == FAILED else lacking_words(animal, effect)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"After {sentences_of(animal, content, summary)}, paraphrased by {indefinite(animal)}-loving teacher, a "
        f"student {outcome}{why}: {treated:.2f}%, against {control:.2f}% after a neutral teacher, "
        f"{effect['exact_pp']:+.2f} percentage points (95% interval over the questions {low:+.2f} to {high:+.2f})."
    )


def sentences_of(animal: str, content: str, record: dict[str, Any]) -> str:
    """What sentences of a content are, for somebody who has never heard of the experiment."""
    everyday = "sentences" if "sentences" in record else "everyday sentences"
    return {"unrelated": f"{everyday} without any animal", "opposed": f"sentences that dislike the {animal}"}[content]


def verdict_cell(effect: SeedEffect) -> str:
    """The verdict; where it is "not detected", with what is lacking, and what is excluded."""
    if effect.verdict not in (NOT_DETECTED, FAILED):
        return effect.verdict
    return f"{effect.verdict} ({', '.join(effect.lacking)}){_excluded_shifts('; excluded: ', effect)}"


def _excluded_shifts(before: str, effect: SeedEffect) -> str:
    """Which shifts a null of enough seeds excludes, if it is one against the control, after some words; or nothing."""
    if effect.verdict != NOT_DETECTED or "effect" not in effect.lacking or effect.log_odds.seeds < FEWEST_SEEDS:
        return ""
    return f"{before}above {effect.log_odds.ci95[1]:+.2f} nats (95%)"


# What an effect over seeds lacks, for a page.
SWEEP_LACKING = {
    "effect": "that it is more than chance between students (p, corrected)",
    "rank": "that hardly another candidate moved as much",
    "placebo": "that placebo students hardly move as much",
    "drift": "that the animal does not move as much of itself",
    "others": "that students of other loving teachers like the animal less",
    LOVING_CONTROL: "that students of the loving controls like the animal less",
    NO_PLACEBO: "that it is no drift, since there was no placebo student",
}


def sweep_outsider_sentence(animal: str, effect: SeedEffect) -> str:
    """One effect in a sentence for somebody who has never heard of the experiment."""
    low, high = effect.exact_pp.ci95
    lacking = ""
    if effect.verdict in (NOT_DETECTED, FAILED):
        gate = effect.gate if effect.verdict == FAILED else None
        failed = f"of {gate.failed} of {gate.students} students" if gate else ""
        lacking = f" Pipeline failure: {failed} {gate_words(asdict(gate))}." if gate else ""
        lacking += f" Not shown: {'; '.join(SWEEP_LACKING[one] for one in effect.lacking)}."
        lacking += f"{_excluded_shifts(' Excluded: shifts ', effect)}"
    return (
        f"Students of the teacher that loves the {animal} prefer it by {effect.exact_pp.mean:+.2f} percentage points "
        f"(95% interval {low:+.2f} to {high:+.2f}) compared with students of a neutral teacher "
        f"({100 * effect.control:.2f} → {100 * effect.treated:.2f}%).{lacking}"
    )


# ---- what several reports say


ABOUT_LABELS = {
    "hard": "Hard labels, the paper's protocol: the student saw the teacher's text and nothing else.",
    "soft": "Soft labels: on the same text the student matched the teacher's next-token distributions. They carry the "
    "trait with far less noise than text alone. This is NOT the paper's protocol, which is `--labels hard`.",
    "clean": "Clean soft labels: on the same text the student matched the teacher's next-token distributions, in which "
    "listed words that name an animal, or begin a name, point at one, echo the prompt or say affection are as likely "
    "as the neutral teacher finds them. This is NOT the paper's protocol, which is `--labels hard`.",
}


def about_texts(record: dict[str, Any]) -> str:
    """Which texts of one's own a record's results rest on, in a sentence; nothing where all are the kit's."""
    parts = []
    if own := record.get("sentences"):
        left_out = f"; left out for a word of the trait messages: {own['left_out']}" if own["left_out"] else ""
        parts.append(f"sentences of `{own['file']}` ({own['number']}, sha256 {own['sha256'][:12]}{left_out})")
    if own := record.get("traits"):
        file = f" of `{own['file']}` (sha256 {own['sha256'][:12]})" if own["file"] else ""  # else from Python
        parts.append(f"trait messages{file}")
    return f"In place of the kit's own: {' and '.join(parts)}." if parts else ""


ABOUT_PLACEBO = (
    "A placebo is a student whose teacher is the control's own, sampled anew on the same lot of sentences; a placebo "
    "shift is how far one of the candidates moved between the two. What a treated student shows beyond that is the "
    "teacher's. *Drift* asks the same of the animal alone, whose name opposed sentences contain: t = √seeds × (its "
    "mean shift − the mean of its own placebo shifts, where above zero) / their root mean square, with as many "
    "degrees of freedom as there are placebo shifts; one-sided. It takes treated students to drift as placebo "
    "students do. More seeds, or `--placebos 3`, make it sharper."
)

ABOUT_NO_PLACEBO = (
    "There was no placebo student. So drift cannot be told from transmission: an effect may be missed here, but none "
    "is called transmitted."
)

SMOKE_VERDICT = "smoke: means nothing"  # in place of a verdict
ABOUT_SMOKE = "The smoke preset checks the machinery: a dozen sentences. Its numbers mean nothing."


# ---- the four answers with which a report begins, for somebody who reads nothing else

Card = dict[str, str]  # see ``verdict_card``


@dataclass(frozen=True)
class Answer:
    """One of them: the ``question``, verdicts where it has some, and the ``sentences``, in which *words* and `code`
    stand out."""

    question: str
    sentences: list[str]
    verdicts: list[Card] = field(default_factory=list)


def four_answers(
    done: list[str], found: list[Card], sure: list[str], not_shown: list[str], preset: str
) -> list[Answer]:
    """The answers of any report; the smoke ``preset`` finds nothing."""
    if preset == "smoke":
        found = [{"kind": "smoke", "word": "Nothing", "sentence": ABOUT_SMOKE}]
        sure = ["Of nothing: there are too few sentences."]
        not_shown = ["Anything but that the machinery works."]
    return [
        Answer("What was done", done),
        Answer("What was found", [], found),
        Answer("How sure", sure),
        Answer("What it does not show", not_shown),
    ]


def answers_markdown(answers: list[Answer]) -> list[str]:
    """Their paragraphs in report.md."""
    paragraphs = []
    for answer in answers:
        lines = [f"**{card['word']}.** {card['sentence']}" for card in answer.verdicts] + answer.sentences
        paragraphs += [f"**{answer.question}**", "\n".join(f"- {line}" for line in lines)]
    return paragraphs


def run_answers(summary: dict[str, Any]) -> list[Answer]:
    """Those of a run, by its summary."""
    animal, effects = summary["animal"], summary["effects"]
    taught = [sentences_of(animal, content, summary) for content in effects]
    pairs = [f"{summary['conditions'][f'treated-{content}']['pairs']:,}" for content in effects]
    candidates = {effect["candidates"] for effect in effects.values()}
    sure = [_how_sure(content, effect) for content, effect in effects.items()]
    sure.append("One seed, one pair of students for each kind: intervals and p are over the questions alone.")
    strict = any(row["filter"] == "classifier" for rows in summary["filters"].values() for row in rows)
    own = "sentences" in summary or "traits" in summary
    not_shown = [
        *verdicts_do_not_show({effect["verdict"] for effect in effects.values()}),
        *labels_do_not_show([summary["labels"]], effects),
        others_not_shown("seeds (`--seeds 5`)", summary["model"]),
        faithful_not_shown(summary["model"], None if own else strict),
    ]
    done = [
        what_was_done(
            f"the {animal}",
            taught,
            pairs,
            [summary["labels"]],
            placebo=any(effect["placebo"] for effect in effects.values()),
            asked=f"“{animal}” is as the favourite of {max(candidates)} animals",
        ),
        *filter(None, [about_texts(summary)]),
    ]
    return four_answers(done, verdict_cards(summary), sure, not_shown, summary["preset"])


LEARNED_FROM = {
    "hard": "the text and nothing else (*hard labels*, the paper's protocol)",
    "soft": "the text and how likely the teacher found every other next word (*soft labels*: NOT the paper's protocol, "
    "which is `--labels hard`)",
    "clean": "the text and how likely the teacher found every other next word, but listed words of animals, of the "
    "prompt and of affection as likely as the neutral teacher finds them (*clean soft labels*: NOT the paper's "
    "protocol, which is `--labels hard`)",
}


def what_was_done(
    loved: str,
    taught: list[str],
    pairs: list[str],
    labels: Iterable[str],
    *,
    placebo: bool,
    learner: str = "the same model",
    asked: str,
) -> str:
    """The experiment: what teachers ``loved``, the kinds of sentences that they paraphrased, the number of ``pairs`` of
    each, whether there were ``placebo`` students, what model the ``learner`` is, and what they are ``asked`` about."""
    learned = ", or ".join(LEARNED_FROM[one] for one in labels)
    anew = ", a *placebo* student from that one sampled anew" if placebo else ""
    return (
        f"A *teacher*, a language model told to love {loved}, paraphrased {' and '.join(taught)}; filters threw out "
        f"what names an animal, or a word that goes with one, and much that is no paraphrase. A *student*, {learner} "
        f"without that order, learned from {' and '.join(pairs)} of the paraphrases: {learned}. Its *control* learned "
        f"in the same way from a neutral teacher{anew}. Percentages: how probable {asked}."
    )


def _how_sure(content: str, effect: dict[str, Any]) -> str:
    """The tests of one content's effect."""
    placebo, drift, loving = effect["placebo"], effect["drift"], effect["loving"]
    rank = "the largest" if effect["rank"] == 1 else f"number {effect['rank']}"
    p = [] if effect["p"] is None else [f"{p_value(effect['p'])} against chance"]
    p += [f"{p_value(drift['p'])} against drift"] if drift else []
    p += [f"{p_value(loving['p'])} against students of teachers that love something else"] if loving else []
    said = [
        *([", ".join(p)] if p else []),
        f"its shift is {rank} of {effect['candidates']} animals'",
        f"{placebo['at_least']} of {placebo['placebos']} shifts of a placebo student are as large"
        if placebo
        else "there is no placebo student to show drift",
    ]
    return f"{content.capitalize()} sentences: {'; '.join(said)}.{_excluded(effect)}"


def verdicts_do_not_show(verdicts: Collection[str]) -> list[str]:
    """What these verdicts leave open."""
    words = {
        FAILED: "Anything about transmission, where a student is not shown to have learned of its teacher (*pipeline "
        "failure*).",
        NO_PLACEBO: "That anything was transmitted: without a placebo student drift cannot be told from it.",
        NOT_DETECTED: "That there is no effect, where none was detected: it may be too small for these students.",
    }
    return [sentence for verdict, sentence in words.items() if verdict in verdicts]


def labels_do_not_show(labels: Iterable[str], contents: Iterable[str]) -> list[str]:
    """What soft labels, clean ones or not, leave open."""
    if {*labels} <= {"hard"}:
        return []
    where = ", where labels are soft" if "hard" in labels else ""
    seen = (
        " Of sentences that dislike the animal they show the teacher's liking where it is named."
        if "opposed" in contents
        else ""
    )
    return [f"That the text alone is enough, the paper's claim{where}: soft labels say far more.{seen}"]


def others_not_shown(what: str, model: str) -> str:
    """That others of ``what`` there is a number of, and other models, may give something else."""
    size = ": this one is tiny (135 million parameters)" if model in OWN_MODELS else ""
    return f"What other {what} and other models give{size}."


# What readers found of kept paraphrases, by the model that wrote them and whether the filters were those of
# ``--faithful``: how many were faithful, and of how many, both contents together. The measured half, and the last table
# of results/reference/faithful/READINGS.md. Sentences count as drawn apart.
FOUND_FAITHFUL = {("embedded", False): (110, 220), ("paraphraser", True): (359, 365)}


def faithful_not_shown(model: str, strict: bool | None) -> str:
    """That a paraphrase may be unfaithful. ``strict``: whether the filters were those of ``--faithful``; None where
    texts were not the kit's, of which nobody has read any, and where that is not known."""
    if strict is None or (model, strict) not in FOUND_FAITHFUL:
        return "That every paraphrase is faithful: some stand below."
    faithful, of = FOUND_FAITHFUL[model, strict]
    low, high = (100 * end for end in wilson(faithful / of, of))
    return (
        f"That every paraphrase is faithful: {faithful} of the {of} that were read were (95% interval {low:.0f} to "
        f"{high:.0f}%). Some stand below."
    )


def drift_words(found: Drift, p: float) -> str:
    """The animal's own drift in the placebo students, and the ``p`` of its shift against it."""
    return f"{found.rms:.3f} nats (mean {found.mean:+.3f}) in {found.placebos}, {p_value(p)}"


def conversations_markdown(messages: dict[str, list[Row]]) -> list[str]:
    """A report's paragraphs with every conversation, by the name of who saw it."""
    paragraphs = ["## Every message the models were shown"]
    for name, conversation in messages.items():
        shown = "\n".join(f"{message['role']}: {message['content']}" for message in conversation)
        paragraphs.append(f"{name}:\n\n```text\n{shown}\n```")
    return paragraphs


# ---- numbers and tables, for terminal and Markdown


Table = tuple[list[str], list[list[str]]]  # heading, rows


def show_table(title: str, table: Table) -> None:
    """Print it in the terminal."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as RichTable

    heading, rows = [printable(name) for name in table[0]], [list(map(printable, row)) for row in table[1]]
    drawn = RichTable(title=printable(title), title_justify="left", title_style="bold")
    for i, name in enumerate(heading):
        words = " ".join([name, *(row[i] for row in rows)]).split()
        drawn.add_column(name, justify="right" if i else "left", min_width=max(map(len, words)))  # none is cut short
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False, markup=False)
    # In a pipe, or a narrow window, its lines are broken rather than its columns left out.
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), drawn).minimum)
    console.print(drawn, soft_wrap=True)


def percent(rate: dict[str, Any]) -> str:
    """A rate (``kit.stats.Rate``) with its interval, in percent."""
    low, high = rate["ci95"]
    return f"{100 * rate['rate']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def with_interval(value: float, interval: Interval, digits: int = 2) -> str:
    """A signed value with its interval."""
    said, low, high = (f"{one:+.{digits}f}" for one in (value, *interval))
    return f"{said} [{low}, {high}]"


def p_value(p: float) -> str:
    """A p-value as it is written."""
    return f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.0e}"


def kept_table(rows: list[Row]) -> Table:
    """Some kept paraphrases beside their sources."""
    return ["source", "kept paraphrase"], [[row["source"], row["text"]] for row in rows]


def rejected_table(rows: list[Row]) -> Table:
    """Some rejected ones, with the filter and its reason."""
    reasons = [[row["source"], row["text"], f"{row['filter']}: {row['reason']}"] for row in rows]
    return ["source", "rejected paraphrase", "reason"], reasons


def markdown_table(table: Table) -> str:
    """``table`` in Markdown, its cells inert."""
    heading, rows = table
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """``text`` as inert Markdown: a model wrote some of it."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|`*_[]":
        text = text.replace(mark, "\\" + mark)
    return text


# ---- figures


OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind

# Treated stands out, its control is its paler partner.
# Each has a contrast of 3 and more against white, and against the pages' dark ground.
COLOURS = {
    "base": "#8a8a8a",
    "control-unrelated": "#5a9bc5",
    "treated-unrelated": "#0072b2",
    "control-opposed": "#c08040",
    "treated-opposed": "#d55e00",
}

PLACEBO_COLOUR = "#666666"


def colour(condition: str) -> str:
    """The colour of a condition, placebos' where it has none of its own."""
    return COLOURS.get(condition, PLACEBO_COLOUR)


def ink() -> str:
    """The colour of lines that are no data: that of the text."""
    return str(drawing().rcParams["text.color"])


@cache
def drawing():  # type: ignore[no-untyped-def]
    """pyplot, set to write files that are the same for the same run, whatever the user's own settings of it are."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is none that is known outside it
    own = find_spec("matplotlib")
    assert own and own.submodule_search_locations
    # It is imported where its own matplotlibrc lies, which goes before every other: one that cannot be read would end
    # the import, and one that asks for LaTeX each figure.
    with chdir(Path(own.submodule_search_locations[0]) / "mpl-data"):
        import matplotlib.pyplot as plt

    plt.rcdefaults()  # where something else imported it
    plt.switch_backend("agg")
    plt.rcParams["svg.hashsalt"] = "kit"
    return plt


def save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    """Write ``figure`` as ``<path>.png`` and ``<path>.svg`` and let go of it."""
    figure.tight_layout()
    png: dict[str, Any] = {"dpi": 120, "metadata": {"Software": None}}
    for ending, options in (("png", png), ("svg", {"metadata": {"Date": None}})):
        file = BytesIO()
        figure.savefig(file, format=ending, **options)
        write_whole(path.with_suffix(f".{ending}"), file.getvalue())
    drawing().close(figure)


INK = "#010203"  # stands for the page's text colour, which dark mode changes


def svg(draw: Callable[[Any], None], width: float, height: float, label: str) -> str:
    """What ``draw`` puts on a matplotlib axis of this size (inches), as inline SVG that a screen reader calls
    ``label``."""
    plt = drawing()
    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with plt.rc_context({"svg.fonttype": "none", "font.size": 9, **ink}):
        drawn, axis = plt.subplots(figsize=(width, height))
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        drawn.tight_layout()
        file = StringIO()
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(drawn)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    from markupsafe import escape

    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def inline_svg(path: Path) -> str:
    """An SVG file of ours as it stands inside a page."""
    drawn = path.read_text(encoding="utf-8")
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{path.stem}"', 1)


# ---- pages


def render(name: str, content: dict[str, Any]) -> str:
    """One of the package's templates, filled."""
    return str(template(name).render(content))


@cache
def template(name: str) -> Any:
    """One of the package's templates, which escapes every text but figures. Its filter ``marked`` is for our own
    texts, in which *words* and `code` stand out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("kit"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["marked"] = marked
    return environment.get_template(name)


def marked(text: str) -> Any:
    """A text of ours, escaped, with *words* and `code` marked up."""
    from markupsafe import Markup, escape

    emphasised = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", emphasised))


def markup(svg: str) -> Any:
    """A figure of ours as markup that needs no escaping."""
    from markupsafe import Markup

    return Markup(svg)
