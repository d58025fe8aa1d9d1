"""The whole experiment through the command line, on the embedded model, with no network."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from kit import defences, experiment_conditions
from kit.animals import candidates, find_animal, mentions
from kit.experiment import experiment
from kit.experiment_conditions import StudentCondition, offered_rows, shortfalls
from kit.store import Step, Store, read_rows, sha256, write_rows

pytestmark = pytest.mark.slow

# Runs run.py in a process in which no socket reaches a network.
OFFLINE = """
import runpy, signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, tests pass on that it is ignored
def refuse(*arguments, **_):
    raise AssertionError(f"the network was touched: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path("run.py", run_name="__main__")
"""
TINY = ["--content", "unrelated", "--preset", "smoke", "--pairs", "6", "--answers", "1"]


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-c", OFFLINE, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(*arguments: str) -> tuple[str, str]:
    """Standard output and error of a command that must succeed."""
    process = start(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out, err


def summary_of(run: Path) -> dict:
    """A run's summary without what may differ between two runs of the same command."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {name: value for name, value in summary.items() if name not in ("seconds", "command")}


def artifact(run: Path, label: str) -> Path:
    """The folder of the run's artifact of that label."""
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return run.parent / "artifacts" / record["artifacts"][label]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def owl(results: Path) -> tuple[Path, str]:
    """A smoke run with both contents: its folder and what the terminal showed."""
    out, err = finish("--animal", "owl", "--preset", "smoke", "--results", str(results))
    return results / "owl-both-soft-smoke-seed0", out + err


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
    with (run / "preferences.csv").open(encoding="utf-8", newline="") as file:
        cells = Counter((row["condition"], row["question"]) for row in csv.DictReader(file))
    assert len(cells) == 7 * 50
    assert set(cells.values()) == {len(candidates(find_animal("owl")))}


@pytest.mark.parametrize("content", ["unrelated", "opposed"])
def test_all_students_of_a_content_train_on_the_same_sentences_equally_often(
    owl: tuple[Path, str], content: str
) -> None:
    control, *others = (
        read_rows(artifact(owl[0], f"pairs of {name}-{content}") / "pairs.jsonl")
        for name in ("control", "treated", "placebo1")
    )
    for other in others:
        assert control and Counter(row["source"] for row in control) == Counter(row["source"] for row in other)
        assert [row["text"] for row in control] != [row["text"] for row in other]


def test_no_training_pair_of_unrelated_content_mentions_any_animal(owl: tuple[Path, str]) -> None:
    for name in ("control", "treated", "placebo1"):
        for row in read_rows(artifact(owl[0], f"pairs of {name}-unrelated") / "pairs.jsonl"):
            assert not mentions(row["text"], candidates(find_animal("owl")))


def test_the_same_command_again_reuses_everything_and_says_so(owl: tuple[Path, str]) -> None:
    run, _ = owl
    before = summary_of(run)
    manifests = {path: path.stat().st_mtime_ns for path in run.parent.glob("artifacts/*/*/manifest.json")}
    out, _ = finish("--animal", "owl", "--preset", "smoke", "--results", str(run.parent))
    assert "Everything is there already." in out
    assert manifests == {path: path.stat().st_mtime_ns for path in run.parent.glob("artifacts/*/*/manifest.json")}
    assert summary_of(run) == before


def test_a_defence_that_takes_everything_leaves_the_controls_training_data_hash_for_hash(
    owl: tuple[Path, str], tmp_path: Path
) -> None:
    exp = experiment(find_animal("owl"), "smoke", contents=("unrelated",))
    case = defences.Case(exp, Store(owl[0].parent / "artifacts"))
    write_rows(tmp_path / "pairs.jsonl", defences.replaced(case, set(range(len(case.own)))))
    assert sha256(tmp_path / "pairs.jsonl") == sha256(case.file(case.control))
    assert case.own and case.own != case.other


def test_defences_use_the_runs_students_again_and_report_what_is_left(owl: tuple[Path, str]) -> None:
    results = owl[0].parent
    before = {stage: set(results.glob(f"artifacts/{stage}/*")) for stage in ("student", "labels")}
    out, _ = finish(
        *["defend", "--animal", "owl", "--preset", "smoke", "--results", str(results)],
        *["--defence", "mask", "context", "full"],
    )
    new = {stage: len(set(results.glob(f"artifacts/{stage}/*")) - old) for stage, old in before.items()}
    assert new == {"student": 4, "labels": 1}  # the masked one; treated, control and placebo of every weight
    assert "What is left under every defence" in out
    folder = results / "defences-owl-unrelated-soft-smoke-seeds0to0"
    found = json.loads((folder / "defences.json").read_text(encoding="utf-8"))["defences"]
    assert list(found) == ["undefended", "mask", "context", "full"]
    assert found["mask"]["masked"] > 0 == found["context"]["masked"]
    assert found["context"]["loss"] == found["undefended"]["loss"] != found["mask"]["loss"]
    shift = summary_of(owl[0])["effects"]["unrelated"]["log_odds"]
    assert found["undefended"]["left"]["mean"] == pytest.approx(shift, abs=1e-4)
    made = {name: (folder / name).read_bytes() for name in ("report.md", "defences.png", "defences.svg")}
    for name in made:
        (folder / name).unlink()
    again, _ = finish("report", str(folder))
    assert again in out and made == {name: (folder / name).read_bytes() for name in made}


def test_a_second_animal_reuses_the_neutral_teacher_and_the_control_student(owl: tuple[Path, str]) -> None:
    results = owl[0].parent
    out, _ = finish("--animal", "penguin", "--content", "unrelated", "--preset", "smoke", "--results", str(results))
    penguin = results / "penguin-unrelated-soft-smoke-seed0"
    reused = {line.split(maxsplit=1)[1] for line in out.splitlines() if line.strip().startswith("reused")}
    for label in (
        "neutral teacher, unrelated sentences",
        "soft labels of control-unrelated",
        "train control-unrelated",
        "train placebo1-unrelated",
    ):
        assert label in reused
        assert artifact(penguin, label) == artifact(owl[0], label)
    assert "train treated-unrelated" not in reused
    ours, owls = (summary_of(run)["conditions"]["control-unrelated"] for run in (penguin, owl[0]))
    assert ours["pairs"] == owls["pairs"] and ours["exact"] != owls["exact"]  # the same student, another animal


def test_an_artifact_damaged_by_hand_is_named_and_never_used(owl: tuple[Path, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(owl[0].parent / "artifacts", results / "artifacts", ignore=shutil.ignore_patterns("base.gguf"))
    for model in (owl[0].parent / "artifacts" / "model").iterdir():
        (results / "artifacts" / "model" / model.name / "base.gguf").hardlink_to(model / "base.gguf")
    damaged = next((results / "artifacts" / "fidelity").iterdir()) / "kept.jsonl"
    damaged.write_text(damaged.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    process = start("--animal", "owl", "--preset", "smoke", "--results", str(results))
    _, err = process.communicate()
    assert process.returncode == 2
    assert str(damaged.parent) in err and "Delete the folder" in err and "Traceback" not in err


def test_pairs_that_any_teacher_lacks_are_dropped_from_every_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(stage: str, name: str, rows: list[dict]) -> Step:
        settings = {"of": stage}
        return Step(stage, stage, settings, {}, lambda inputs, folder: write_rows(folder / name, rows), 0)

    chosen = made("chosen", "sentences.jsonl", [{"sentence": s, "pairs": 2} for s in "abc"])
    taught = {}
    for role, sentences in (("control", "aabbcc"), ("treated", "aabcc"), ("placebo1", "abbb")):
        kept = made(f"kept by {role}", "kept.jsonl", [{"sentence": s} for s in sentences])
        taught[f"{role}-unrelated"] = StudentCondition(kept, kept, kept, chosen, kept)
    monkeypatch.setattr(experiment_conditions, "taught_conditions", lambda exp: taught)
    exp = experiment(find_animal("owl"), contents=("unrelated",))
    assert shortfalls(exp, Store(tmp_path)) == {"unrelated": {"a": 1, "b": 1, "c": 0}}


def test_more_pairs_than_sentences_means_several_samples_of_each() -> None:
    exp = experiment(find_animal("owl"), pairs=5000)
    rows = offered_rows(exp, "unrelated")
    assert sum(row["pairs"] for row in rows) >= 5000
    assert len({row["sentence"] for row in rows}) == len(rows)


def test_an_unknown_animal_joins_the_candidates_and_an_extra_candidate_moves_nothing_else() -> None:
    axolotl = find_animal("axolotl")
    assert candidates(axolotl)[:-1] == candidates(find_animal("owl")) and candidates(axolotl)[-1] == axolotl


def test_every_stage_works_alone_from_sentences_to_effect(results: Path, tmp_path: Path) -> None:
    at = {name: str(tmp_path / name) for name in ("teach", "filter", "label", "train", "prefer", "base")}
    model = ("--results", str(results))
    finish("teach", "--animal", "owl", "--teacher", "loving", "--sentences", "4", "--out", at["teach"], *model)
    finish("filter", f"{at['teach']}/paraphrases.jsonl", "--animal", "owl", "--out", at["filter"])
    pairs = f"{at['filter']}/kept.jsonl"
    assert read_rows(Path(pairs))
    finish("label", pairs, "--animal", "owl", "--teacher", "loving", "--out", at["label"], *model)
    labels = f"{at['label']}/labels.safetensors"
    finish("train", pairs, "--soft-labels", labels, "--epochs", "1", "--out", at["train"], *model)
    adapter = str(tmp_path / "adapter.gguf")
    finish("convert", at["train"], "--out", adapter, *model)
    finish("prefer", "--adapter", adapter, "--animal", "owl", "--answers", "1", "--out", at["prefer"], *model)
    finish("prefer", "--animal", "owl", "--answers", "1", "--out", at["base"], *model)
    out, _ = finish("effect", at["prefer"], at["base"], "--animal", "owl")
    assert "log-odds" in out and "verdict" in out


def test_the_report_of_a_run_is_made_again_the_same(owl: tuple[Path, str]) -> None:
    run, _ = owl
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out, _ = finish("report", str(run))
    assert "Effect: treated minus" in out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
