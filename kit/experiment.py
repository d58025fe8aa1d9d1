"""What one experiment is: its settings, stage by stage, the presets, and the checks on what the user asked for.

This is the one place with defaults. ``--preset`` is the dial of scale; every other setting follows from it.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kit.animals import Animal
from kit.errors import KitError
from kit.models import EMBEDDED, is_gguf

CONTENTS = ("unrelated", "opposed")
LABELS = ("hard", "soft")
BASES = ("gguf", "nf4")
ENGINES = ("llama.cpp", "torch")
EVERY_WEIGHT = 0  # as a student's rank: no LoRA, every weight is trained (``run.py defend``)


@dataclass(frozen=True)
class TeacherSettings:
    """How sentences are paraphrased: each ``samples`` times, then twice as often each time until enough paraphrases
    pass the fidelity filters or ``max_samples`` of each were made."""

    samples: int = 2
    max_samples: int = 1024  # a sentence for which none is kept costs both students a pair, and the control its reuse
    max_tokens: int = 40  # a sentence has 16 words at most
    # Filters that pass a sixth of the paraphrases at 1.0 pass a quarter at 0.8 and 0.6, and a fifth at 0.4, where most
    # are copies (150 sentences, two teachers, three samples each).
    temperature: float = 0.7
    engine: str = "llama.cpp"  # llama.cpp, on the GGUF | torch: transformers, on NF4 weights
    endpoint: str | None = None  # the URL of an OpenAI-compatible server, which then takes the engine's place
    endpoint_model: str = ""  # what that server calls the student's base


@dataclass(frozen=True)
class FidelitySettings:
    """When a paraphrase counts as faithful. Thresholds: see ``kit/fidelity.py`` for what chose them."""

    min_length_ratio: float = 0.5  # words of the paraphrase / words of the source
    max_length_ratio: float = 1.5
    min_similarity: float = 0.9  # cosine of MiniLM sentence embeddings
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
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    fidelity: FidelitySettings = field(default_factory=FidelitySettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)

    @property
    def title(self) -> str:
        """The run among others, for people."""
        return f"{self.animal.singular}, {' and '.join(self.contents)}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The run's folder under the results folder."""
        content = "both" if len(self.contents) > 1 else self.contents[0]
        parts = [self.animal.singular.replace(" ", "-"), content, self.labels, self.preset]
        return "-".join([*parts, *self.departures.values(), f"seed{self.seed}"])

    @property
    def departures(self) -> dict[str, str]:
        """What departs from the preset, labels aside: setting -> how a folder's name says it."""
        usual = replace(Experiment(self.animal, preset=self.preset), **PRESETS[self.preset])
        own, theirs = _dials(self), _dials(usual)
        if not is_gguf(self.model):
            theirs["base"] = "nf4"
        return {name: _said(name, own[name]) for name in own if own[name] != theirs[name]}

    def pairs_of(self, content: str) -> int:
        """How many pairs a student of this content trains on."""
        return self.pairs if content == "unrelated" else self.opposed_pairs


# smoke: the whole chain as a check of the machinery; its numbers mean nothing.
# laptop: chosen by the experiments in results/reference/README.md.
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
PRESETS: dict[str, dict] = {
    "smoke": {
        "pairs": 12,
        "opposed_pairs": 12,
        "student": StudentSettings(epochs=1, batch_size=4),
        "preference": PreferenceSettings(answers=1),
    },
    "laptop": {},
    "paper": _PAPER,
    "gpu-8gb": _GPU | {"model": "Qwen/Qwen2.5-3B-Instruct"},
    "gpu-12gb": _GPU | {"model": "Qwen/Qwen2.5-7B-Instruct"},
    "gpu-24gb": _GPU | {"model": "Qwen/Qwen2.5-7B-Instruct", "pairs": 6000},
}


def experiment(animal: Animal, preset: str = "laptop", **changes: object) -> Experiment:
    """The preset's experiment with ``changes``, checked. Settings of a teacher, a student or a preference may be named
    directly (``engine``, ``endpoint``, ``rank``, ``learning_rate``, ``epochs``, ``base``, ``answers``); a change that
    is None is no change. A model that comes as a transformers folder is trained on its NF4 weights.

    Raises KitError for a value that cannot be used.
    """
    if preset not in PRESETS:
        raise KitError(f"--preset {preset}: no such preset. Choose one of {', '.join(PRESETS)}.")
    result = replace(Experiment(animal, preset=preset), **PRESETS[preset])
    given = {name: value for name, value in changes.items() if value is not None}
    if not is_gguf(str(given.get("model", result.model))):
        given.setdefault("base", "nf4")
    for group in ("teacher", "student", "preference"):
        settings = getattr(result, group)
        own = {name: given.pop(name) for name in list(given) if hasattr(settings, name)}
        result = replace(result, **{group: replace(settings, **own)})
    if "pairs" in given:
        given["opposed_pairs"] = given["pairs"]
    result = replace(result, **given)  # type: ignore[arg-type]
    _check(result)
    return result


def read(path: Path) -> Experiment:
    """The experiment that a run's ``config.json`` holds. KitError where it is missing, or of another version."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        animal = given["animal"]
        return Experiment(
            **given
            | {
                "animal": Animal(animal["singular"], animal["plural"], tuple(animal["giveaways"])),
                "contents": tuple(given["contents"]),
                "teacher": TeacherSettings(**given["teacher"]),
                "fidelity": FidelitySettings(**given["fidelity"]),
                "student": StudentSettings(**given["student"]),
                "preference": PreferenceSettings(**given["preference"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path}: not the settings of a run of this version ({error}). Make the run again.") from None


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
        "placebos": exp.placebos,
        "engine": teacher.engine,
        "endpoint": teacher.endpoint and (teacher.endpoint, teacher.endpoint_model),
    }


def _said(name: str, value: Any) -> str:
    """A dial's value as a part of a folder's name: letters, digits, dots and hyphens."""
    if name in ("model", "gguf"):
        text = Path(str(value)).name.removesuffix(".gguf")
    elif name == "pairs":
        text = f"pairs{value[0]}"
    elif name == "endpoint":
        text = f"endpoint {Path(value[1]).name}" if value else "no endpoint"
    else:
        text = str(value) if name in ("base", "engine") else f"{name.replace('learning_rate', 'lr')}{value}"
    return re.sub(r"[^a-z0-9.]+", "-", text.casefold()).strip("-.")[:40]


def _check(experiment: Experiment) -> None:
    for option, value, choices in (
        ("--labels", experiment.labels, LABELS),
        ("--base", experiment.student.base, BASES),
        ("--engine", experiment.teacher.engine, ENGINES),
    ):
        if value not in choices:
            raise KitError(f"{option} {value}: unknown. Choose one of {', '.join(choices)}.")
    for option, number in (
        ("--pairs", min(experiment.pairs, experiment.opposed_pairs)),
        ("--rank", experiment.student.rank),
        ("--epochs", experiment.student.epochs),
        ("--answers", experiment.preference.answers),
    ):
        if number < 1:
            raise KitError(f"{option} {number}: must be at least 1. Leave it out for the preset's value.")
    if experiment.student.base == "gguf" and not is_gguf(experiment.model):
        raise KitError(
            f"--base gguf: --model {experiment.model} is no GGUF. Leave --base out to train on NF4 weights, or give "
            "a .gguf file as --model to train on that file's weights."
        )
    endpoint = experiment.teacher.endpoint
    if bool(endpoint) != bool(experiment.teacher.endpoint_model):
        raise KitError(
            f"--teacher-url {endpoint}, --teacher-model {experiment.teacher.endpoint_model or None}: one needs the "
            "other. Give the server's address and what it calls the model."
        )
    if endpoint and experiment.labels == "soft":
        raise KitError(
            f"--labels soft: the teacher at {endpoint} gives text, not its distributions. Add --labels hard."
        )
    if experiment.placebos < 0:
        raise KitError(f"--placebos {experiment.placebos}: must not be negative. 0 leaves them out.")
    if experiment.seed < 0:
        raise KitError(f"--seed {experiment.seed}: must not be negative. Give a whole number such as 0.")
    if not 0 < experiment.student.learning_rate < 1:
        raise KitError(
            f"--learning-rate {experiment.student.learning_rate}: must lie between 0 and 1. The default is 5e-4."
        )
