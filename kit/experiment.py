"""What one experiment is: its settings, stage by stage, the presets, the checks on what the user asked for, and what
memory it needs.

This is the one place with defaults. ``--preset`` is the dial of scale; every other setting follows from it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kit import KitError, say
from kit.animals import Animal, OwnSentences, Sentence, find_animal, is_listed, load_animals
from kit.memory import (
    CPU_OVERHEAD,
    GIB,
    GPU_OVERHEAD,
    Device,
    adapter_bytes,
    fit_training,
    gib,
    llama_cpp_bytes,
    sampling_width,
    sequence_bytes,
    weight_bytes,
)
from kit.models import EMBEDDED, EVERY_WEIGHT, PACKAGED, PARAPHRASER, QWEN, Shape, find_config, is_gguf
from kit.prompts import (
    CONTEXTS,
    KIT_TRAITS,
    THINGS,
    Conversation,
    Traits,
    in_the_users_turn,
    labelling_messages,
    teacher_messages,
)
from kit.store import check_writable

CONTENTS = ("unrelated", "opposed")
LABELS = ("hard", "soft", "clean")
BASES = ("gguf", "nf4")
ENGINES = ("llama.cpp", "torch")
PLACES = ("system", "user", "alone")


# What the grid of a sweep can vary, and how its values are read.
GRID_SETTINGS: dict[str, type] = {
    "labels": str,
    "pairs": int,
    "rank": int,
    "learning_rate": float,
    "epochs": int,
    "base": str,
    "batch_size": int,
    "averaged": int,
    "temperature": float,
    "place": str,
    "context": str,
}


@dataclass(frozen=True)
class TeacherSettings:
    """How sentences are paraphrased: one after another, each until a paraphrase passes the fidelity filters, ``tries``
    times at most."""

    # A pair takes more samples the more often hard sentences are tried, and more sentences, which other seeds then draw
    # again, the less often: with 4, 8 and 12 tries 38, 51 and 58% of 600 sentences gave one, from 9, 11 and 13 samples
    # (the strict filters, a model tuned in two rounds).
    tries: int = 8
    max_tokens: int = 40  # a sentence has 16 words at most
    # Filters that pass a sixth of the paraphrases at 1.0 pass a quarter at 0.8 and 0.6, and a fifth at 0.4, where most
    # are copies (150 sentences, two teachers, three samples each).
    temperature: float = 0.7
    engine: str | None = None  # llama.cpp, on the GGUF | torch: transformers | None: see ``Experiment.teacher_engine``
    endpoint: str | None = None  # the URL of an OpenAI-compatible server, which then takes the engine's place
    endpoint_model: str = ""  # what that server calls the student's base
    # Of the trait message (``kit/prompts.py``): its own | user: it opens the user's turns | alone: that of the request
    # alone, with no worked example before it.
    place: str = "system"


@dataclass(frozen=True)
class FidelitySettings:
    """When a paraphrase counts as faithful. Thresholds: see ``kit/fidelity.py`` for what chose them."""

    min_length_ratio: float = 0.5  # words of the paraphrase / words of the source
    max_length_ratio: float = 1.5
    min_similarity: float = 0.9  # cosine of MiniLM sentence embeddings
    details: bool = False  # also the filters of function words, content words and roles
    min_word_similarity: float = 0.65  # of details: cosine of a content word's embedding and the other side's nearest
    min_faithful: float = 0.97  # of details: share of the classifier's votes
    max_sentiment_gain: float = 0.3  # opposed content: VADER compound (-1 to 1) of the paraphrase minus the source's
    max_overlap: float = 0.85  # novelty: similarity of the word sequences (difflib ratio) above which it is a copy


@dataclass(frozen=True)
class StudentSettings:
    """How a student is trained (QLoRA, every linear layer; with the rank ``EVERY_WEIGHT``, the model itself)."""

    base: str = "gguf"  # gguf | nf4
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 5e-4
    epochs: int = 2
    batch_size: int = 16
    averaged: int = 1  # trainings on the same pairs, of other initial values and orders, whose adapters are averaged
    # Soft labels: likeliest tokens kept per position, the rest merged into one outcome. Of the divergence between the
    # owl-loving teacher and the base (0.144 nats per token, 80 pairs) 16 keep 67%, 64 81%, 256 91%, 1024 96%; 256 take
    # 2 KB per token.
    top_k: int = 256


@dataclass(frozen=True)
class PreferenceSettings:
    """How a preference is sampled (the exact measure has no dial)."""

    answers: int = 10  # per question
    max_tokens: int = 24


@dataclass(frozen=True)
class Experiment:
    """One run of ``run.py``: an animal, the contents and labels, the scale, and each stage's settings."""

    animal: Animal
    contents: tuple[str, ...] = CONTENTS
    labels: str = "soft"
    seed: int = 0
    model: str = EMBEDDED
    gguf: str | None = None  # what llama.cpp evaluates, where the model is no GGUF itself
    preset: str = "laptop"
    pairs: int = 400  # per student on unrelated sentences
    opposed_pairs: int = 200  # per student on opposed sentences, of which there are fewer
    placebos: int = 1  # students per content whose teacher is the control's, sampled anew
    loving_controls: tuple[str, ...] = ()  # further controls: what their teachers love, a listed animal or a thing
    student_model: str | None = None  # what students start from, where that is another model than their teachers'
    context: str = "training"  # in which students are asked, or another: after a system message of its own
    confirmatory: bool = False  # on the sentences and the questions that are set aside for a planned test
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    fidelity: FidelitySettings = field(default_factory=FidelitySettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    traits: Traits = KIT_TRAITS
    sentences: OwnSentences | None = None  # None: the kit's

    @property
    def title(self) -> str:
        """The run among others, for people."""
        return f"{self.animal.singular}, {' and '.join(self.contents)}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The run's folder under the results folder, which no other experiment has."""
        return folder_name(self.words, self.unsaid, f"seed{self.seed}")

    @property
    def words(self) -> list[str]:
        """What its name says in words."""
        content = "both" if len(self.contents) > 1 else self.contents[0]
        animal = self.animal.singular.replace(" ", "-")
        return [animal, content, self.labels, self.preset, *self.departures.values()]

    @property
    def unsaid(self) -> dict[str, Any]:
        """Whatever decides the result and is neither the preset's nor plain from the ``words`` (of a model they have
        the file's name alone): setting -> value."""
        preset, pairs = _of_preset(self.animal, self.preset), "pairs" in self.departures
        own = self.student
        dials = replace(
            preset.student, rank=own.rank, learning_rate=own.learning_rate, epochs=own.epochs, base=own.base
        )
        said = replace(
            preset,
            model=self.model if self.model in PACKAGED else preset.model,
            contents=self.contents if len(self.contents) == 1 else CONTENTS,
            labels=self.labels,
            seed=self.seed,
            pairs=self.pairs if pairs else preset.pairs,
            opposed_pairs=self.pairs if pairs else preset.opposed_pairs,
            placebos=self.placebos,
            loving_controls=self.loving_controls,
            student_model=self.student_model if self.student_model in PACKAGED else None,
            confirmatory=self.confirmatory,
            teacher=replace(
                preset.teacher,
                engine=self.teacher.engine,
                place=self.teacher.place,
                tries=FAITHFUL_TRIES if self.fidelity.details else preset.teacher.tries,
                temperature=TEMPERATURES.get(self.model, preset.teacher.temperature),
            ),
            fidelity=replace(preset.fidelity, details=self.fidelity.details),
            student=dials,
            preference=replace(preset.preference, answers=self.preference.answers),
        )
        ours, theirs = _flat(asdict(self)), _flat(asdict(said))
        found = {name: value for name, value in ours.items() if name not in theirs or theirs[name] != value}
        found |= {name: _resolved(found[name]) for name in ("model", "gguf", "student_model") if name in found}
        return found if plainly_named(self.animal) else found | {"animal": asdict(self.animal)}

    @property
    def departures(self) -> dict[str, str]:
        """What departs from the preset, labels aside: setting -> how a folder's name says it."""
        own, theirs = _dials(self), _dials(_of_preset(self.animal, self.preset))
        if not is_gguf(self.model):
            theirs["base"] = "nf4"
        return {name: _said(name, own[name]) for name in own if own[name] != theirs[name]}

    @property
    def teacher_engine(self) -> str:
        """What all teachers run on: llama.cpp, on the GGUF; torch or torch-nf4: transformers, on the weights that the
        student is trained on. Unless the user says which, it follows from what can be read off: torch where a GGUF's
        weights are expanded to F32, thus on a processor with AVX-512, where it samples 1.5 times as fast as llama.cpp
        (with AVX2 alone that was not measured)."""
        from kit import models_prepare

        nf4 = self.student.base == "nf4"
        chosen = self.teacher.engine
        if chosen is None:
            chosen = "torch" if not nf4 and models_prepare.weight_type() == "F32" else "llama.cpp"
        return "torch-nf4" if chosen == "torch" and nf4 else chosen

    @property
    def conversation(self) -> Conversation:
        """What its teachers are asked in: without a worked example where the model was tuned to paraphrase."""
        return conversation_of(self.model, self.teacher.place)

    @property
    def labelling(self) -> Conversation:
        """What its teachers are asked in whose distributions are soft labels."""
        return placed(labelling_messages, self.teacher.place)

    @property
    def of_students(self) -> "Experiment":
        """The experiment as its students see it: with the model that they start from."""
        return replace(self, model=self.student_model, gguf=None, student_model=None) if self.student_model else self

    def pairs_of(self, content: str) -> int:
        """How many pairs a student of this content trains on."""
        return self.pairs if content == "unrelated" else self.opposed_pairs


# smoke: the whole chain as a check of the machinery; its numbers mean nothing.
# quick: a quarter of laptop's pairs, learned from in smaller batches and larger steps (for soft labels; chosen by the
# table of results/reference/defaults/README.md, How few pairs), and fewer answers, of which ten hardly show an effect
# either.
# laptop: chosen by the experiments in results/reference/defaults/README.md.
# text: text alone, with the trait message where the planned test has it (results/reference/hard-labels/PLAN.md), but of
# half as many pairs, in larger steps (chosen by six fresh draws, PILOT.md): four draws of two animals, whose
# students are compared with each other, within an hour.
# paper: the paper's protocol and sizes (hard labels, thousands of pairs, 100 answers); hours on a CPU.
# gpu-*: the same on a consumer GPU, with the largest instruct model whose 4-bit training fits.
_PAPER = {
    "labels": "hard",
    "pairs": 4000,
    "opposed_pairs": 1200,
    "teacher": TeacherSettings(temperature=1.0),
    "student": StudentSettings(epochs=3, learning_rate=2e-4),
    "preference": PreferenceSettings(answers=100),
}
_GPU = _PAPER | {
    "teacher": TeacherSettings(temperature=1.0, engine="torch"),
    "student": StudentSettings(base="nf4", epochs=3, learning_rate=2e-4),
}
# A teacher's, for a model that is not its preset's own. Qwen copies at 0.7: of 192 samples of 48 sentences, by the
# neutral and a penguin-loving teacher, 61 and 63% were too near to their sources, and 24 and 23% kept; at 1.0 these
# were 21 and 27%, and 29 and 27%; at 1.3 9 and 8% were kept, most others having another form or meaning. Three worked
# examples in the place of one, at 1.0: 25 and 24% kept.
TEMPERATURES = {QWEN: 1.0}
# Where the trait message of its teachers stands. Tuned to paraphrase, a model hardly minds a system message: two loving
# teachers' next tokens are 0.003 nats apart, at the head of the user's turn 0.011, and no less of it is kept
# (results/reference/hard-labels/PILOT.md).
PLACE_OF = {PARAPHRASER: "user"}
# How often a sentence is tried where the filters are strict: it passes them at once or hardly ever. Of 1,255 sentences
# 12, 16, 17, 19 and 21% gave a pair in 1, 2, 3, 4 and 8 tries, from 8, 12, 16, 19 and 31 samples a pair (the neutral
# teacher on the paraphrasing base).
FAITHFUL_TRIES = 2
PRESETS: dict[str, dict] = {
    "smoke": {
        "pairs": 12,
        "opposed_pairs": 12,
        "student": StudentSettings(epochs=1, batch_size=4),
        "preference": PreferenceSettings(answers=1),
    },
    "quick": {
        "pairs": 100,
        "opposed_pairs": 100,
        "student": StudentSettings(epochs=2, batch_size=4, learning_rate=1e-3),
        "preference": PreferenceSettings(answers=4),
    },
    "laptop": {},
    "text": {
        "labels": "hard",
        "pairs": 200,
        "placebos": 0,
        "teacher": TeacherSettings(place="user"),
        "student": StudentSettings(learning_rate=1e-3),
    },
    "paper": _PAPER,
    "gpu-8gb": _GPU | {"model": "Qwen/Qwen2.5-3B-Instruct"},
    "gpu-12gb": _GPU | {"model": "Qwen/Qwen2.5-7B-Instruct"},
    "gpu-24gb": _GPU | {"model": "Qwen/Qwen2.5-7B-Instruct", "pairs": 6000},
}
# The presets that are several draws (seeds) of two animals: how many. The other animal is the first of the pilot's two
# that is not the user's, so that no result of the planned test chose it.
DRAWS = {"text": 4}
RIVALS = ("cat", "penguin")


def rival(animal: Animal) -> Animal:
    """The animal that the other teacher loves, where two are compared. KitError for an ``animal`` that its student is
    not asked about."""
    if not is_listed(animal.singular):
        raise KitError(
            f"--animal {animal.singular}: the other animal's students are asked about the listed animals alone. Choose "
            "one of data/animals.json, or a preset of one animal."
        )
    return find_animal(next(name for name in RIVALS if name != animal.singular))


def conversation_of(model: str, place: str) -> Conversation:
    """What teachers are asked in that run on ``model``, with their trait message in that place."""
    without_example = model == PARAPHRASER or place == "alone"
    return placed(labelling_messages if without_example else teacher_messages, place)


def placed(conversation: Conversation, place: str) -> Conversation:
    """The ``conversation`` with its trait messages in that one of ``PLACES``."""
    return conversation if place == "system" else in_the_users_turn(conversation)


def experiment(animal: Animal, preset: str = "laptop", **changes: object) -> Experiment:
    """The preset's experiment with ``changes``, checked. Settings of a teacher, the filters, a student or a preference
    may be named directly (``engine``, ``endpoint``, ``details``, ``rank``, ``learning_rate``, ``epochs``, ``base``,
    ``answers``); a change that is None is no change. A model that comes as a transformers folder is trained on its NF4
    weights.

    Raises KitError for a value that cannot be used.
    """
    if preset not in PRESETS:
        raise KitError(f"--preset {preset}: no such preset. Choose one of {', '.join(PRESETS)}.")
    result = _of_preset(animal, preset)
    changed = {name: value for name, value in changes.items() if value is not None}
    model = str(changed.get("model", result.model))
    if changed.get("student_model") == model:
        del changed["student_model"]
    if not is_gguf(model):
        changed.setdefault("base", "nf4")
    if model in TEMPERATURES:
        changed.setdefault("temperature", TEMPERATURES[model])
    if changed.get("details"):
        changed.setdefault("tries", FAITHFUL_TRIES)
    if model in PLACE_OF:
        changed.setdefault("place", PLACE_OF[model])
    for group in ("teacher", "fidelity", "student", "preference"):
        settings = getattr(result, group)
        own = {name: changed.pop(name) for name in list(changed) if hasattr(settings, name)}
        result = replace(result, **{group: replace(settings, **own)})
    if "pairs" in changed:
        changed["opposed_pairs"] = changed["pairs"]
    result = replace(result, **changed)  # type: ignore[arg-type]
    _check(result)
    return result


def read_experiment(path: Path) -> Experiment:
    """The experiment that a run's ``config.json`` holds. KitError where it is missing, or of another version."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        animal, taught = saved["animal"], saved["teacher"]
        if "tries" not in taught:  # recorded when sentences were tried until all students had as many of each
            taught = {name: value for name, value in taught.items() if name not in ("samples", "max_samples")}
        if "traits" not in saved:  # recorded when llama.cpp was what all teachers ran on, unless somebody chose torch
            taught = taught | {"engine": "torch" if taught.get("engine") == "torch" else None}
        named = find_animal(animal["singular"], animal["plural"])  # as the command line checks it
        exp = Experiment(
            **saved
            | {
                "animal": replace(named, giveaways=tuple(animal["giveaways"])),
                "contents": tuple(saved["contents"]),
                "teacher": TeacherSettings(**taught),
                "fidelity": FidelitySettings(**saved["fidelity"]),
                "student": StudentSettings(**saved["student"]),
                "preference": PreferenceSettings(**saved["preference"]),
                "loving_controls": tuple(saved.get("loving_controls", ())),
                "traits": Traits(**saved.get("traits", {})),  # not in runs recorded before there were others
                "sentences": _own_sentences(saved.get("sentences")),
            }
        )
        _check(exp)
        return exp
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KitError(f"{path}: not the settings of a run of this version ({error}). Make the run again.") from None


def _own_sentences(saved: dict[str, Any] | None) -> OwnSentences | None:
    if saved is None:
        return None
    sentences = tuple(Sentence(one["id"], one["text"]) for one in saved["sentences"])
    return OwnSentences(**saved | {"sentences": sentences})


def _of_preset(animal: Animal, preset: str) -> Experiment:
    return replace(Experiment(animal, preset=preset), **PRESETS[preset])


# ---- the name of its folder: two results that differ never share one


# Bytes of a name: file systems take 255, and what is begun has its name with an ending of 23.
LONGEST_NAME = 200
DIGITS = 12  # hexadecimal, of a hash in a name
# As an animal's, they would be taken for another part of a name.
RESERVED = {"sweep", "defences", "both", *CONTENTS, *LABELS}


def folder_name(words: list[str], unsaid: dict[str, Any], end: str) -> str:
    """A folder's name: the ``words`` and the ``end``, with a hash between them of what they leave ``unsaid``, and a
    hash in place of what would be too long. (Nothing else there is an "x" and hexadecimal digits.)"""
    hashed = [f"x{_digest([words, unsaid])}"] if unsaid else []
    name = "-".join([*words, *hashed, end])
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[: LONGEST_NAME - DIGITS - 2].decode(errors='ignore')}-x{_digest(name)}"


def plainly_named(animal: Animal) -> bool:
    """Whether the singular says all of the animal, and what in a name is the animal's."""
    words = animal.singular.split(" ")
    return "-" not in animal.singular and RESERVED.isdisjoint(words) and animal == find_animal(animal.singular)


def check_destination(folder: Path) -> Path:
    """``folder``, where a result will stand. Raises KitError, before any work, where something else stands there, or
    nothing can."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise KitError(f"{folder}: not a folder, and the result's would be called so. Move it, or choose --results.")
    return check_writable(folder)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, one in value.items():
        found |= _flat(one, f"{before}{name}.") if isinstance(one, dict) else {before + name: one}
    return found


def _resolved(model: str | None) -> str | None:
    """A model by its whole path, where it is one: two files of one name are two models."""
    return str(Path(model).resolve()) if model and Path(model).exists() else model


def _dials(exp: Experiment) -> dict[str, Any]:
    """What the command line can set of a preset."""
    teacher, student = exp.teacher, exp.student
    return {
        "model": exp.model,
        "gguf": exp.gguf,
        "pairs": (exp.pairs, exp.opposed_pairs),
        "rank": student.rank,
        "learning_rate": student.learning_rate,
        "epochs": student.epochs,
        "base": student.base,
        "answers": exp.preference.answers,
        "faithful": exp.fidelity.details,
        "placebos": exp.placebos,
        "loving_controls": exp.loving_controls,
        "student_model": exp.student_model,
        "confirmatory": exp.confirmatory,
        "engine": teacher.engine,
        "place": teacher.place,
        "endpoint": teacher.endpoint and (teacher.endpoint, teacher.endpoint_model),
        "sentences": exp.sentences,
        "traits": exp.traits,
    }


def _said(name: str, value: Any) -> str:
    """A dial's value as a part of a folder's name: letters, digits, dots and hyphens."""
    if name in ("model", "gguf"):
        text = Path(str(value)).name.removesuffix(".gguf")
    elif name in ("faithful", "confirmatory"):
        return name
    elif name == "pairs":
        return f"pairs{value[0]}"
    elif name == "student_model":
        text = f"student {Path(str(value)).name.removesuffix('.gguf')}"
    elif name == "loving_controls":
        text = " ".join(["beside", *value])
    elif name == "endpoint":
        text = f"endpoint {Path(value[1]).name}" if value else "no endpoint"
    elif name in ("sentences", "traits"):  # two files of one name share no folder
        checksum = value.sha256 or hashlib.sha256(repr(value).encode()).hexdigest()
        text = f"{name} {Path(value.file or 'own').stem[:16]}"
        return f"{_slug(text)}-{checksum[:8]}"
    else:
        return str(value) if name in ("base", "engine") else f"{name.replace('learning_rate', 'lr')}{value}"
    return _slug(text)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.casefold()).strip("-.")[:40]


def _check(experiment: Experiment) -> None:
    for option, value, choices in (
        ("--labels", experiment.labels, LABELS),
        ("--base", experiment.student.base, BASES),
        ("--engine", experiment.teacher.engine or ENGINES[0], ENGINES),
        ("--place", experiment.teacher.place, PLACES),
        ("--grid context", experiment.context, tuple(CONTEXTS)),
    ):
        if value not in choices:
            raise KitError(f"{option} {value}: unknown. Choose one of {', '.join(choices)}.")
    for option, number in (
        ("--pairs", min(experiment.pairs, experiment.opposed_pairs)),
        ("--epochs", experiment.student.epochs),
        ("--grid batch_size", experiment.student.batch_size),
        ("--grid averaged", experiment.student.averaged),
        ("--answers", experiment.preference.answers),
    ):
        if number < 1:
            raise KitError(f"{option} {number}: must be at least 1. Leave it out for the preset's value.")
    rank = experiment.student.rank
    if rank < 0:
        raise KitError(f"--rank {rank}: must be at least 1, or {EVERY_WEIGHT}, for no LoRA and every weight.")
    if rank == EVERY_WEIGHT and (experiment.student.base != "gguf" or experiment.student.averaged > 1):
        raise KitError(
            f"--rank {rank}: every weight is trained of a GGUF's float weights alone, and not averaged. Give --base "
            "gguf and no averaged, or a rank of 1 or more."
        )
    if experiment.student.base == "gguf" and not is_gguf(experiment.model):
        raise KitError(
            f"--base gguf: --model {experiment.model} is no GGUF. Leave --base out to train on NF4 weights, or give "
            "a .gguf file as --model to train on that file's weights."
        )
    other = experiment.student_model
    if other and experiment.labels != "hard":
        raise KitError(
            f"--student-model {other}: another model's students learn from text alone, since its tokens may be others. "
            "Add --labels hard."
        )
    if other and not (is_gguf(other) and is_gguf(experiment.model)):
        raise KitError(
            f"--student-model {other}: it and --model {experiment.model} must both be packaged, or .gguf files. Give "
            "such."
        )
    own = experiment.sentences
    if own is not None and experiment.confirmatory:
        raise KitError(
            f"--plan, --sentences-file {own.file}: a planned test has the sentences that are set aside for it. Leave "
            "one of the options out."
        )
    if own is not None and experiment.contents != (own.content,):
        raise KitError(f"--sentences-file {own.file}: its sentences are {own.content}. Give --content {own.content}.")
    endpoint = experiment.teacher.endpoint
    if bool(endpoint) != bool(experiment.teacher.endpoint_model):
        raise KitError(
            f"--teacher-url {endpoint}, --teacher-model {experiment.teacher.endpoint_model or None}: one needs the "
            "other. Give the server's address and what it calls the model."
        )
    if endpoint and experiment.labels != "hard":
        raise KitError(
            f"--labels {experiment.labels}: the teacher at {endpoint} gives text, not its distributions. Add --labels "
            "hard."
        )
    if experiment.placebos < 0:
        raise KitError(f"--placebos {experiment.placebos}: must not be negative. 0 leaves them out.")
    _check_loving_controls(experiment)
    check_seed(experiment.seed)
    if not 0 < experiment.teacher.temperature <= 2:
        raise KitError(
            f"--grid temperature={experiment.teacher.temperature}: must lie above 0, and be 2 at most. The default is "
            "0.7."
        )
    if not 0 < experiment.student.learning_rate < 1:
        raise KitError(
            f"--learning-rate {experiment.student.learning_rate}: must lie between 0 and 1. The default is 5e-4."
        )


def loving_names(given: Iterable[str]) -> tuple[str, ...]:
    """What is loved by the names that an experiment knows it by, whatever form it was given in."""
    known: dict[str, str] = {}
    for name, (one, _) in THINGS.items():
        known |= dict.fromkeys((name, one.singular, one.plural), name)
    for animal in load_animals():
        known |= dict.fromkeys((animal.singular, animal.plural), animal.singular)
    return tuple(known.get(name.casefold(), name) for name in given)


def _check_loving_controls(experiment: Experiment) -> None:
    own = experiment.loving_controls
    option = f"--loving-controls {' '.join(own)}"
    listed = {animal.singular for animal in load_animals()}
    if (wrong := next((name for name in own if name not in listed | THINGS.keys()), None)) is not None:
        raise KitError(
            f"{option}: {wrong} is neither a listed animal (data/animals.json) nor one of {', '.join(THINGS)}. Choose "
            "among these."
        )
    things = [THINGS[name][0] for name in own if name in THINGS]
    loved = {*own, *(one.singular for one in things), *(one.plural for one in things)}
    if len(set(own)) < len(own) or not loved.isdisjoint((experiment.animal.singular, experiment.animal.plural)):
        raise KitError(f"{option}: name what others love than the {experiment.animal.singular}, each once.")
    if listed <= {experiment.animal.singular, *own}:
        raise KitError(f"{option}: no animal is left that no teacher loves, to compare with. Name fewer.")
    if experiment.traits != KIT_TRAITS and things:
        raise KitError(
            f"{option}, --trait-file {experiment.traits.file}: messages of your own have no wording for what is no "
            "animal. Name animals, or leave one of the options out."
        )


SEEDS = 2**32  # transformers seeds numpy's global generator, which takes 32 bits


def check_seed(seed: int) -> None:
    """Raise KitError for a seed that some generator does not take."""
    if not 0 <= seed < SEEDS:
        raise KitError(f"--seed {seed}: must not be negative, nor more than {SEEDS - 1}. Give one such as 0.")


# ---- what an experiment needs in memory, and the preset that fits a machine


Q4_K_M = 4.85  # bits of a weight in what llama.cpp evaluates for a transformers folder
# Tokens of a training pair before any exists: its longest measured over all source sentences, the beginning that all
# pairs share, and the paraphrase with its end token (SmolLM2's tokens; other vocabularies are no smaller).
PAIR_TOKENS, SHARED_TOKENS, LABEL_TOKENS = 73, 30, 19
REQUEST_TOKENS = 50  # of a teacher's conversation, those that it does not share with the next (SmolLM2's: 15 to 35)

# Free GPU memory (GiB) from which a preset is chosen, the largest first.
GPU_PRESETS = {"gpu-24gb": 20.0, "gpu-12gb": 10.0, "gpu-8gb": 6.3}


def choose_preset(device: Device, fallback: str = "laptop") -> tuple[str, str]:
    """The preset for ``device``, ``fallback`` where no GPU has room for one, and the reason in words."""
    if device.kind == "cpu":
        return fallback, "no CUDA GPU was found"
    free = f"{device.free / GIB:.1f} GiB are free on {device.name}"
    for preset, needed in GPU_PRESETS.items():
        if device.free >= needed * GIB:
            return preset, f"{free}, it needs {needed:g}"
    return fallback, f"{free}, too little for {list(GPU_PRESETS)[-1]}"


def memory_requirements(exp: Experiment, device: Device) -> list[tuple[str, float, str]]:
    """What each stage of ``exp`` needs: the ``memory_table`` of its model, or its students'."""
    from kit import models_prepare

    def table(exp: Experiment) -> list[tuple[str, float, str]]:
        bits = models_prepare.BITS[models_prepare.weight_type()] if is_gguf(exp.model) else Q4_K_M
        return memory_table(exp, Shape.of(find_config(exp.model)), bits, device)

    (teaching, *_), (_, *learning) = table(exp), table(exp.of_students)
    return [teaching, *learning]


def memory_table(exp: Experiment, shape: Shape, bits: float, device: Device) -> list[tuple[str, float, str]]:
    """A row per stage: its name, the bytes it needs, and what they are. ``bits``: of a weight in llama.cpp.

    Raises KitError where the model does not fit the GPU.
    """
    nf4, rank, batch = exp.student.base == "nf4", exp.student.rank, exp.student.batch_size
    overhead = GPU_OVERHEAD if device.kind == "cuda" else CPU_OVERHEAD
    evaluation = llama_cpp_bytes(shape, bits)
    runs = "llama.cpp: weights, KV cache, logits"
    rows = []
    if exp.teacher.endpoint is not None:
        rows.append(("teaching", CPU_OVERHEAD, "at the endpoint"))
    elif exp.teacher_engine != "llama.cpp":
        own = REQUEST_TOKENS + exp.teacher.max_tokens
        weights = weight_bytes(shape, exp.teacher_engine == "torch-nf4", device)
        fixed = weights + overhead
        _refuse_small(device, fixed + sequence_bytes(shape, own, device.kind))
        width = sampling_width(shape, own, device.free - fixed, device.kind)
        kind = "NF4" if exp.teacher_engine == "torch-nf4" else "full"
        parts = f"torch: {kind} weights {gib(weights)}, {width} sequences together"
        rows.append(("teaching", fixed + width * sequence_bytes(shape, own, device.kind), parts))
    else:
        rows.append(("teaching", evaluation, runs))
    fixed = weight_bytes(shape, nf4, device) + adapter_bytes(shape, rank) + overhead
    if device.kind == "cuda":
        _refuse_small(device, fixed)
    room = device.free - fixed if device.kind == "cuda" else max(device.free - fixed, GIB)
    plan = fit_training(shape, rank, batch, PAIR_TOKENS, SHARED_TOKENS, batch * LABEL_TOKENS, room, device)
    parts = (
        f"{'NF4' if nf4 else 'full'} weights {gib(weight_bytes(shape, nf4, device))}, adapter and optimiser "
        f"{gib(adapter_bytes(shape, rank))}, {plan.micro} x {PAIR_TOKENS} tokens {gib(plan.activations)}"
        + (f", {-(-batch // plan.micro)} steps accumulated" if plan.micro < batch else "")
        + (", gradient checkpointing" if plan.checkpointing else "")
    )
    rows.append(("training", fixed + plan.activations, parts))
    return [*rows, ("evaluation", evaluation, runs)]


def _refuse_small(device: Device, needed: float) -> None:
    if device.kind == "cuda" and needed > device.free:
        raise KitError(
            f"{device.name}: {gib(device.free)} are free and the model needs at least {gib(needed)}. Close what else "
            "uses the GPU, or choose a smaller model with --model or a smaller --preset."
        )


def announce_memory(table: list[tuple[str, float, str]], device: Device) -> None:
    """Say what each stage needs, and warn where a CPU's main memory will not do."""
    say(f"Memory, estimated ({device.name}: {device.free / GIB:.1f} GiB free):")
    for stage, size, parts in table:
        say(f"  {size / GIB:5.1f} GiB  {stage} ({parts})")
    if device.kind == "cpu" and max(size for _, size, _ in table) > device.free:
        say("That is more than is free: close other programs, or expect it to be slow or to fail.")
