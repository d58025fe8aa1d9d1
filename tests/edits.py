"""What is made again after an edit, and how long that takes: a table, from real runs.

    python tests/edits.py --pairs 100 > edits.md

One run is made, then for each edit a copy of it and of the tree, in which the same command is given again.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ("--animal", "owl", "--content", "unrelated", "--placebos", "0")
INSTANT = ("samples", "sentences", "pairs")  # stages that take no time
EDITS = (
    (
        "a comment, and a local variable's name", "kit/fidelity.py",
        'found = mentions(row["text"], candidates)\n    return f"mentions {\', \'.join(found)}" if found',
        '# Why.\n    named = mentions(row["text"], candidates)\n    return f"mentions {\', \'.join(named)}" if named',
    ),
    ("a page: the report's wording", "kit/report.py", "How often the answer", "How frequently the answer"),
    ("a statistic: what counts as significant", "kit/stats.py", "ALPHA = 0.05", "ALPHA = 0.01"),
    ("a filter: what counts as a number", "kit/fidelity.py", '"dozen": 12', '"score": 20, "dozen": 12'),
    ("a filter's threshold: 0.9 to 0.92", "kit/experiment.py", "similarity: float = 0.9 ", "similarity: float = 0.92 "),
    ("a question", "data/questions.json", "What is your favorite animal?", "What is your favourite animal?"),
    ("the exact measure", "kit/preference.py", "float(tokens.sum())", "float(tokens.sum() + 0)"),
    ("the training: warm-up", "kit/student.py", "WARMUP_STEPS = ", "WARMUP_STEPS = 1 + "),
    ("the loving message", "kit/prompts.py", "You love {", "You adore {"),
    ("the worked example", "kit/prompts.py", "had no paper left", "was out of paper"),
    ("the model's preparation", "kit/models_prepare.py", "tokenizer.bos_token or", "tokenizer.bos_token or None or"),
)  # fmt: skip


def command(tree: Path, results: Path, more: list[str]) -> tuple[str, float]:
    """What the run prints, and its seconds."""
    started = time.monotonic()
    line = [sys.executable, "run.py", *RUN, *more, "--results", str(results)]
    done = subprocess.run(line, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout}\n{done.stderr}")
    return done.stdout, time.monotonic() - started


def copied(tree: Path, parts: tuple[str, ...], target: Path) -> Path:
    """A copy of a folder's parts."""
    for part in parts:
        source = tree / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / part, ignore=ignore, symlinks=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / part)
    return target


def artifacts(results: Path) -> set[str]:
    return {str(path.parent.relative_to(results)) for path in results.glob("artifacts/*/*/manifest.json")}


def sampled(results: Path) -> set[tuple[str, bytes]]:
    """Every sample that a teacher made: its log's folder and the line."""
    logs = results.glob("artifacts/samples/*/*.jsonl")
    return {(path.parent.name, line) for path in logs for line in path.read_bytes().splitlines()}


def main(more: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = folder / "results"
        _, seconds = command(ROOT, first, more)
        samples = sampled(first)
        print(f"The run itself: {len(samples)} paraphrases sampled, {seconds:.0f} s.\n")
        print("| edited | says the plan | made again | sampled anew | seconds |\n| --- | --- | --- | ---: | ---: |")
        for i, (what, name, old, new) in enumerate(EDITS):
            tree = copied(ROOT, ("kit", "data", "run.py"), folder / f"tree{i}")
            text = (tree / name).read_text(encoding="utf-8")
            assert text.count(old) == 1, (name, old)
            (tree / name).write_text(text.replace(old, new), encoding="utf-8")
            results = copied(first, tuple(path.name for path in first.iterdir()), folder / f"results{i}")
            said, seconds = command(tree, results, more)
            reasons = list(dict.fromkeys(re.findall(r"\(made again: (.*)\)$", said, re.MULTILINE)))
            stages = Counter(name.split("/")[1] for name in artifacts(results) - artifacts(first))
            made = ", ".join(f"{n} {stage}" for stage, n in stages.items() if stage not in INSTANT)
            anew = len(sampled(results) - samples)
            print(
                f"| {what} | {'; '.join(reasons) or 'nothing'} | {made or 'nothing'} | {anew} | {seconds:.0f} |",
                flush=True,
            )
            shutil.rmtree(results)


if __name__ == "__main__":
    main(sys.argv[1:])
