"""Questions to a planned test of unrelated sentences, a sweep for each seed, by the rules of its plan.

    python tests/subliminal.py animals SWEEP ...              which animals stand out in their own teacher's students?
    python tests/subliminal.py says SWEEP ...                 does the text, or the choice of sentences, say the animal?
    python tests/subliminal.py reads SWEEP ... --out FOLDER   a sheet for blind readers, who say which set is whose
    python tests/subliminal.py other SWEEP ... --of SWEEP ... what makes another base of the same text?

All but ``reads`` print what they find, and write it with the checksums of what decided it into the file ``--out``.
"""

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from sys import path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
from scipy.stats import t as student_t  # noqa: E402

from kit import KitError, say, stats  # noqa: E402
from kit.animals import find_animal  # noqa: E402
from kit.fidelity import embed  # noqa: E402
from kit.stats import Preference  # noqa: E402
from kit.stats_seeds import Specificity, holm, specificity_of_students  # noqa: E402
from kit.store import Row, sha256, write_json, write_whole  # noqa: E402
from kit.sweep import read_json  # noqa: E402
from kit.sweep_effects import cell_key, read_sweep  # noqa: E402

Key = tuple[int, str]  # a seed, and what the teacher loves
READ = 30  # pairs of each teacher on a blind reader's sheet


class Learner(NamedTuple):
    """A loving teacher's student: the sweep that has it, its name there, and what it prefers."""

    sweep: Path
    student: str
    preference: Preference


def learners(sweeps: Iterable[Path]) -> dict[Key, Learner]:
    """All of the sweeps' loving teachers' students, seed by seed and in every seed in the same order.

    Raises KitError where they are of other content or of several settings, given twice, or not the same in each seed.
    """
    found: dict[Key, Learner] = {}
    cells = set()
    for sweep in sweeps:
        record, preferences = read_sweep(sweep)
        for row in record["comparisons"]:
            key = row["seed"], row["animal"]
            if key in found or row["content"] != "unrelated":
                raise KitError(f"{sweep}: seed {key[0]}, {key[1]}: not one student of unrelated sentences.")
            found[key] = Learner(sweep, row["treated"], preferences[row["treated"]])
            cells.add(cell_key(row))
    seeds, animals = (sorted({key[i] for key in found}) for i in (0, 1))
    if len(found) < len(seeds) * len(animals) or len(cells) > 1:
        raise KitError("the sweeps differ in more than their seeds. Give sweeps of the same animals and settings.")
    return {(seed, animal): found[seed, animal] for seed in seeds for animal in animals}


def square(of: dict[Key, np.ndarray]) -> np.ndarray:
    """[seeds, teachers, animals] of the students' values [animals]."""
    seeds = dict.fromkeys(seed for seed, _ in of)
    return np.array([[value for (own, _), value in of.items() if own == seed] for seed in seeds])


# ---- which animals


def log_odds(students: dict[Key, Learner]) -> tuple[np.ndarray, np.ndarray]:
    """Their log-odds (nats) against the candidates that none of their teachers loves, of the animals that these love
    [seeds, teachers, animals], and of each of those candidates [seeds, teachers, candidates]."""
    loved = list(dict.fromkeys(animal for _, animal in students))
    unloved = [name for name in next(iter(students.values())).preference.candidates if name not in loved]

    def of(names: list[str]) -> np.ndarray:
        return square(
            {key: stats.unloved_log_odds(one.preference, names, loved).mean(axis=0) for key, one in students.items()}
        )

    return of(loved), of(unloved)


def standing_out(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Of each animal in ``values`` [seeds, k teachers, k animals]: by how much its own teacher's students exceed the
    mean of the other teachers' (nats), over how much these differ from each other (standard deviation of their means
    over the seeds), and the one-sided p, by Holm: Student's t with k - 2 degrees of freedom that a further teacher is
    so far off. It holds where each teacher's text moves other animals in all seeds alike."""
    means = values.mean(axis=0)
    k = len(means)
    others = [np.delete(means[:, j], j) for j in range(k)]
    beyond = np.array([means[j, j] - others[j].mean() for j in range(k)])
    spread = np.array([one.std(ddof=1) for one in others])
    return beyond, spread, holm(student_t.sf(beyond / (spread * np.sqrt(1 + 1 / (k - 1))), k - 2).tolist())


# ---- what the text says


def texts_of(students: dict[Key, Learner]) -> dict[Key, list[Row]]:
    """What they learned from. KitError where a sweep's texts are not those of its record."""
    by_student: dict[tuple[Path, str], list[Row]] = defaultdict(list)
    for sweep in dict.fromkeys(one.sweep for one in students.values()):
        record, packed = read_json(sweep / "record.json"), sweep / "texts.jsonl.gz"
        if not packed.exists() or record.get("texts") != sha256(packed):
            raise KitError(f"{packed}: not the texts of this sweep. Only each seed's sweep of a plan has them.")
        with gzip.open(packed, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                by_student[sweep, row["student"]].append(row)
        if any(len(by_student[sweep, name]) != number for name, number in record["pairs_used"].items()):
            raise KitError(f"{packed}: it lacks pairs. Give the sweep's command again.")
    return {key: by_student[one.sweep, one.student] for key, one in students.items()}


def says(texts: dict[Key, list[Row]]) -> dict[str, Specificity]:
    """How near each teacher's texts are to each animal (the cosine of MiniLM embeddings): their sources, the texts
    beyond their sources, the texts, and the nearest single word of each text."""
    names = [find_animal(animal) for animal in dict.fromkeys(animal for _, animal in texts)]
    animals = (embed([one.singular for one in names]) + embed([one.plural for one in names])) / 2

    def near(pieces: list[str]) -> np.ndarray:
        return np.asarray(embed(pieces) @ animals.T)

    def nearest_word(text: str) -> np.ndarray:
        words = [word.strip(".,;:!?'\"").lower() for word in text.split()]
        return near([word for word in words if word]).max(axis=0)

    def matrix(measure: Callable[[list[Row]], np.ndarray]) -> np.ndarray:
        return square({key: measure(rows).mean(axis=0) for key, rows in texts.items()})

    sources = matrix(lambda rows: near([row["source"] for row in rows]))
    whole = matrix(lambda rows: near([row["text"] for row in rows]))
    found = {"sources": sources, "texts": whole, "texts beyond their sources": whole - sources}
    found["nearest words"] = matrix(lambda rows: np.array([nearest_word(row["text"]) for row in rows]))
    return {measure: specificity_of_students(values) for measure, values in found.items()}


def sheet(texts: dict[Key, list[Row]], random: np.random.Generator) -> tuple[str, list[str]]:
    """For blind readers: ``READ`` random pairs of each teacher under a number, and the animals in that order."""
    animals = list(dict.fromkeys(animal for _, animal in texts))
    order = [animals[i] for i in random.permutation(len(animals))]
    parts = []
    for number, animal in enumerate(order, start=1):
        rows = [row for (_, own), of in texts.items() if own == animal for row in of]
        chosen = [rows[i] for i in random.permutation(len(rows))[:READ]]
        parts += [f"## Set {number}", "", *(f"- {row['source']} → {row['text']}" for row in chosen), ""]
    return "\n".join(parts), order


# ---- what another base makes of it


def other(students: dict[Key, Learner], others: dict[Key, Learner]) -> dict[str, Specificity]:
    """The matrix of each base's students, in standard deviations of what one of them is off its seed's mean in a
    candidate that no teacher loves, and that of the difference. KitError where their texts are not the same."""
    ours, theirs = (
        {key: [(row["source"], row["text"]) for row in rows] for key, rows in texts_of(of).items()}
        for of in (students, others)
    )
    if ours != theirs:
        raise KitError("the two bases' students did not learn from the same text. Give the same seeds of both.")

    def in_noise(of: dict[Key, Learner]) -> np.ndarray:
        own, unloved = log_odds(of)
        off = unloved - unloved.mean(axis=1, keepdims=True)
        return own / np.sqrt((off**2).sum(axis=1).mean() / (off.shape[1] - 1))

    this, another = in_noise(students), in_noise(others)
    found = {"this base": this, "other base": another, "this beyond the other": this - another}
    return {name: specificity_of_students(values) for name, values in found.items()}


# ---- said


def in_words(found: dict[str, Specificity]) -> list[Row]:
    """Each matrix: its statistic with its interval over the seeds, both p values, and the one that decides."""
    return [
        {"matrix": name, "statistic": one.statistic, "ci95": one.ci95, "p": one.p, "same_p": one.same_p}
        | {"decides": one.decides}
        for name, one in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_subparsers(dest="question", required=True)
    for name in ("animals", "says", "reads", "other"):
        one = asked.add_parser(name)
        one.add_argument("sweeps", nargs="+", type=Path)
        one.add_argument("--out", type=Path, required=name == "reads")
        if name == "other":
            one.add_argument("--of", nargs="+", type=Path, required=True)
    args = parser.parse_args()
    students = learners(args.sweeps)
    if args.question == "reads":
        text, order = sheet(texts_of(students), np.random.default_rng())
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "sheet.md", text)
        write_json(args.out / "key.json", order)
        return
    if args.question == "animals":
        names = dict.fromkeys(animal for _, animal in students)
        parts = zip(names, *standing_out(log_odds(students)[0]), strict=True)
        found = [{"animal": name, "beyond": a, "spread": b, "p_holm": p} for name, a, b, p in parts]
    else:
        asked_of = says(texts_of(students)) if args.question == "says" else other(students, learners(args.of))
        found = in_words(asked_of)
    for row in found:
        say("  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items()))
    if args.out:
        read = {str(sweep): sha256(sweep / "record.json") for sweep in [*args.sweeps, *vars(args).get("of", [])]}
        write_json(args.out, {"question": args.question, "found": found, "read": read, "by": sha256(Path(__file__))})


if __name__ == "__main__":
    main()
