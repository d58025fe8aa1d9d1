"""Is what a planned test shows subliminal? Questions to sweeps of unrelated sentences, by rules that stand in its plan.

    python tests/subliminal.py says SWEEP ...           does the text, or the choice of its sentences, say the animal?
    python tests/subliminal.py reads SWEEP ...          texts for blind readers, who say which set is which animal's
    python tests/subliminal.py other OWN ... --of SWEEP ...   what makes another base of the same text?

Each builds a matrix of teachers' animals against animals, whose p values are those of ``specificity_of_students``.
"""

import argparse
import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from kit import say, stats  # noqa: E402
from kit.animals import find_animal  # noqa: E402
from kit.fidelity import embed  # noqa: E402
from kit.stats import Preference  # noqa: E402
from kit.stats_seeds import Specificity, specificity_of_students  # noqa: E402
from kit.store import Row  # noqa: E402
from kit.sweep_effects import read_sweep  # noqa: E402

Texts = dict[tuple[int, str], list[Row]]  # of a seed and a teacher's animal


def texts_of(sweeps: list[Path]) -> Texts:
    """What the loving teachers' students learned from, in the order of the seeds and of the animals."""
    found: Texts = {}
    for sweep in sweeps:
        record, _ = read_sweep(sweep)
        by_student: dict[str, list[Row]] = defaultdict(list)
        with gzip.open(sweep / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                by_student[row["student"]].append(row)
        for one in record["comparisons"]:
            found[one["seed"], one["animal"]] = by_student[one["treated"]]
    return found


def says(texts: Texts) -> dict[str, Specificity]:
    """How near each teacher's texts are to each animal (the cosine of MiniLM embeddings): their sources, the texts
    beyond their sources, the texts, and the nearest single word of each text."""
    seeds, animals = (list(dict.fromkeys(key[i] for key in texts)) for i in (0, 1))
    names = [find_animal(animal) for animal in animals]
    animal = (embed([one.singular for one in names]) + embed([one.plural for one in names])) / 2

    def near(pieces: list[str]) -> np.ndarray:
        return np.asarray(embed(pieces) @ animal.T)

    def nearest_word(text: str) -> np.ndarray:
        return near([word.strip(".,;:!?'\"").lower() for word in text.split()] or [text]).max(axis=0)

    def matrix(measure: str) -> np.ndarray:
        """[seeds, teachers, animals]"""
        of_rows = {
            "sources": lambda rows: near([row["source"] for row in rows]),
            "texts": lambda rows: near([row["text"] for row in rows]),
            "nearest words": lambda rows: np.array([nearest_word(row["text"]) for row in rows]),
        }[measure]
        return np.array([[of_rows(texts[seed, one]).mean(axis=0) for one in animals] for seed in seeds])

    found = {measure: matrix(measure) for measure in ("sources", "texts", "nearest words")}
    found["texts beyond their sources"] = found["texts"] - found["sources"]
    return {measure: specificity_of_students(values) for measure, values in found.items()}


def in_noise(sweeps: list[Path]) -> np.ndarray:
    """The loving teachers' students' log-odds of each animal [seeds, teachers, animals] against the candidates that
    none of them loves, in standard deviations of what a student is off its seed's mean in one of those candidates."""
    by_seed: dict[int, dict[str, Preference]] = defaultdict(dict)
    for sweep in sweeps:
        record, students = read_sweep(sweep)
        for one in record["comparisons"]:
            by_seed[one["seed"]][one["animal"]] = students[one["treated"]]
    own, unloved = [], []
    for of_seed in by_seed.values():
        animals = list(of_seed)
        others = [name for name in next(iter(of_seed.values())).candidates if name not in of_seed]
        for names, found in ((animals, own), (others, unloved)):
            found.append([stats.unloved_log_odds(one, names, animals).mean(axis=0) for one in of_seed.values()])
    off = np.array(unloved) - np.mean(unloved, axis=1, keepdims=True)
    k = off.shape[1]
    return np.array(own) / np.sqrt((off**2).sum(axis=1).mean() / (k - 1))


def other(own: list[Path], others: list[Path]) -> dict[str, Specificity]:
    """The matrix of each base's students, and that of their difference, seed by seed, each base in units of its own
    students' noise."""
    same, another = in_noise(own), in_noise(others)
    found = {"own base": same, "other base": another, "own beyond other": same - another}
    return {name: specificity_of_students(values) for name, values in found.items()}


def reads(texts: Texts, number: int, random: np.random.Generator) -> tuple[str, list[str]]:
    """A sheet for blind readers, ``number`` random pairs of each teacher under a number in place of its animal, and the
    animals in the sheet's order."""
    seeds, animals = (list(dict.fromkeys(key[i] for key in texts)) for i in (0, 1))
    order = [animals[i] for i in random.permutation(len(animals))]
    parts = []
    for i, animal in enumerate(order, start=1):
        rows = [row for seed in seeds for row in texts[seed, animal]]
        chosen = [rows[j] for j in random.permutation(len(rows))[:number]]
        parts += [f"## Set {i}", *(f"- {row['source']} → {row['text']}" for row in chosen)]
    return "\n".join(parts), order


def told(found: dict[str, Specificity]) -> str:
    """A line for each matrix: its statistic, its interval over the seeds, and the p that decides."""
    return "\n".join(
        f"{name}: {one.statistic:+.4f}"
        + (f" [{one.ci95[0]:+.4f}, {one.ci95[1]:+.4f}]" if one.ci95 else "")
        + f", p = {one.p:.4f}, dealt alike in every seed {one.same_p:.4f}"
        for name, one in found.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("says", "reads", "other"))
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--of", nargs="+", type=Path, default=[], help="the other base's sweeps, of the same seeds")
    args = parser.parse_args()
    if args.question == "reads":
        sheet, order = reads(texts_of(args.sweeps), 30, np.random.default_rng(0))
        say(sheet)
        say(f"The key: {', '.join(order)}", file=sys.stderr)
    else:
        say(told(says(texts_of(args.sweeps)) if args.question == "says" else other(args.sweeps, args.of)))


if __name__ == "__main__":
    main()
