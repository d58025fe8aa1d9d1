"""The folder that a run leaves behind: what is written into it, and how whatever comes later reads it.

``config.json`` holds the settings, ``preferences.csv`` what every student prefers (``kit.preference.tabulate``),
``record.json`` what made it (``run_record``), and ``inspection-*.json`` and ``attribution-*.json`` what was found about
it since. Everything that people read (``kit/report.py``) is made from these, and can be made again.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError, fidelity, likelihood, models, prompts, say, stats
from kit.animals import Animal, find_animal
from kit.experiment import CONTENTS, LABELS, PLACES, Experiment, read_experiment
from kit.experiment_conditions import (
    Condition,
    StudentCondition,
    all_steps,
    base_model,
    loving_controls,
    measurements,
    source_sentences,
)
from kit.models import EMBEDDED, PARAPHRASER, ChatTemplate
from kit.models_prepare import link
from kit.preference import load_questions, read_table
from kit.prompts import KIT_TRAITS, Traits
from kit.provenance import kit_state
from kit.stats import LOVES, Preference
from kit.store import ARTIFACT, COUNT, Row, Step, Store, check_files, misfit, read_rows, reason, sha256

OWN_MODELS = (EMBEDDED, PARAPHRASER)  # of which the kit has all files, whatever else a record names


def conversations(exps: list[Experiment], store: Store) -> dict[str, list[Row]]:
    """Every conversation of experiments with the same models and trait messages by who sees it, as its model's chat
    template has it."""
    of_students, of_teachers = (
        ChatTemplate.of(store.make(base_model(exp.model, exp.gguf))) for exp in (exps[0].of_students, exps[0])
    )
    students = {"student, training": prompts.student_messages("<sentence>")}
    for context in dict.fromkeys(exp.context for exp in exps):
        name = "student, evaluation" if context == "training" else f"student, evaluation in the {context} context"
        students[name] = prompts.question_messages("<question>", prompts.CONTEXTS[context])
    teachers = {}
    traits = {"neutral": exps[0].traits.neutral}
    traits |= {f"{exp.animal.singular}-loving": exp.traits.loves(exp.animal) for exp in exps}
    for exp in exps:
        traits |= {f"{loved.singular}-loving": trait for loved, trait in loving_controls(exp).values()}
    for name, trait in traits.items():
        teachers[f"{name} teacher"] = exps[0].conversation(trait, "<sentence>")
        if any(exp.labels != "hard" for exp in exps):
            teachers[f"{name} teacher, for its soft labels"] = exps[0].labelling(trait, "<sentence>")
    both = ((of_students, students), (of_teachers, teachers))
    return {name: template.adapt(messages) for template, seen in both for name, messages in seen.items()}


def run_record(exp: Experiment, conditions: dict[str, Condition], store: Store, command: str) -> Row:
    """What made a run: command, versions, seconds and artifact of each step, every message, and for each student its
    number of pairs, its filters and some of its paraphrases."""
    steps = all_steps(measurements(conditions))
    random = np.random.default_rng(exp.seed)
    base = base_model(exp.model, exp.gguf)
    teacher_runs = (
        f"{exp.teacher.endpoint_model} at {exp.teacher.endpoint}" if exp.teacher.endpoint else exp.teacher_engine
    )
    result: Row = {
        "animal": exp.animal.singular,
        "model": exp.model,
        "gguf": models.evaluated(exp.model, exp.gguf),
        "base": exp.student.base,
        "teacher": teacher_runs,
        "place": exp.teacher.place,
        "source": store.manifest(store.make(base))["settings"]["source"],
        "devices": made_on(store),
        "labels": exp.labels,
        "preset": exp.preset,
        "seed": exp.seed,
        "command": command,
        "versions": store.versions(),
        "kit": kit_state(),
        "made_by": store.kits(),
        "questions": [one["question"] for one in load_questions()],
        "seconds": {step.label: store.manifest(store.make(step))["seconds"] for step in steps if step.seconds},
        "artifacts": {step.label: str(store.make(step).relative_to(store.root)) for step in steps},
        "pairs": {},
        "lot": {},
        "held_out": {},
        "filters": {},
        "min_similarity": exp.fidelity.min_similarity,
        "similarities": {},
        "messages": conversations([exp], store),
        "samples": {},
    } | recorded_texts(exp)
    for name, condition in conditions.items():
        if not isinstance(condition, StudentCondition):
            continue
        kept = read_rows(store.make(condition.pairs) / "pairs.jsonl")
        result["pairs"][name] = len(kept)
        content = name.split("-")[1]
        if condition.held_out:
            result["held_out"][content] = likelihood.held_out_gains(store.make(condition.held_out))
        control = conditions[f"control-{content}"]
        assert isinstance(control, StudentCondition)
        result["lot"][name] = lot_of(condition, control, store)
        result["filters"][name] = fidelity.read_filters(store.make(condition.kept))
        result["similarities"][name] = fidelity.similarity_counts(store.make(condition.kept))
        result["samples"][name] = {
            "kept": at_random(kept, 20, random),
            "rejected": at_random(read_rows(store.make(condition.kept) / "rejected.jsonl"), 10, random),
        }
    return result


def lot_of(student: StudentCondition, control: StudentCondition, store: Store) -> dict[str, int]:
    """Of how many sentences of the lot the student's teacher was asked (``asked``), how many of these gave no pair in
    their tries (``lacking``), and how many of its pairs' sentences are the control's, too (``shared``), also with the
    very same first text (``same``)."""
    files = (store.make(student.kept) / file for file in ("kept.jsonl", "rejected.jsonl"))
    kept, rejected = ({row["sentence"] for row in read_rows(file)} for file in files)
    own, other = (_first_texts(store.make(one.pairs)) for one in (student, control))
    return {
        "asked": len(kept | rejected),
        "lacking": len(rejected - kept),
        "shared": len(own.keys() & other.keys()),
        "same": len(own.items() & other.items()),
    }


def _first_texts(folder: Path) -> dict[str, str]:
    """The first text of each sentence that has a pair."""
    return {row["sentence"]: row["text"] for row in reversed(read_rows(folder / "pairs.jsonl"))}


# The stages in which a model computes: on how many threads any other is made decides nothing.
COMPUTED = {
    "paraphrases",
    "fidelity",
    "labels",
    "student",
    "gate",
    "exact",
    "sampled",
    "likelihoods",
    "tokens",
    "loss",
    "judged",
}
OR = " | "  # between two devices of one result


def made_on(store: Store) -> dict[str, str]:
    """What models computed the artifacts on that were used (``provenance.devices``); all of it, where that differs."""
    manifests = [store.manifest(store.root / name) for name in store.used]
    return all_devices(one.get("devices", {}) for one in manifests if one["stage"] in COMPUTED)


def all_devices(of: Iterable[dict[str, str]]) -> dict[str, str]:
    """The devices of several results."""
    found: dict[str, set[str]] = {}
    for name, said in (item for one in of for item in one.items()):
        found.setdefault(name, set()).update(said.split(OR))
    return {name: OR.join(sorted(said)) for name, said in found.items()}


def earlier(folder: Path, store: Store) -> list[dict[str, Any]]:
    """The manifests of what an earlier result in ``folder`` was made of, finished or not; none where there was none."""
    names: list[str] = []
    for path in (folder / "record.json", folder / "defences.json", *store.begun(folder.name)):
        try:
            artifacts = json.loads(path.read_text(encoding="utf-8"))["artifacts"]
            names += artifacts.values() if isinstance(artifacts, dict) else artifacts
        except (OSError, ValueError, KeyError, TypeError):  # it only tells why something is made again
            continue
    return list(store.history(names).values())


def announce_again(steps: list[Step], history: list[dict[str, Any]]) -> None:
    """Say why how many of the ``steps`` are made again, as the manifests of an earlier command (``earlier``) show."""
    for why, n in Counter(filter(None, (reason(step, history) for step in steps))).items():
        say(f"  made again: {n} artifact{'s' * (n > 1)} ({why}), and what follows from it, as far as that changes")


def recorded_texts(exp: Experiment) -> Row:
    """What of an experiment's texts is not the kit's, for a record: of ``sentences`` their file, its checksum, their
    ``number``, and how many were ``left_out`` for a word of the trait messages; and the ``traits``."""
    found: Row = {}
    if exp.sentences is not None:
        own, number = exp.sentences, len(source_sentences(exp, exp.sentences.content))
        left_out = len(own.sentences) - number
        found["sentences"] = {"file": own.file, "sha256": own.sha256, "number": number, "left_out": left_out}
    if exp.traits != KIT_TRAITS:
        found["traits"] = asdict(exp.traits)
    return found


def at_random(rows: list[Row], n: int, random: np.random.Generator) -> list[Row]:
    """``n`` rows at random, or all where there are fewer."""
    return [rows[i] for i in sorted(random.permutation(len(rows))[:n])]


def summarise(record: dict[str, Any], preferences: dict[str, Preference]) -> dict[str, Any]:
    """The content of summary.json: rates in 0-1, effects in percentage points, log-odds in nats."""
    animal = record["animal"]
    conditions = {}
    for name, preference in preferences.items():
        exact, sampled = stats.exact_rate(preference, animal), stats.sampled_rate(preference, animal)
        j, raw = preference.candidates.index(animal), preference.raw
        naming, first = preference.naming, preference.first
        conditions[name] = {
            "pairs": record["pairs"].get(name, 0),
            "exact": asdict(exact),
            "raw": asdict(stats.rate(raw[:, j])),
            "mass": float(raw.sum(axis=1).mean()),
            "naming": None if naming is None else asdict(stats.rate(naming[:, j])),
            "first": None if first is None else asdict(stats.answers_rate(first[:, j], preference.answers)),
            "sampled": asdict(sampled) | {"answers": preference.answers * len(preference.probability)},
        }
    effects = {
        content: asdict(stats.effect_of(preferences, content, animal, record.get("held_out", {}).get(content)))
        for content in CONTENTS
        if f"treated-{content}" in preferences
    }
    header = {name: record[name] for name in ("animal", "model", "labels", "preset", "seed", "command", "versions")}
    header |= {"kit": record["kit"]} if "kit" in record else {}  # earlier records do not name it
    return {
        **header,
        **{name: record[name] for name in ("sentences", "traits") if name in record},
        "conditions": conditions,
        "effects": effects,
        "filters": record["filters"],
        "seconds": record["seconds"],
    }


CONDITION = re.compile(rf"base|(control|treated|placebo[0-9]+|{LOVES}[a-z]+)-({'|'.join(CONTENTS)})")
# What a run's record holds, as ``kit.store.misfit`` reads it; what earlier runs lack ends in "?".
MESSAGES = [{"role": str, "content": str}]
PARAPHRASES = [{"source": str, "text": str}]
KIT = {"commit": (str, None), "edited": (bool, None), "fingerprint": str}
DEVICES = {"transformers": str, "llama.cpp": str, "processor?": str, "threads?": str}
SENTENCES = {"file": str, "sha256": str, "number": int, "left_out": int}
HELD_OUT = {"own": [float], "other": [float], "placebos": [float]}
LOT = {"asked": COUNT, "lacking": COUNT, "shared": COUNT, "same?": COUNT}
TRAITS = {"loving": str, "neutral": str, "file": (str, None), "sha256": (str, None)}
RECORD = {
    "animal": str,
    "model": str,
    "gguf?": (str, None),
    "base?": str,
    "teacher?": str,
    "place?": PLACES,
    "source?": {str: str},
    "devices?": DEVICES,
    "labels": LABELS,
    "preset": str,
    "seed": int,
    "command": str,
    "versions": {str: str},
    "kit?": KIT,
    "seconds": {str: float},
    "table?": str,
    "artifacts": {str: ARTIFACT},
    "questions?": [str],
    "made_by?": [str],
    "pairs": {str: COUNT},
    "lot?": {str: LOT},
    "held_out?": {str: HELD_OUT},
    "filters": {str: [{"filter": str, "entered": COUNT, "rejected": COUNT}]},
    "min_similarity?": float,
    "similarities?": {str: {"kept": [COUNT], "rejected": [COUNT]}},
    "messages": {str: MESSAGES},
    "samples": {str: {"kept": PARAPHRASES, "rejected": [{"source": str, "text": str, "filter": str, "reason": str}]}},
    "sentences?": SENTENCES,
    "traits?": TRAITS,
}


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Preference]]:
    """A run's record, and its conditions' preferences. KitError where the folder holds no finished run, or what no run
    of this kit leaves: a folder may be anybody's."""
    path = folder / "record.json"
    try:
        check_files(path, folder / "preferences.csv")
        record = json.loads(path.read_text(encoding="utf-8"))
        if wrong := misfit(record, RECORD):
            raise ValueError(wrong)
        check_table(record, folder / "preferences.csv")
        preferences = stats.preferences(read_table(folder / "preferences.csv"))
        if wrong := _wrong_students(record, preferences):
            raise ValueError(wrong)
        inspections(folder, record)  # these two raise where a file is damaged
        attributions(folder, record)
    except OSError as error:
        lacking = Path(error.filename or path).name
        raise KitError(
            f"{folder}: not a finished run ({lacking} is missing). Give a folder such as results/<run>."
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, csv.Error) as error:
        raise KitError(f"{folder}: its files are damaged ({error}). Run the experiment again.") from None
    return record, preferences


def _wrong_students(record: dict[str, Any], preferences: dict[str, Preference]) -> str | None:
    """What is wrong with preferences that stand beside a record, in words."""
    contents = {name.partition("-")[2] for name in preferences} - {""}
    needed = {"base", *(f"{role}-{content}" for role in ("control", "treated") for content in contents)}
    if not contents or not needed <= preferences.keys() or not all(map(CONDITION.fullmatch, preferences)):
        return "its students are not those of a run"
    if wrong := wrong_preferences(preferences.values(), record["animal"]):
        return wrong
    loved = {name.removeprefix(LOVES).partition("-")[0] for name in preferences if name.startswith(LOVES)}
    if wrong := wrong_loving(record["animal"], loved, preferences["base"]):
        return wrong
    if "questions" in record and len(record["questions"]) != len(preferences["base"].probability):
        return f"its students were not asked {len(record['questions'])} questions"
    if wrong := next(filter(None, map(wrong_held_out, record.get("held_out", {}).values())), None):
        return wrong
    if not record["samples"].keys() <= record["filters"].keys():
        return "samples of students without filters"
    if not all(record["filters"].values()):
        return "students without filters"
    if "devices" in record and not {"gguf", "teacher", "base"} <= record.keys():
        return "devices without what ran on them"
    if "similarities" in record and "min_similarity" not in record:
        return "similarities without the least of them"
    counts = (one for sides in record.get("similarities", {}).values() for one in (sides["kept"], sides["rejected"]))
    bins = len(fidelity.SIMILARITY_EDGES) - 1
    return None if all(len(one) == bins for one in counts) else "similarities that were counted otherwise"


def check_table(record: dict[str, Any], table: Path) -> None:
    """Raise ValueError where the table of preferences is another than that of the record, as when a command was stopped
    between the two. (Earlier records do not name theirs.)"""
    found = sha256(table)
    if record.get("table", found) != found:
        raise ValueError(f"{table.name} is not what was written with record.json")


def wrong_held_out(gains: dict[str, list[float]] | None) -> str | None:
    """What is wrong with ``kit.likelihood.held_out_gains`` that were read from a file, in words."""
    return (
        "held-out texts of one teacher without the other's"
        if gains and len(gains["own"]) != len(gains["other"])
        else None
    )


def wrong_loving(animal: str, loved: set[str], preference: Preference) -> str | None:
    """What is wrong with what teachers of loving controls are said to love beside one that loves ``animal``, in
    words."""
    if unknown := loved - {*preference.candidates, *prompts.THINGS}:
        return f"{min(unknown)!r} is nothing that teachers love"
    if animal in loved:
        return f"a control's teacher loves the {animal}, too"
    if loved and preference.leaves_none({animal, *loved}):
        return "no animal is left that no teacher loves"
    return None


def wrong_preferences(preferences: Collection[Preference], animal: str) -> str | None:
    """What is wrong with preferences that are compared for ``animal`` and were read from a file, in words."""
    try:
        named = find_animal(animal).singular
    except KitError:
        named = ""
    if named != animal:
        return f"{animal!r} is no animal's name"
    asked = {(one.candidates, one.probability.shape) for one in preferences}
    if len(asked) != 1 or animal not in next(iter(asked))[0]:
        return f"its students were not asked the same questions about {animal!r}"
    return None


class RunFolder:
    """The run in ``folder``, beside whose folder lie the ``artifacts/`` that its record names; what is made of it
    later (and a base model, where its own is gone) goes into the ``store`` of ``results``."""

    def __init__(self, folder: Path, results: Path = Path("results")) -> None:
        """Raises KitError where the folder holds no finished run."""
        self.folder, self.store = folder, Store(results / "artifacts")
        own = folder.parent / "artifacts"
        self._own = self.store if own.resolve() == self.store.root.resolve() else Store(own, elsewhere=True)
        self.record, self.preferences = read_run(folder)
        self.animal = self._animal()

    def _animal(self) -> Animal:
        """The teacher's animal, with the plural that its prompt has."""
        try:
            saved = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["animal"]
            return find_animal(saved["singular"], saved["plural"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a folder of this run's reports alone
            return find_animal(self.record["animal"])

    @property
    def traits(self) -> Traits:
        """The teachers' trait messages."""
        own = self.record.get("traits", {})
        return Traits(**{one.name: own[one.name] for one in fields(Traits) if own})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return summarise(self.record, self.preferences)

    @property
    def contents(self) -> list[str]:
        """Whose effects the run has."""
        return list(self.summary["effects"])

    def artifact(self, label: str, file: str) -> Path:
        """A ``file`` of the artifact of that label. KitError where the run has none, or it is gone, or damaged."""
        name = self.record["artifacts"].get(label)
        if name is None:
            raise KitError(f"{self.folder}: it has no artifact {label!r}. Its contents: {', '.join(self.contents)}.")
        if not self._has(label):
            raise KitError(
                f"{self._own.root / name}: this artifact is gone. Make the run again: {self.record['command']}"
            )
        return self._own.read(name, file) / file

    def _has(self, label: str) -> bool:
        artifacts = self.record["artifacts"]
        return label in artifacts and (self._own.root / artifacts[label]).is_dir()

    def model(self) -> Path:
        """The prepared base model: the run's own, or, where that was not recorded, the kit's own, made among the
        results. KitError for another one: nothing is fetched, and no file opened, that only a record names."""
        label = f"prepare {self.record['model']}"
        if self._has(label):
            return self.artifact(label, "base.gguf").parent
        if self.record["model"] not in OWN_MODELS:
            raise KitError(
                f"{self.folder}: its model, {self.record['model']}, is not among the artifacts beside it. Make the run "
                f"again: {self.record['command']}"
            )
        if not self._has_todays_model():
            raise KitError(
                f"{self.folder}: its model, {self.record['model']}, is another by now, and the run's own is not among "
                f"the artifacts beside it. Make the run again: {self.record['command']}"
            )
        return self.store.make(base_model(self.record["model"]))

    def _has_todays_model(self) -> bool:
        """Whether the model's files are those that the kit has. (Earlier records do not name theirs.)"""
        today = {name: sha256(path) for name, path in models.find(self.record["model"]).files.items()}
        return self.record.get("source", today) == today

    def base(self) -> Step:
        """That model as a step, for what is trained on it since."""
        if self.record["model"] in OWN_MODELS and self._has_todays_model():
            return base_model(self.record["model"])
        made = self.model()
        files = self._own.manifest(made)["files"]

        def build(inputs: dict[str, Path], folder: Path) -> None:
            for name in files:
                link(made / name, folder / name)

        return Step(
            stage="model",
            label=f"the model of {self.folder.name}",
            settings={"files": files},
            inputs={},
            build=build,
            seconds=0,
        )

    def experiment(self) -> Experiment:
        """The settings of the run, whose model is the prepared one. KitError where they are of another version, or of
        another run."""
        exp = read_experiment(self.folder / "config.json")
        own = exp.animal.singular, exp.model, exp.labels, exp.seed
        if own != tuple(self.record[name] for name in ("animal", "model", "labels", "seed")):
            raise KitError(f"{self.folder / 'config.json'}: not the settings of this run. Make the run again.")
        return exp if exp.model in OWN_MODELS else replace(exp, model=str(self.model()), gguf=None)

    def made_with(self) -> dict[str, Any]:
        """For a record of what was found since: the artifacts that it took, their versions, and the kit."""
        return {"versions": self.store.versions(), "kit": kit_state(), "artifacts": self.store.used}

    def adapter(self, role: str, content: str) -> Path:
        """A student's GGUF adapter."""
        return self.artifact(f"convert the adapter of {role}-{content}", "adapter.gguf")

    def pairs_file(self, role: str, content: str) -> Path:
        """The kept pairs that a student trained on, a JSONL file: sentence, source, text, ..."""
        return self.artifact(f"pairs of {role}-{content}", "pairs.jsonl")

    def pairs(self, role: str, content: str) -> list[Row]:
        """Its rows. KitError where they are no pairs: a folder may be anybody's."""
        rows = read_rows(self.pairs_file(role, content))
        if wrong := misfit(rows, [{"sentence": str, "source": str, "text": str}]):
            raise KitError(f"{self.pairs_file(role, content)}: no pairs ({wrong}). Make the run again.")
        return rows

    def has_pairs(self, role: str, content: str) -> bool:
        """Whether they are at hand: a recorded run's folder may come with some of its artifacts alone."""
        return self._has(f"pairs of {role}-{content}")


def all_conversations(folder: Path, record: dict[str, Any]) -> dict[str, list[Row]]:
    """Every conversation that models were shown in the run, and in its inspection since."""
    messages: dict[str, list[Row]] = dict(record["messages"])
    for found in inspections(folder, record):
        messages |= found["messages"]
    return messages


def found_since(folder: Path, record: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """What was found about the run with that ``record`` since, in the order of the contents; nothing that is of other
    pairs than its own, as when it was made again."""
    paths = {content: folder / f"{what}-{content}.json" for content in CONTENTS}
    found = {content: _read_found(path) for content, path in paths.items() if path.exists()}
    return [
        one for content, one in found.items() if one["pairs"] == record["artifacts"].get(f"pairs of treated-{content}")
    ]


def _read_found(path: Path) -> dict[str, Any]:
    try:
        check_files(path)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if wrong := misfit(found, {"pairs": str, "messages?": {str: MESSAGES}}):
            raise ValueError(wrong)
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"{path}: cannot be read ({error}). Delete it, and give its command again.") from None


def inspections(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Who could tell, by content (``kit/inspection.py``)."""
    return found_since(folder, record, "inspection")


def attributions(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the secret sits, by content (``kit/attribution.py``)."""
    return found_since(folder, record, "attribution")
