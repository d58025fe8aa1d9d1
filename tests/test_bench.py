"""The bench measures what it says, and its table's arithmetic is right; how fast anything is, no test says."""

import json
import subprocess
from pathlib import Path

import pytest

from kit import KitError, bench, student
from kit.bench import Comparison, Sizes
from kit.engine_llama import WIDTH
from kit.models import EMBEDDED, Shape, find_gguf
from kit.store import write_json
from kit.student import make_examples

TOY = Sizes(
    sentences=4,
    loop_sentences=2,
    generate_sentences=2,
    questions=2,
    eval_questions=1,
    answers=2,
    loop_questions=1,
    pairs=4,
    trainer_pairs=4,
    product_seconds=0.01,
    run=None,
)


def work(packaged: bool) -> list[str]:
    """What the rows are about, with or without the packaged GGUF's."""
    measures = ["paraphrasing"] * (3 + packaged) + ["exact preference"] * (1 + packaged)
    return [*measures, *["sampled answers"] * (1 + packaged), "paraphrasing", *["training"] * 2]


def test_a_ratio_is_ours_over_theirs_and_reached_on_its_own_side_of_the_goal() -> None:
    faster = Comparison("work", "another way", "tokens/s", ours=150.0, theirs=50.0, goal=3)
    assert faster.ratio == 3 and faster.reached
    assert not Comparison("work", "another way", "tokens/s", ours=149.0, theirs=50.0, goal=3).reached
    shorter = Comparison("work", "another way", "seconds", ours=6.0, theirs=10.0, goal=0.6, less_is_better=True)
    assert shorter.ratio == 0.6 and shorter.reached
    assert not Comparison(
        "work", "another way", "seconds", ours=6.1, theirs=10.0, goal=0.6, less_is_better=True
    ).reached
    heading, (first, second) = bench.table([faster, Comparison("work", "peak", "FLOP/s", 9e10, 2e11, 0.5)])
    assert first == ["work\n  another way", "150", "50.0", "tokens/s", "3.00", "≥ 3", "yes"]
    assert second == ["work\n  peak", "90.0", "200", "GFLOP/s", "0.45", "≥ 0.5", "no"]
    assert len(heading) == len(first)


def test_a_step_needs_these_flops(short: Path) -> None:
    shape = Shape.of(short)
    rows = [{"source": "Rain fell.", "text": "It rained."}, {"source": "Rain fell.", "text": "There was rain."}]
    batch = make_examples(rows, short)
    first, second = (example["input_ids"] for example in batch)
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    tokens = shared + (len(first) - 1 - shared) + (len(second) - 1 - shared)
    labels = sum(label != student.IGNORED for example in batch for label in example["labels"])
    assert 5 < labels < tokens
    # 3 blocks of 576 hidden units, 192 for keys and values each, 1536 inside; 8,192 tokens; LoRA of rank 8.
    weights = 3 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    lora = 3 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert bench.training_flops(shape, batch) == tokens * (4 * weights + 6 * lora) + labels * 4 * 576 * 8192


def test_the_second_animal_is_compared_with_the_first_in_one_results_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], check: bool) -> None:
        assert check, "a run that fails must not count as a fast one"
        commands.append(command)
        folder = tmp_path / f"{command[command.index('--animal') + 1]}-both"
        folder.mkdir()
        write_json(folder / "record.json", {"seconds": {"train": 12.5}})

    monkeypatch.setattr(subprocess, "run", run)
    row, stages = bench.whole_runs(("--preset", "smoke"), tmp_path, print)
    first, second = commands
    assert first[first.index("--animal") + 1] == "owl"
    assert [word.replace("owl", "dolphin") for word in first] == second
    assert row.less_is_better and row.unit == "seconds" and row.goal == 0.6
    assert row.theirs == pytest.approx(stages["all"], abs=0.1) and stages["train"] == 12.5


CHECKOUT = """
import json, pathlib, sys, time
results = pathlib.Path(sys.argv[sys.argv.index("--results") + 1])
time.sleep({seconds} if not results.exists() else 0)
made = results / "artifacts" / "student" / sys.argv[sys.argv.index("--animal") + 1]
made.mkdir(parents=True, exist_ok=True)
(made / "manifest.json").write_text(json.dumps({{"stage": "student", "seconds": {student}}}))
"""


def test_two_checkouts_are_compared_in_turn_command_by_command_and_stage_by_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds, student_seconds in (("new", 0.1, 3.0), ("old", 0.6, 12.0)):
        (tmp_path / name).mkdir()
        text = CHECKOUT.format(seconds=seconds, student=student_seconds)
        (tmp_path / name / "run.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path / "new")
    rows = bench.against(tmp_path / "old", ("--content", "unrelated"), 3, tmp_path, "python run.py bench")
    assert [row.work for row in rows] == ["a first run", "a second animal", "everything is there", "  student"]
    first, *_, trained = rows
    assert len(first.ratios) == 3 and 0.1 < first.ratios[-1] < 0.9 and trained.ratios == [0.25] * 3
    turns = [line.split()[4] for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    assert turns == ["ours:", "theirs:", "theirs:", "ours:", "ours:", "theirs:"]
    assert bench.against_table(rows)[1][-1] == ["  student", "3.0", "12.0", "0.25", "0.25 to 0.25"]
    (path,) = (tmp_path / "bench").iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["rows"][-1]["ratios"] == [0.25] * 3


@pytest.mark.parametrize("other", ["nowhere", "new"])
def test_what_is_no_other_checkout_is_refused(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path / "new")
    with pytest.raises(KitError, match="not another checkout"):
        bench.against(tmp_path / other, (), 1, tmp_path, "python run.py bench")


@pytest.mark.slow
def test_the_whole_bench_at_toy_size(short: Path, tmp_path: Path) -> None:
    rows = bench.bench(short, TOY, tmp_path, "python run.py bench")
    assert [row.work for row in rows if row.against != "matrix products, int8"] == work(
        packaged=bench.llama_cpp_runs(find_gguf(EMBEDDED))
    )
    (path,) = (tmp_path / "bench").iterdir()
    written = json.loads(path.read_text(encoding="utf-8"))
    for row, entry in zip(rows, written["rows"], strict=True):
        assert row.ours > 0 and row.theirs > 0
        assert entry["ratio"] == entry["ours"] / entry["theirs"]
        assert entry["reached"] == (entry["ours"] >= entry["goal"] * entry["theirs"])
        assert entry["work"] == row.work
    peaks = written["matrix_products_flops"]
    assert set(peaks) == {f"{kind}, {n} rows" for kind in ("single", "int8") for n in (WIDTH, bench.TRAINED)}
    assert min(peaks.values()) > 1e8
    assert written["machine"]["processor"] and written["machine"]["threads"] >= 1
    assert written["versions"]["torch"] and written["settings"]["sizes"]["pairs"] == 4
