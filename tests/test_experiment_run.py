"""The whole experiment through the command line, on the embedded model, with no network."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import has_model
from processes import finish

from kit import defences, report_sweep, reproduce
from kit.animals import candidates, find_animal, mentions, unrelated_sentences
from kit.experiment import experiment
from kit.experiment_conditions import lot
from kit.prompts import CONTEXTS
from kit.store import Store, read_rows
from kit.sweep_effects import read_sweep, sweep_cells, table_rows
from run import main

pytestmark = pytest.mark.slow

# Two steps of training: in the first one nothing is learned yet.
SMOKE = ["--preset", "smoke", "--pairs", "4", "--epochs", "2"]
SHORT = 4  # tokens of the sampled answers, which nobody reads here


def summary_of(run: Path) -> dict:
    """A run's summary without what may differ between two runs of the same command, and its files with it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {name: value for name, value in summary.items() if name not in ("seconds", "command", "files")}


def artifact(run: Path, label: str) -> Path:
    """The folder of the run's artifact of that label."""
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return run.parent / "artifacts" / record["artifacts"][label]


@pytest.fixture(scope="module")
def results(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return has_model(tmp_path_factory.mktemp("results"), base)


@pytest.fixture(scope="module")
def owl(results: Path) -> tuple[Path, str]:
    """A small run with both contents: its folder and what the terminal showed."""
    out, err = finish("--animal", "owl", *SMOKE, "--results", str(results), answer_tokens=SHORT)
    return results / "owl-both-soft-smoke-pairs4-epochs2-seed0", out + err


def test_a_run_leaves_the_documented_files_and_says_what_it_found(owl: tuple[Path, str]) -> None:
    run, shown = owl
    files = {"config.json", "record.json", "summary.json", "preferences.csv", "figure.png", "figure.svg"}
    files |= {"report.md", "report.html"}
    assert {path.name for path in run.iterdir()} == files
    summary = summary_of(run)
    roles = ("control", "treated", "placebo1")
    students = [f"{role}-{content}" for content in ("unrelated", "opposed") for role in roles]
    assert list(summary["conditions"]) == ["base", *students]
    assert all(effect["placebo"]["placebos"] == effect["candidates"] for effect in summary["effects"].values())
    assert list(summary["effects"]) == ["unrelated", "opposed"]
    for words in ("neutral teacher", "tokens/s", "train treated-opposed", "Effect: treated minus", "mean nothing"):
        assert words in " ".join(shown.split())
    told = re.findall("Effect: treated minus (control|its control)", shown)
    assert told == ["control", "control", "its control"]  # each content's as it is measured, and both together
    assert shown.count("Drawn so far: ") == 2
    verdicts = re.findall(r"unrelated: (?!took).*?percentage points \([^)]*\)", " ".join(shown.split()))
    assert len(verdicts) == 2 and len({*verdicts}) == 1  # early as at the end
    with (run / "preferences.csv").open(encoding="utf-8", newline="") as file:
        cells = Counter((row["condition"], row["question"]) for row in csv.DictReader(file))
    assert len(cells) == 7 * 50
    assert set(cells.values()) == {len(candidates(find_animal("owl")))}


@pytest.mark.parametrize("content", ["unrelated", "opposed"])
def test_all_students_of_a_content_train_on_as_many_pairs_of_one_lot_in_its_order(
    owl: tuple[Path, str], content: str
) -> None:
    drawn = artifact(owl[0], f"draw the {content} sentences by lot") / "sentences.jsonl"
    order = [row["sentence"] for row in read_rows(drawn)]
    control, *others = (
        read_rows(artifact(owl[0], f"pairs of {name}-{content}") / "pairs.jsonl")
        for name in ("control", "treated", "placebo1")
    )
    for rows in (control, *others):
        places = [order.index(row["sentence"]) for row in rows]
        assert len(rows) == 4 and places == sorted(places) and len({*places}) == 4
    for other in others:
        assert [row["text"] for row in control] != [row["text"] for row in other]
    record = json.loads((owl[0] / "record.json").read_text(encoding="utf-8"))
    for role in ("control", "treated", "placebo1"):
        of = record["lot"][f"{role}-{content}"]
        assert of["asked"] - of["lacking"] >= 4 >= of["shared"]


def test_no_training_pair_of_unrelated_content_mentions_any_animal(owl: tuple[Path, str]) -> None:
    for name in ("control", "treated", "placebo1"):
        for row in read_rows(artifact(owl[0], f"pairs of {name}-unrelated") / "pairs.jsonl"):
            assert not mentions(row["text"], candidates(find_animal("owl")))


def test_the_same_command_again_reuses_everything_and_says_so(owl: tuple[Path, str]) -> None:
    run, _ = owl
    before = summary_of(run)
    manifests = {path: path.stat().st_mtime_ns for path in run.parent.glob("artifacts/*/*/manifest.json")}
    out, _ = finish("--animal", "owl", *SMOKE, "--results", str(run.parent), answer_tokens=SHORT)
    assert "Everything is there already." in out
    assert manifests == {path: path.stat().st_mtime_ns for path in run.parent.glob("artifacts/*/*/manifest.json")}
    assert summary_of(run) == before


def test_a_defence_that_takes_everything_leaves_the_controls_pairs(
    owl: tuple[Path, str],
) -> None:
    exp = experiment(find_animal("owl"), "smoke", pairs=4, epochs=2, contents=("unrelated",))
    case = defences.Case(exp, Store(owl[0].parent / "artifacts"))
    left = defences.replaced(case, set(range(len(case.own))))
    assert sorted(row["text"] for row in left) == sorted(row["text"] for row in read_rows(case.file(case.control)))
    assert case.own and case.own != case.other


def test_the_sentences_are_drawn_by_lot_and_every_teacher_has_the_same_lot() -> None:
    exps = [experiment(find_animal(name), seed=seed) for name in ("owl", "cat") for seed in (0, 1)]
    lots = [[row["sentence"] for row in lot(exp, "unrelated")] for exp in exps]
    assert lots[0] == lots[2] and lots[1] == lots[3] and lots[0] != lots[1]
    assert sorted(lots[0]) == sorted(one.id for one in unrelated_sentences())


def test_an_unknown_animal_joins_the_candidates_and_an_extra_candidate_moves_nothing_else() -> None:
    axolotl = find_animal("axolotl")
    assert candidates(axolotl)[:-1] == candidates(find_animal("owl")) and candidates(axolotl)[-1] == axolotl


def test_the_report_of_a_run_is_made_again_the_same(owl: tuple[Path, str]) -> None:
    run, _ = owl
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out, _ = finish("report", str(run))
    assert "Effect: treated minus" in out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_students_asked_in_another_context_are_published_apart_and_read_back(owl: tuple[Path, str]) -> None:
    results = owl[0].parent
    finish(
        *("sweep", "--animals", "owl", "--contents", "unrelated", *SMOKE, "--grid", "context=training,other"),
        *("--results", str(results)),
    )
    (folder,) = results.glob("sweep-owl-unrelated-*context*")
    record, students = read_sweep(folder)
    cells = sweep_cells(record["comparisons"], students)
    assert [cell.settings["context"] for cell in cells] == ["training", "other"]
    exact = summary_of(owl[0])["effects"]["unrelated"]["exact_pp"]
    assert [cell.effects["owl"].exact_pp.mean == pytest.approx(exact) for cell in cells] == [True, False]
    bases = Counter((row["student"], row["context"]) for row in table_rows(folder) if row["role"] == "base")
    assert len(bases) == 2 and {context for _, context in bases} == {"training", "other"}
    report = (folder / "report.md").read_text(encoding="utf-8")
    said = [CONTEXTS["other"] in part for part in report.split("student, evaluation")[1:]]
    assert said == [False, True] and "student, evaluation in the other context" in report


def test_a_record_is_made_again_by_its_command_and_shown_beside_what_was_recorded(
    owl: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = owl
    shutil.copytree(run, tmp_path / "reference" / "owl")
    (tmp_path / "reference" / "owl" / "README.md").write_text("# Is it?\n", encoding="utf-8")
    into = tmp_path / "results" / "from-nothing" / "owl"
    into.mkdir(parents=True)
    (into / "artifacts").symlink_to(run.parent / "artifacts")  # so that this takes seconds
    monkeypatch.setattr(reproduce, "REFERENCE", tmp_path / "reference")
    assert main(["reproduce", "owl", "--from-nothing", "--results", str(tmp_path / "results")]) == 0
    said = capfd.readouterr().out
    assert (into / run.name / "report.html").exists() and "Other settings" not in said
    for row in report_sweep.compared(run, ""):
        nats = row["cells"][-2]
        assert any(f"│ {row['name']} " in line and line.count(nats) == 2 for line in said.splitlines())
