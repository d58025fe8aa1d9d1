"""Does the faithful part of a planned test's text carry it, too? By the rules of its plan; a sweep for each seed.

    python tests/faithful.py sheet SWEEP ... --out FIRST                    every pair once, for a blind reader
    python tests/faithful.py sheet SWEEP ... --out SECOND --after FIRST     those that this one called faithful
    python tests/faithful.py readings FIRST SECOND --out FILE               what both say, and what was planted
    python tests/faithful.py students SWEEP ... --readings FILE ... --plan FILE --out FOLDER

A sheet has a line for each pair, ``number. source → paraphrase``, among them the planted errors of
``data/judged.jsonl``; its reader goes by ``data/codebook.md`` and writes ``labels`` beside it, a line for each: the
number, and f, l or c (faithful, lost, changed). ``students`` trains for each teacher and seed a student of the pairs
that both readings call faithful, and one of as many others, and asks both the planned questions.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from sys import path

ROOT = Path(__file__).resolve().parents[1]
path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from subliminal import Key, in_words, learners, says, square, texts_of  # noqa: E402
from tqdm import tqdm  # noqa: E402

from kit import KitError, preference, say  # noqa: E402
from kit.animals import DATA, candidates, find_animal  # noqa: E402
from kit.experiment import Experiment, read_experiment  # noqa: E402
from kit.experiment_conditions import all_steps, base_model, preferences, rows_step, trained_on  # noqa: E402
from kit.provenance import committed, unchanged_since  # noqa: E402
from kit.stats import Preference  # noqa: E402
from kit.stats_seeds import Specificity, specificity_of_students  # noqa: E402
from kit.store import Row, Step, Store, read_rows, sha256, write_json, write_rows, write_whole  # noqa: E402
from kit.sweep import _packed, begun, check_after  # noqa: E402

LABELS = {"f": "faithful", "l": "lost", "c": "changed"}
COLUMNS = ("part", "seed", "animal", *preference.COLUMNS[1:5])
Pair = tuple[str, str]  # source, text


# ---- what readers say


def sheet(pairs: Iterable[Pair], planted: Sequence[Pair], random: np.random.Generator) -> list[Row]:
    """All pairs and the planted errors, each once, numbered in random order."""
    wrong = set(planted)
    once = sorted({*pairs} | wrong)
    return [
        {"number": number, "source": once[i][0], "text": once[i][1], "planted": once[i] in wrong}
        for number, i in enumerate(random.permutation(len(once)).tolist(), start=1)
    ]


def planted() -> list[Pair]:
    """The planted errors."""
    return [(row["source"], row["text"]) for row in read_rows(DATA / "judged.jsonl") if "planted" in row]


def read(folder: Path) -> dict[Pair, Row]:
    """The rows of a sheet with the ``label`` that its reader gave. KitError where that is missing, or no label."""
    lines = [line.split() for line in (folder / "labels").read_text(encoding="utf-8").splitlines() if line.strip()]
    given = {line[0].rstrip("."): line[-1] for line in lines}
    rows = read_rows(folder / "key.jsonl")
    for row in rows:
        if (label := given.get(str(row["number"]))) not in LABELS:
            raise KitError(
                f"{folder}/labels: {row['number']} has {label}. Give each number one of {', '.join(LABELS)}."
            )
        row["label"] = LABELS[label]
    return {(row["source"], row["text"]): row for row in rows}


def readings(first: dict[Pair, Row], second: dict[Pair, Row]) -> list[Row]:
    """What both said of each pair that is no planted error: source, text, readings (the second reader had those alone
    that are faithful by the first)."""
    return [
        {"source": pair[0], "text": pair[1]}
        | {"readings": [row["label"], *([second[pair]["label"]] if pair in second else [])]}
        for pair, row in sorted(first.items())
        if not row["planted"]
    ]


# ---- students of what is faithful, and of what is not


def halves(texts: dict[Key, list[Row]], faithful: set[Pair]) -> dict[str, dict[Key, list[Row]]]:
    """Of each student's pairs those that are faithful, and the others, in the order that it has them; of each part and
    for every student as many, as of the one that has the fewest."""
    parts: dict[str, dict[Key, list[Row]]] = {"faithful": {}, "other": {}}
    for key, rows in texts.items():
        for name, of in parts.items():
            of[key] = [row for row in rows if ((row["source"], row["text"]) in faithful) == (name == "faithful")]
    fewest = min(len(rows) for of in parts.values() for rows in of.values())
    return {name: {key: rows[:fewest] for key, rows in of.items()} for name, of in parts.items()}


def students(parts: dict[str, dict[Key, list[Row]]], exp: Experiment) -> dict[tuple[str, Key], Step]:
    """The exact preference of each part's students, who differ from each other in their pairs and their seeds."""
    base = base_model(exp.model, exp.gguf)
    found = {}
    for part, of in parts.items():
        for (seed, animal), rows in of.items():
            name = f"{animal}, {part}, seed {seed}"
            own = replace(exp, seed=seed, animal=find_animal(animal))
            found[part, (seed, animal)] = trained_on(
                own, name, base, "", rows_step("pairs", rows, f"pairs of {name}"), len(rows)
            ).exact
    return found


def matrix(of: dict[Key, Preference]) -> Specificity:
    """Who is loved against who is preferred, as the plan's primary test has it; controls, which students share, fall
    out of it."""
    animals = list(dict.fromkeys(animal for _, animal in of))
    places = [next(iter(of.values())).candidates.index(animal) for animal in animals]
    return specificity_of_students(square({key: one.log_odds.mean(axis=0)[places] for key, one in of.items()}))


# ---- the commands


def write_sheet(args: argparse.Namespace) -> None:
    pairs = {(row["source"], row["text"]) for rows in texts_of(learners(args.sweeps)).values() for row in rows}
    if args.after:
        pairs &= {pair for pair, row in read(args.after).items() if row["label"] == "faithful"}
    rows = sheet(pairs, planted(), np.random.default_rng())
    args.out.mkdir(parents=True, exist_ok=True)
    write_rows(args.out / "key.jsonl", rows)
    lines = [f"{row['number']}. {row['source']} → {row['text']}\n" for row in rows]
    write_whole(args.out / "sheet.md", "".join(lines))


def write_readings(args: argparse.Namespace) -> None:
    first, second = read(args.first), read(args.second)
    rows = readings(first, second)
    with _packed(args.out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, of in (("First", first), ("Second", second)):
        wrong = [row["label"] for row in of.values() if row["planted"]]
        found = sum(label != "faithful" for label in wrong)
        say(f"{name} reading: {len(of) - len(wrong)} pairs; {found} of {len(wrong)} planted errors found.")
    once, both = (sum(row["readings"][:n] == ["faithful"] * n for row in rows) for n in (1, 2))
    say(f"Faithful by the first reader: {once} of {len(rows)}; by both: {both}.")


def train_students(args: argparse.Namespace) -> None:
    plan = registered(args.plan)
    faithful: set[Pair] = set()
    for readers in args.readings:
        with gzip.open(readers, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        faithful |= {(row["source"], row["text"]) for row in rows if row["readings"] == ["faithful"] * 2}
    parts = halves(texts_of(learners(args.sweeps)), faithful)
    exp, store = read_experiment(args.sweeps[0] / "config.json"), Store(args.results / "artifacts")
    steps = students(parts, exp)
    check_after(plan, store, all_steps(steps.values()))
    plan = begun(plan, args.out)
    found: dict[str, dict[Key, Preference]] = {part: {} for part in parts}
    table: list[Row] = []
    for (part, (seed, animal)), step in tqdm(steps.items(), desc="students", unit="student"):
        exact = store.make(step) / "exact.csv"
        found[part][seed, animal] = preferences(store, {"": step}, exp.animal)[""]
        own = {"part": part, "seed": seed, "animal": animal}
        table += [own | row for row in preference.tabulate({"": (exact, None)}, candidates(exp.animal))]
    with _packed(args.out / "preferences.csv.gz") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    matrices = {part: matrix(of) for part, of in found.items()}
    near = says(parts["faithful"])
    for row in in_words(matrices | near):
        say("  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items()))
    record = {
        "plan": plan,
        "pairs": len(next(iter(parts["faithful"].values()))),
        "found": in_words(matrices),
        "says": in_words(near),
        "by_seed": {part: one.by_seed for part, one in matrices.items()},
        "read": {str(file): sha256(file) for file in (*(one / "record.json" for one in args.sweeps), *args.readings)},
        "table": sha256(args.out / "preferences.csv.gz"),
    }
    write_json(args.out / "faithful.json", record)


def registered(path: Path) -> Row:
    """The plan. Raises KitError unless it is committed as it stands, names this script as it stands, and the kit is
    what it was in that commit."""
    commit = committed(path)
    if commit is None or not unchanged_since(commit):
        raise KitError(f"--plan {path}: it, or the kit, is not what is committed. Check its commit out.")
    if sha256(Path(__file__)) not in path.read_text(encoding="utf-8"):
        raise KitError(f"--plan {path}: it does not name tests/faithful.py as it stands. Check its commit out.")
    named = path.resolve().relative_to(ROOT).as_posix()
    return {"file": named, "sha256": sha256(path), "commit": commit, "commands": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_subparsers(required=True)
    for name, run in (("sheet", write_sheet), ("readings", write_readings), ("students", train_students)):
        one = asked.add_parser(name)
        one.set_defaults(run=run)
        if name == "readings":
            one.add_argument("first", type=Path)
            one.add_argument("second", type=Path)
        else:
            one.add_argument("sweeps", nargs="+", type=Path)
        if name == "sheet":
            one.add_argument("--after", type=Path)
        if name == "students":
            one.add_argument("--readings", nargs="+", type=Path, required=True)
            one.add_argument("--plan", type=Path, required=True)
            one.add_argument("--results", type=Path, default=ROOT / "results")
        one.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
