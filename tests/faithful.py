"""Does the faithful part of a planned test's text carry it, too? By the rules of its plan; a sweep for each seed.

    python tests/faithful.py sheets SWEEP --out FIRST                  every pair once, for blind readers
    python tests/faithful.py sheets SWEEP --out SECOND --after FIRST   those that these called faithful, for others
    python tests/faithful.py readings FIRST SECOND --out FILE          what both said, and of what was planted
    python tests/faithful.py sheets SWEEP ... --chosen FILE ... --out THIRD    faithful ones, and others, for a third
    python tests/faithful.py third THIRD --chosen FILE ... --out FILE          how many of these it calls faithful
    python tests/faithful.py students SWEEP ... --readings FILE ... --plan FILE --out FOLDER

``sheets`` writes ``sheets/1.md`` and so on, a line for each pair, ``number. source → paraphrase``. The reader of a
sheet goes by ``data/codebook.md`` and writes ``1.labels`` beside it, a line for each: the number, and f, l or c
(faithful, lost, changed). ``students`` trains, for each teacher and seed, a student of the pairs that all readings call
faithful, and one that learns to repeat their sources, and asks both the planned questions.
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
from scipy.stats import beta  # noqa: E402
from subliminal import Key, in_words, learners, says, square, texts_of  # noqa: E402
from tqdm import tqdm  # noqa: E402

from kit import KitError, preference, say  # noqa: E402
from kit.animals import candidates, find_animal  # noqa: E402
from kit.experiment import Experiment, read_experiment  # noqa: E402
from kit.experiment_conditions import all_steps, base_model, preferences, rows_step, trained_on  # noqa: E402
from kit.provenance import committed, unchanged_since  # noqa: E402
from kit.stats import Preference  # noqa: E402
from kit.stats_seeds import Specificity, holm, specificity_of_students  # noqa: E402
from kit.store import Row, Step, Store, read_rows, sha256, write_json, write_rows, write_whole  # noqa: E402
from kit.sweep import _packed, begun, check_after, read_json  # noqa: E402

HARD = ROOT / "results" / "reference" / "hard-labels"
LABELS = {"f": "faithful", "l": "lost", "c": "changed"}
SHEET = 400  # pairs, at most, that one reader has
THIRD = 200  # pairs that are faithful by two readings, and as many others, of a third one
FEWEST = 100  # faithful pairs of a student
COLUMNS = ("part", "seed", "animal", *preference.COLUMNS[1:5])
Pair = tuple[str, str]  # source, text


def pair_of(row: Row) -> Pair:
    return row["source"], row["text"]


# ---- what readers say


def sheets(pairs: Iterable[Pair], planted: Sequence[Row], random: np.random.Generator) -> list[Row]:
    """All pairs and what is ``planted`` (source, text, and the label that it should have), each once, dealt to sheets
    at random, as evenly as it goes, and numbered: number, sheet, source, text, planted."""
    wrong = {pair_of(row): row["label"] for row in planted}
    own = sorted({*pairs} - wrong.keys())
    number = -(-len(own) // SHEET)
    dealt = [list(range(len(rows))) for rows in (own, wrong)]
    rows: list[Row] = []
    for places, of in zip(dealt, (own, list(wrong)), strict=True):
        for turn, i in enumerate(random.permutation(places)):
            source, text = of[i]
            rows.append({"sheet": turn % number + 1, "source": source, "text": text, "planted": wrong.get(of[i])})
    order = sorted(random.permutation(len(rows)).tolist(), key=lambda i: rows[i]["sheet"])
    return [{"number": place, **rows[i]} for place, i in enumerate(order, start=1)]


def write_sheets(folder: Path, rows: list[Row]) -> None:
    """``key.jsonl``, and ``sheets/``, which readers see. KitError where there are sheets already, which may be read."""
    if folder.exists():
        raise KitError(f"--out {folder}: is there already. Choose another folder.")
    (folder / "sheets").mkdir(parents=True)
    write_rows(folder / "key.jsonl", rows)
    for sheet in {row["sheet"] for row in rows}:
        lines = [f"{row['number']}. {row['source']} → {row['text']}\n" for row in rows if row["sheet"] == sheet]
        write_whole(folder / "sheets" / f"{sheet}.md", "".join(lines))


def read(folder: Path) -> dict[Pair, Row]:
    """The rows of a folder's sheets with the ``label`` that their readers gave. KitError where they did not label each
    of their sheet's pairs, and no others, once."""
    rows = read_rows(folder / "key.jsonl")
    for sheet in {row["sheet"] for row in rows}:
        own, file = [row for row in rows if row["sheet"] == sheet], folder / "sheets" / f"{sheet}.labels"
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if sorted(line[0] for line in lines) != sorted(str(row["number"]) for row in own):
            raise KitError(f"{file}: not each number of its sheet once. Label each pair of {sheet}.md once.")
        given = {line[0]: line[-1] for line in lines}
        for row in own:
            if (label := given[str(row["number"])]) not in LABELS:
                raise KitError(f"{file}: {row['number']} has {label}. Give each number one of {', '.join(LABELS)}.")
            row["label"] = LABELS[label]
    return {pair_of(row): row for row in rows}


def readings(first: dict[Pair, Row], second: dict[Pair, Row]) -> list[Row]:
    """What both said of each pair: source, text, readings (label and sheet; the second had those alone that are
    faithful by the first), and the label that it should have, where it was planted. KitError where these do not go
    together."""
    asked = {pair for pair, row in first.items() if not row["planted"] and row["label"] == "faithful"}
    if asked != {pair for pair, row in second.items() if not row["planted"]}:
        raise KitError("the second reading is not of what the first calls faithful. Give the two that belong together.")
    return [
        {"source": pair[0], "text": pair[1], "planted": row["planted"]}
        | {"readings": [[of[pair]["label"], of[pair]["sheet"]] for of in (first, second) if pair in of]}
        for pair, row in sorted(first.items())
    ]


def judged(files: Sequence[Path]) -> tuple[set[Pair], set[Pair]]:
    """The pairs that every reading they had calls faithful, and all that were read."""
    labels: dict[Pair, list[str]] = {}
    for name in files:
        with gzip.open(name, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                if not row["planted"]:
                    labels.setdefault(pair_of(row), []).extend(label for label, _ in row["readings"])
    return {pair for pair, given in labels.items() if {*given} == {"faithful"}}, {*labels}


def at_most(found: int, of: int) -> float:
    """The upper end of the exact 95% interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    return float(beta.ppf(0.975, found + 1, of - found)) if found < of else 1.0


# ---- students of what is faithful, and of its sources alone


def parts_of(texts: dict[Key, list[Row]], faithful: set[Pair]) -> dict[str, dict[Key, list[Row]]]:
    """Of each student's pairs the "faithful" ones, in the order that it has them, for every student as many, as of the
    one that has the fewest; and their "sources", each to be repeated. KitError where they are too few."""
    chosen = {key: [row for row in rows if pair_of(row) in faithful] for key, rows in texts.items()}
    fewest = min(map(len, chosen.values()))
    if fewest < FEWEST:
        raise KitError(f"a student has {fewest} faithful pairs, and {FEWEST} are the fewest. There is no test.")
    chosen = {key: rows[:fewest] for key, rows in chosen.items()}
    repeated = {key: [row | {"text": row["source"]} for row in rows] for key, rows in chosen.items()}
    return {"faithful": chosen, "sources": repeated}


def students(parts: dict[str, dict[Key, list[Row]]], exp: Experiment) -> dict[tuple[str, Key], Step]:
    """The exact preference of each part's students, who differ from each other in their pairs and their seeds."""
    base = base_model(exp.model, exp.gguf)
    found = {}
    for part, of in parts.items():
        for (seed, animal), rows in of.items():
            name = f"{animal}, {part}, seed {seed}"
            own = replace(exp, seed=seed, animal=find_animal(animal))
            pairs = rows_step("pairs", rows, f"pairs of {name}")
            found[part, (seed, animal)] = trained_on(own, name, base, "", pairs, len(rows)).exact
    return found


def matrix(of: dict[Key, np.ndarray]) -> Specificity:
    """Who is loved against who is preferred, of the students' mean log-odds [animals], as the plan's primary test has
    it; controls, which students share, fall out of it."""
    return specificity_of_students(square(of))


def log_odds(of: dict[Key, Preference]) -> dict[Key, np.ndarray]:
    """Of the loved animals [animals] among all candidates, the mean over the questions."""
    animals = list(dict.fromkeys(animal for _, animal in of))
    return {key: one.log_odds.mean(axis=0)[[one.candidates.index(name) for name in animals]] for key, one in of.items()}


def shared(parts: dict[Key, list[Row]]) -> float:
    """Of two teachers' pairs of one seed, the share that are the same, on average."""
    own = {key: {pair_of(row) for row in rows} for key, rows in parts.items()}
    found = [len(own[a] & own[b]) / len(own[a]) for a in own for b in own if a[0] == b[0] and a != b]
    return float(np.mean(found))


# ---- the commands


def make_sheets(args: argparse.Namespace) -> None:
    random = np.random.default_rng()
    pairs = {pair_of(row) for rows in texts_of(learners(args.sweeps)).values() for row in rows}
    if not args.chosen:
        if args.after:
            pairs &= {pair for pair, row in read(args.after).items() if row["label"] == "faithful"}
        write_sheets(args.out, sheets(pairs, read_rows(HARD / "planted.jsonl"), random))
        return
    faithful, _ = judged(args.chosen)
    some = [random.permutation(sorted(of))[:THIRD].tolist() for of in (pairs & faithful, pairs - faithful)]
    write_sheets(args.out, sheets({(source, text) for of in some for source, text in of}, [], random))


def write_readings(args: argparse.Namespace) -> None:
    first, second = read(args.first), read(args.second)
    rows = readings(first, second)
    with _packed(args.out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, of in (("first", first), ("second", second)):
        for sheet in sorted({row["sheet"] for row in of.values()}):
            planted = [row for row in of.values() if row["sheet"] == sheet and row["planted"]]
            good, bad = (
                [row["label"] for row in planted if (row["planted"] == "faithful") == faithful]
                for faithful in (True, False)
            )
            caught, called = len(bad) - bad.count("faithful"), good.count("faithful")
            say(
                f"{name} reading, sheet {sheet}: finds {caught} of {len(bad)} planted errors, "
                f"calls {called} of {len(good)} planted faithful pairs so."
            )
    of_text = [[label for label, _ in row["readings"]] for row in rows if not row["planted"]]
    once, both = (sum(given[:n] == ["faithful"] * n for given in of_text) for n in (1, 2))
    say(f"Faithful by the first reading: {once} of {len(of_text)}; by both: {both}.")


def write_third(args: argparse.Namespace) -> None:
    faithful, _ = judged(args.chosen)
    rows = [
        {"source": a, "text": b, "label": row["label"], "chosen": (a, b) in faithful}
        for (a, b), row in read(args.third).items()
    ]
    with _packed(args.out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=pair_of))
    for chosen in (True, False):
        given = [row["label"] for row in rows if row["chosen"] == chosen]
        wrong = len(given) - given.count("faithful")
        name = "faithful by two readings" if chosen else "others"
        say(f"{name}: a third calls {wrong} of {len(given)} not faithful, at most {at_most(wrong, len(given)):.3f}.")


def train_students(args: argparse.Namespace) -> None:
    plan = registered(args.plan, args.sweeps, args.readings)
    texts, (faithful, seen) = texts_of(learners(args.sweeps)), judged(args.readings)
    if unread := {pair_of(row) for rows in texts.values() for row in rows} - seen:
        raise KitError(f"--readings: {len(unread)} pairs were not read. Give the readings of every sweep.")
    parts = parts_of(texts, faithful)
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
    values = {part: log_odds(of) for part, of in found.items()}
    beyond = {key: own - values["sources"][key] for key, own in values["faithful"].items()}
    matrices = {part: matrix(of) for part, of in (values | {"faithful beyond sources": beyond}).items()}
    near = says(parts["faithful"])
    told = [
        row | {"holm": p}
        for row, p in zip(in_words(near), holm([one.decides or 1 for one in near.values()]), strict=True)
    ]
    for row in (*in_words(matrices), *told):
        say("  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items()))
    record = {
        "plan": plan,
        "pairs": len(next(iter(parts["faithful"].values()))),
        "faithful": [
            {"seed": seed, "animal": animal, "of": len(rows), "pairs": sum(pair_of(row) in faithful for row in rows)}
            for (seed, animal), rows in texts.items()
        ],
        "shared": shared(parts["faithful"]),
        "found": in_words(matrices),
        "by_seed": {part: one.by_seed for part, one in matrices.items()},
        "says": told,
        "read": {str(file): sha256(file) for file in (*(one / "record.json" for one in args.sweeps), *args.readings)},
        "table": sha256(args.out / "preferences.csv.gz"),
    }
    write_json(args.out / "faithful.json", record)


def registered(path: Path, sweeps: Sequence[Path], read: Sequence[Path]) -> Row:
    """The plan, in ``path``. Raises KitError unless it is committed as it stands, names this script and that which it
    is from as they stand, the kit is what it was in that commit, the sweeps are those of ``PLAN.md``, and the readings
    are committed, too."""
    commit = committed(path)
    if commit is None or not unchanged_since(commit):
        raise KitError(f"--plan {path}: it, or the kit, is not what is committed. Check its commit out.")
    text = path.read_text(encoding="utf-8")
    if not all(sha256(Path(__file__).with_name(name)) in text for name in ("faithful.py", "subliminal.py")):
        raise KitError(f"--plan {path}: it does not name the scripts as they stand. Check its commit out.")
    for sweep in sweeps:
        if read_json(sweep / "record.json").get("plan", {}).get("sha256") != sha256(HARD / "PLAN.md"):
            raise KitError(f"{sweep}: not a sweep of PLAN.md. Give those of its seeds.")
    for file in read:
        if committed(file) is None:
            raise KitError(f"--readings {file}: not committed as it stands. Commit it first.")
    named = path.resolve().relative_to(ROOT).as_posix()
    return {"file": named, "sha256": sha256(path), "commit": commit, "commands": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_subparsers(required=True)

    def command(name: str, run: object) -> argparse.ArgumentParser:
        one = asked.add_parser(name)
        one.set_defaults(run=run)
        one.add_argument("--out", type=Path, required=True)
        return one

    one = command("sheets", make_sheets)
    one.add_argument("sweeps", nargs="+", type=Path)
    one.add_argument("--after", type=Path)
    one.add_argument("--chosen", nargs="+", type=Path)
    one = command("readings", write_readings)
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one = command("third", write_third)
    one.add_argument("third", type=Path)
    one.add_argument("--chosen", nargs="+", type=Path, required=True)
    one = command("students", train_students)
    one.add_argument("sweeps", nargs="+", type=Path)
    one.add_argument("--readings", nargs="+", type=Path, required=True)
    one.add_argument("--plan", type=Path, required=True)
    one.add_argument("--results", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
