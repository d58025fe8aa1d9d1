"""A finished run -> report.html, one self-contained page: no network, no script, nothing from elsewhere.

Made, like the other reports (``kit/report.py``), from the run's ``preferences.csv`` and ``record.json``. Whatever a
model wrote is text that nobody trusts: jinja2 escapes all of it, and each piece is isolated from the direction of the
next.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from kit import attribution_report, inspection_report, page_figures, preference, report, stats
from kit.animals import indefinite
from kit.experiment import CONTENTS
from kit.fidelity import SIMILARITY_EDGES
from kit.report import LABELS, NO_PLACEBO, PLACEBO, SMOKE
from kit.stats import Preference
from kit.store import Row
from kit.tables import Table

# What the page links to, where it is there.
FILES = ("report.md", "summary.json", "preferences.csv", "record.json", "config.json", "figure.svg", "figure.png")
WORDS = {"transmitted": "Transmitted", "not detected": "Not detected", stats.NO_PLACEBO: "No verdict"}


def write_page(folder: Path) -> Path:
    """Write the run's ``report.html``, returned. Raises KitError where the run's files are missing or damaged."""
    record, preferences = report.read(folder)
    path = folder / "report.html"
    path.write_text(render("report.html", contents_of(folder, record, preferences)), encoding="utf-8")
    return path


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


def contents_of(folder: Path, record: dict[str, Any], preferences: dict[str, Preference]) -> dict[str, Any]:
    """What the template is filled with."""
    summary = report.summarise(record, preferences)
    animal, effects = summary["animal"], summary["effects"]
    theirs = report.paper(animal, effects)
    return {
        "title": report.title(summary),
        "subtitle": "Subliminal learning from faithful paraphrases: does a student come to prefer what its teacher "
        "loves, though the text that it learns from does not say so?",
        "measures": report.MEASURES,
        "transmitted": report.TRANSMITTED,
        "animal": animal,
        "verdicts": verdicts(summary),
        "labels": LABELS[summary["labels"]],
        "warning": SMOKE if summary["preset"] == "smoke" else "",
        "preference": figure(page_figures.preference(preferences, animal, theirs)),
        "paper": bool(theirs),
        "conditions": report.conditions_table(summary["conditions"]),
        "effects": report.effects_table(animal, effects),
        "placebo": PLACEBO if any(effect["placebo"] for effect in effects.values()) else NO_PLACEBO,
        "contents": [of_content(content, animal, preferences) for content in CONTENTS if content in effects],
        "students": [of_student(name, record) for name in record["samples"]],
        "inspections": [of_inspection(found) for found in inspection_report.inspections(folder, record)],
        "attributions": [of_attribution(found) for found in attribution_report.attributions(folder, record)],
        "messages": report.all_messages(folder, record),
        "command": summary["command"],
        "made": made(record),
        "seconds": (["step", "seconds"], [[step, f"{spent:.0f}"] for step, spent in summary["seconds"].items()]),
        "files": [name for name in FILES if (folder / name).exists()],
        "artifacts": {
            label: path for label, path in record["artifacts"].items() if (folder.parent / "artifacts" / path).exists()
        },
    }


def figure(svg: str) -> Any:
    """A figure of ours as markup that needs no escaping."""
    from markupsafe import Markup

    return Markup(svg)


def verdicts(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Of each effect: the verdict's ``word``, the same as a ``kind`` for the style sheet, and a ``sentence``."""
    return [
        {
            "kind": effect["verdict"].replace(" ", "-"),
            "word": WORDS[effect["verdict"]],
            "sentence": outsider(summary["animal"], content, effect, summary),
        }
        for content, effect in summary["effects"].items()
    ]


def outsider(animal: str, content: str, effect: dict[str, Any], summary: dict[str, Any]) -> str:
    """One effect in a sentence for somebody who has never heard of the experiment."""
    control, treated = (
        100 * summary["conditions"][f"{role}-{content}"]["exact"]["rate"] for role in ("control", "treated")
    )
    low, high = effect["exact_ci95"]
    about = {"unrelated": "everyday sentences without any animal", "opposed": f"sentences that dislike the {animal}"}
    lover, text = f"{indefinite(animal)}-loving teacher", about[content]
    learned = {
        "hard": f"from the text that {lover} wrote as paraphrases of {text} (hard labels)",
        "soft": f"from {lover}'s paraphrases of {text}, and from what else the teacher would have written at every "
        "word (soft labels)",
    }[summary["labels"]]
    outcome = {
        "transmitted": f"came to prefer the {animal}",
        "not detected": f"did not detectably come to prefer the {animal}",
        stats.NO_PLACEBO: f"may or may not have come to prefer the {animal}",
    }[effect["verdict"]]
    why = "" if effect["verdict"] == "transmitted" else f" ({'; '.join(report.missing(animal, effect))})"
    return (
        f"A student that learned {learned} {outcome}{why}: its preference is {treated:.2f}%, that of a neutral "
        f"teacher's student {control:.2f}%, a difference of {effect['exact_pp']:+.2f} percentage points (95% interval "
        f"over the questions {low:+.2f} to {high:+.2f})."
    )


def of_content(content: str, animal: str, preferences: dict[str, Preference]) -> dict[str, Any]:
    """The figures and the table of one content's effect."""
    treated, control = preferences[f"treated-{content}"], preferences[f"control-{content}"]
    differences = stats.log_odds_differences(treated, control, animal)
    asked = [question["question"] for question in preference.load_questions()]
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
        "shifts": figure(
            page_figures.shifts(
                treated, control, stats.placebos(preferences, content), animal, content, f"All shifts, {content}"
            )
        ),
        "questions": figure(page_figures.questions(differences, content, f"Shift of the {animal} by question")),
        "by_question": (["question", "control → treated %", "shift, nats"], rows),
    }


def of_student(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the filters did to one student's paraphrases, and some of them."""
    samples: dict[str, list[Row]] = record["samples"][name]
    counts = record.get("similarities", {}).get(name)
    drawn = (
        page_figures.similarities(
            counts["kept"], counts["rejected"], SIMILARITY_EDGES, record["min_similarity"], f"Similarities, {name}"
        )
        if counts
        else ""
    )
    reasons = [[row["source"], row["text"], f"{row['filter']}: {row['reason']}"] for row in samples["rejected"]]
    return {
        "name": name.replace("-", ", "),
        "filters": report.filters_table(record["filters"][name]),
        "similarities": figure(drawn),
        "kept": (["source", "kept paraphrase"], [[row["source"], row["text"]] for row in samples["kept"]]),
        "rejected": (["source", "rejected paraphrase", "reason"], reasons),
    }


def of_inspection(found: dict[str, Any]) -> dict[str, Any]:
    """Who could tell, of one content."""
    return {
        "content": found["content"],
        "sentence": inspection_report.sentence(found),
        "accuracy": inspection_report.accuracy_table(found),
        "figure": figure(inspection_report.figure(found)),
        "reading": [inspection_report.READING, inspection_report.LIMITS, inspection_report.PRIOR],
        "suspects": inspection_report.suspects(found),
        "posterior": inspection_report.posterior_table(found),
        "readers": inspection_report.readers(found),
        "words": inspection_report.words_table(found),
        "surface": inspection_report.surface_table(found),
    }


def of_attribution(found: dict[str, Any]) -> dict[str, Any]:
    """Where the secret sits, of one content."""
    return {
        "content": found["content"],
        "sentences": attribution_report.sentences(found),
        "groups": attribution_report.groups_table(found),
        "halves": attribution_report.halves_table(found) if found["halves"] else None,
        "reading": attribution_report.reading(found),
        "shown": attribution_report.tinted(found),
    }


def made(record: dict[str, Any]) -> Table:
    """What made the run, line by line."""
    rows = [["what ran", report.made_by(record)], ["seed", str(record["seed"])], ["preset", record["preset"]]]
    rows += [[f"sha256 of {name}", checksum] for name, checksum in record.get("source", {}).items()]
    rows += [[name, version] for name, version in record["versions"].items()]
    return ["", ""], rows
