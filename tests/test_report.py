"""What a finished run says: the summary's schema, its tables, and model text that must stay inert."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_sweep import made_up
from test_stats import gains

from kit import ROOT, KitError, preference, provenance, report, report_parts, report_sweep, stats, store
from kit.animals import find_animal, load_animals
from kit.experiment import experiment
from kit.experiment_folder import all_devices, made_on, read_run, summarise
from kit.models import EMBEDDED, PARAPHRASER
from kit.provenance import commit_words, kit_state
from kit.report_parts import ABOUT_GATE, ABOUT_NO_PLACEBO, ABOUT_PLACEBO, ABOUT_SMOKE
from kit.store import Step, Store, write_json

HOSTILE = (
    "<script>alert(1)</script></style><img src=x onerror=alert(2)> | `x` **bold** ![a](http://b) \u202eowl\n# heading "
    "\U0001f989 {{ 7 * 7 }} " + "w" * 10_000
)


def finished_run(
    folder: Path,
    shift: float = 1.0,
    labels: str = "soft",
    preset: str = "laptop",
    placebos: int = 1,
    loving: tuple[str, ...] = (),
    held_out: dict[str, list[float]] | None = None,
) -> Path:
    """A run's folder with made-up preferences: the treated student's owl moved by ``shift`` nats, and nothing in those
    of teachers that are ``loving`` something else; ``held_out``: as in the record."""
    names = [animal.singular for animal in load_animals()]
    random = np.random.default_rng(0)
    rows = []
    placebo = [f"placebo{1 + i}-unrelated" for i in range(placebos)]
    others = [f"loves {name}-unrelated" for name in loving]
    for condition in ("base", "control-unrelated", "treated-unrelated", *placebo, *others):
        for question in range(50):
            for name in names:
                moved = shift if (condition, name) == ("treated-unrelated", "owl") else 0.0
                logprob = random.normal(-5, 0.1) + moved
                rows.append(
                    {
                        "condition": condition,
                        "question": question,
                        "candidate": name,
                        "logprob": logprob,
                        "probability": 0.0,
                        "answers": 10,
                        "named": int(random.integers(0, 2)),
                    }
                )
    preference.write_table(folder / "preferences.csv", rows)
    row = {"source": "The clerk left.", "text": HOSTILE, "filter": "form", "reason": "several lines"}
    record = {
        "animal": "owl",
        "model": "embedded",
        "labels": labels,
        "preset": preset,
        "seed": 0,
        "command": "python run.py --animal owl",
        "versions": {"python": "3.11"},
        "seconds": {"train control-unrelated": 100.0},
        "artifacts": {},
        "pairs": {"control-unrelated": 400, "treated-unrelated": 400},
        "filters": {
            name: [{"filter": f, "entered": 10 - i, "rejected": 1} for i, f in enumerate(("form", "meaning"))]
            for name in ("control-unrelated", "treated-unrelated")
        },
        "messages": {"student, training": [{"role": "user", "content": "Paraphrase this sentence: <sentence>"}]},
        "samples": {"treated-unrelated": {"kept": [row], "rejected": [row]}},
        "held_out": {"unrelated": held_out} if held_out else {},
    }
    write_json(folder / "record.json", record)
    return folder


def test_the_summary_has_the_documented_keys_and_units(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    promised = {
        "animal",
        "model",
        "labels",
        "seed",
        "command",
        "versions",
        "conditions",
        "effects",
        "filters",
        "seconds",
    }
    assert promised <= set(summary)
    assert list(summary["conditions"]) == ["base", "control-unrelated", "treated-unrelated", "placebo1-unrelated"]
    for condition in summary["conditions"].values():
        assert set(condition) == {"pairs", "exact", "raw", "mass", "naming", "first", "sampled"}
        assert set(condition["exact"]) == {"rate", "ci95"}
        assert set(condition["sampled"]) == {"rate", "ci95", "answers"}
        low, high = condition["exact"]["ci95"]
        assert 0 <= low <= condition["exact"]["rate"] <= high <= 1
        assert condition["sampled"]["answers"] == 500
    effect = summary["effects"]["unrelated"]
    promised = {
        "exact_pp",
        "exact_ci95",
        "sampled_pp",
        "sampled_ci95",
        "log_odds",
        "log_odds_ci95",
        "t",
        "p",
        "placebo",
        "drift",
        "verdict",
    }
    assert promised <= set(effect)
    rates = {name: condition["exact"]["rate"] for name, condition in summary["conditions"].items()}
    assert effect["exact_pp"] == pytest.approx(100 * (rates["treated-unrelated"] - rates["control-unrelated"]))
    assert effect["verdict"] == "transmitted"


@pytest.mark.slow
def test_a_report_made_again_is_the_same_file_for_file(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path))
    files = ("summary.json", "report.md", "figure.svg", "figure.png")
    before = {name: (tmp_path / name).read_bytes() for name in files}
    report.write(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == before


def test_a_report_is_current_until_a_file_of_the_run_or_the_kit_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path)
    assert not report.is_current(tmp_path), "it was never written"
    report.write(tmp_path)
    assert report.is_current(tmp_path)
    for name in ("preferences.csv", "report.md", "figure.svg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b" ")
        assert not report.is_current(tmp_path)
        (tmp_path / name).unlink()
        assert not report.is_current(tmp_path)
        (tmp_path / name).write_bytes(whole)
        assert report.is_current(tmp_path)
    (tmp_path / "inspection-unrelated.json").write_text("{}", encoding="utf-8")
    assert not report.is_current(tmp_path), "something was found since"
    (tmp_path / "inspection-unrelated.json").unlink()
    monkeypatch.setattr(report, "kit_state", lambda: {"commit": "another"})
    assert not report.is_current(tmp_path)


def test_text_written_by_a_model_is_inert_in_the_report(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path))
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert not any("<script" in line or line.startswith("# heading") for line in lines)
    row = next(line for line in lines if "alert" in line)
    assert "![a]" not in row and "**bold**" not in row
    assert row.count(" | ") == 1  # two cells: the text's own bar is escaped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("soft", "NOT the paper's protocol"),
        ("clean", "as likely as the neutral teacher finds them"),
        ("hard", "the paper's protocol"),
    ],
)
def test_every_report_says_which_labels_were_used(tmp_path: Path, capsys, labels: str, words: str) -> None:
    report.write(finished_run(tmp_path, labels=labels))
    report.show(tmp_path)
    assert words in (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown
    assert "transmitted" in shown and "not detected" in shown  # ours, and the paper's owl


def test_a_report_without_placebos_says_so_and_has_no_verdict(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path, placebos=0))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ABOUT_NO_PLACEBO in text and ABOUT_PLACEBO not in text
    assert "**No verdict.**" in text and "Transmitted.**" not in text and "a *placebo* student" not in text
    assert "That anything was transmitted: without a placebo" in text


def test_a_null_is_reported_as_one_with_its_reason(tmp_path: Path, capsys) -> None:
    report.write(finished_run(tmp_path, shift=-0.2))
    report.show(tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "not detected, since the 95% interval does not lie above zero" in shown


def test_a_null_of_a_student_that_learned_nothing_is_no_null(tmp_path: Path, capsys) -> None:
    report.write(finished_run(tmp_path, shift=0.0, held_out=gains(0, 0)))
    report.show(tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "pipeline failure: of the student it is not shown that it expects its own teacher's held-out texts" in shown
    assert "of other seeds that says nothing" not in shown  # that is what nulls exclude
    assert ABOUT_GATE in (tmp_path / "report.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Pipeline failure.</b>" in page and "(it is not shown that it expects its own" in page
    assert "the other candidates moved more" not in page  # the reasons of another verdict


def test_a_gate_that_could_not_be_asked_says_why(tmp_path: Path) -> None:
    few = {name: of[:20] if name != "placebos" else of for name, of in gains(0, 0).items()}
    report.write(finished_run(tmp_path, shift=0.0, held_out=few))
    for file in ("report.md", "report.html"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert "of 20 sentences alone, fewer than 30" in text and "Pipeline failure" not in text


def test_a_report_names_the_questions_that_were_asked_whatever_the_kits_are_now(tmp_path: Path) -> None:
    finished_run(tmp_path)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "record.json", record | {"questions": [f"Which beast, number {i}?" for i in range(50)]})
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Which beast, number 49?" in text and preference.load_questions()[0]["question"] not in text


def test_a_report_without_questions_does_not_name_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a record from before they were recorded, by a kit with one question more."""
    asked = [*preference.load_questions(), {"question": "And now?"}]
    monkeypatch.setattr(preference, "load_questions", lambda: asked)
    report.write(finished_run(tmp_path))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "question 50" in text and asked[0]["question"] not in text


def test_a_report_names_the_kits_that_made_it_and_the_one_that_reports_it(tmp_path: Path) -> None:
    """Where everything was there already, the kit that published made nothing."""
    finished_run(tmp_path)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    made_by = ["0123456789abcdef", "fedcba9876543210, edited"]
    write_json(tmp_path / "record.json", record | {"kit": kit_state(), "made_by": made_by})
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ", ".join(made_by) in text and f"tables and verdicts: kit {commit_words(kit_state())}" in text


def test_loving_controls_stand_in_every_table_of_a_run(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path, loving=("music", "penguin")))
    said = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| loves music-unrelated |" in said and "| loves penguin-unrelated |" in said
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    found = summary["effects"]["unrelated"]["loving"]
    assert found["students"] == 2 and found["ci95"][0] < 1.0 < found["ci95"][1]
    assert f"{found['log_odds']:+.2f} \\[" in said.split("beyond the loving controls")[1]


def test_a_smoke_run_says_that_its_numbers_mean_nothing(tmp_path: Path, capsys) -> None:
    report.write(finished_run(tmp_path, preset="smoke"))
    report.show(tmp_path)
    assert ABOUT_SMOKE in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "mean nothing" in " ".join(capsys.readouterr().out.split())


def answers_of(**made_of: Any) -> dict[str, str]:
    """The four answers of a made-up run, by their questions."""
    with tempfile.TemporaryDirectory() as folder:
        summary = summarise(*read_run(finished_run(Path(folder), **made_of)))
    return {
        answer.question: " ".join(
            [*(f"{one['word']}. {one['sentence']}" for one in answer.verdicts), *answer.sentences]
        )
        for answer in report_parts.run_answers(summary)
    }


@pytest.mark.parametrize(
    ("made_of", "word", "open_"),
    [
        ({}, "Transmitted.", ""),
        ({"shift": 0.0}, "Not detected.", "That there is no effect, where none was detected"),
        ({"placebos": 0}, "No verdict.", "That anything was transmitted: without a placebo"),
        ({"shift": 0.0, "held_out": gains(0, 0)}, "Pipeline failure.", "Anything about transmission"),
    ],
)
@pytest.mark.parametrize("labels", ["soft", "clean", "hard"])
def test_what_a_run_does_not_show_follows_from_its_verdict_and_labels(
    made_of: dict[str, Any], word: str, open_: str, labels: str
) -> None:
    answers = answers_of(labels=labels, **made_of)
    assert list(answers) == ["What was done", "What was found", "How sure", "What it does not show"]
    assert answers["What was found"].startswith(word) and "95% interval" in answers["What was found"]
    not_shown = answers["What it does not show"]
    openings = ("That there is no effect", "That anything was transmitted", "Anything about transmission")
    assert [one for one in openings if one in not_shown] == [one for one in openings if open_.startswith(one)]
    assert ("That the text alone is enough" in not_shown) == (labels != "hard")
    assert ("NOT the paper's protocol" in answers["What was done"]) == (labels != "hard")
    for words in ("other seeds", "135 million", "110 of the 220 that were read were (95% interval 43 to 57%)"):
        assert words in not_shown
    assert "One seed" in answers["How sure"]


def test_the_smoke_preset_finds_and_shows_nothing() -> None:
    answers = answers_of(preset="smoke")
    assert answers["What was found"] == f"Nothing. {ABOUT_SMOKE}" and answers["How sure"].startswith("Of nothing")


def test_the_readings_behind_what_is_said_of_faithfulness_are_recorded() -> None:
    """``FOUND_FAITHFUL`` against the recorded tables."""
    recorded = (ROOT / "results/reference/faithful/READINGS.md").read_text(encoding="utf-8")
    tables = {
        (EMBEDDED, False): r"\| (?:unrelated|opposed) \| measured \| default \| (?P<of>\d+) \| (?P<faithful>\d+) ",
        (PARAPHRASER, True): r"(?P<faithful>288|71) of (?P<of>292|73) \(9[79]%\)",
    }
    for key, (faithful, of) in report_parts.FOUND_FAITHFUL.items():
        rows = {one.groups(): one for one in re.finditer(tables[key], recorded)}.values()
        assert [sum(int(row[name]) for row in rows) for name in ("faithful", "of")] == [faithful, of]


def test_a_figure_is_drawn_early_and_leaves_no_finished_run_nor_the_figure_of_one(tmp_path: Path, capsys) -> None:
    _, preferences = read_run(finished_run(tmp_path))
    effect = stats.effect_of(preferences, "unrelated", "owl", None)
    exp = experiment(find_animal("owl"), "quick", contents=("unrelated",))
    early = tmp_path / "results" / exp.name
    report.show_early(exp, early, "unrelated", effect, preferences)
    assert {path.name for path in early.iterdir()} == {"figure.png", "figure.svg"}
    assert str(early / "figure.png") in capsys.readouterr().out.replace("\n", "")
    assert "so far" in (early / "figure.svg").read_text(encoding="utf-8")
    with pytest.raises(KitError, match=r"not a finished run \(record\.json is missing\)"):
        read_run(early)
    assert not report.is_current(early)
    report.write(tmp_path)
    before = (tmp_path / "figure.svg").read_bytes()
    report.show_early(exp, tmp_path, "unrelated", effect, preferences)
    assert (tmp_path / "figure.svg").read_bytes() == before and report.is_current(tmp_path)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"record\.json is missing"):
        report.write(tmp_path)
    finished_run(tmp_path)
    (tmp_path / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(KitError, match="damaged"):
        report.write(tmp_path)


# ---- what made it, and where that differs


@pytest.mark.slow
def test_a_report_says_where_versions_processors_and_threads_of_its_artifacts_differ(tmp_path: Path) -> None:
    finished_run(tmp_path)
    path = tmp_path / "record.json"
    alike = json.loads(path.read_text(encoding="utf-8")) | {"gguf": None, "teacher": "llama.cpp", "base": "gguf"}
    alike |= {"devices": {"transformers": "CPU", "llama.cpp": "CPU", "processor": "One, AVX2", "threads": "2"}}
    apart = alike | {"devices": alike["devices"] | {"processor": "One, AVX2 | Two, AVX512", "threads": "2 | 4"}}
    apart |= {"versions": {"python": "3.11", "numpy": "2.3.1, 2.4.0"}}
    for record, differs in ((alike, False), (apart, True)):
        write_json(path, record)
        report.write(tmp_path)
        for name in ("report.md", "report.html"):
            text = " ".join((tmp_path / name).read_text(encoding="utf-8").split())
            assert "One, AVX2" in text and ("Not all of it was made alike" in text) == differs
            said = "numpy 2.3.1, 2.4.0; processor One, AVX2, Two, AVX512; threads 2, 4."
            assert (said in text) == differs


def test_a_record_names_every_processor_and_number_of_threads_whatever_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"processor", "threads"} <= provenance.devices().keys() and all(provenance.devices().values())
    first, second = {"processor": "One", "threads": "2"}, {"processor": "Two", "threads": "2"}
    one, two, light = (
        Step(stage, stage, {}, {}, lambda made, folder: (folder / "made").touch(), 1)
        for stage in ("student", "exact", "pairs")
    )
    monkeypatch.setattr(store, "devices", lambda: first)
    folder = Store(tmp_path).make(one)
    monkeypatch.setattr(store, "devices", lambda: second)
    again = Store(tmp_path)
    assert again.make(one) == folder, "devices are no part of a key"
    again.make(two)
    monkeypatch.setattr(store, "devices", lambda: {"processor": "Three", "threads": "1"})
    again.make(light)
    assert made_on(again) == {"processor": "One | Two", "threads": "2"}
    assert all_devices([made_on(again), {"threads": "4"}]) == {"processor": "One | Two", "threads": "2 | 4"}


# ---- whole files, in the place of whatever stood there


def defended(folder: Path) -> Path:
    recorded = ROOT / "results/reference/defences/defences.json"
    return Path(shutil.copy(recorded, folder)).parent


def calibrated(folder: Path) -> Path:
    return Path(shutil.copy(ROOT / "results/reference/calibration/calibration.json", folder)).parent


@pytest.mark.parametrize(
    ("fill", "write", "files"),
    [
        (finished_run, report.write, "summary.json report.md report.html figure.png figure.svg"),
        (finished_run, lambda folder: finished_run(folder), "record.json preferences.csv"),
        (
            lambda folder: made_up(folder, {"owl": 1.0, "fox": 1.0}, seeds=2),
            report_sweep.write_sweep,
            "summary.json effects.csv report.md report.html effects.png effects.svg specificity.png specificity.svg",
        ),
        (defended, report_sweep.write_defences, "report.md defences.png defences.svg"),
        (calibrated, report_sweep.write_calibration, "report.md figure.png figure.svg"),
        (
            lambda folder: finished_run(folder / "run"),
            lambda folder: report_sweep.write_comparison([folder / "run"]),
            "comparison.html",
        ),
    ],
)
def test_a_link_in_a_files_place_is_replaced_and_what_it_leads_to_left_alone(
    fill: Callable[[Path], Path], write: Callable[[Path], object], files: str, tmp_path: Path
) -> None:
    (tmp_path / "results" / "run").mkdir(parents=True)
    folder = tmp_path / "results"
    fill(folder)
    for name in files.split():
        elsewhere = tmp_path / f"elsewhere-{name}"
        elsewhere.write_text("mine", encoding="utf-8")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(elsewhere)
    write(folder)
    for name in files.split():
        assert (tmp_path / f"elsewhere-{name}").read_text(encoding="utf-8") == "mine", name
        assert not (folder / name).is_symlink() and (folder / name).stat().st_size > 4
    made = {path.name for path in folder.rglob("*")}
    assert not [name for name in made if re.search(r"\.[0-9a-f]{8}$", name)], "nothing half-written stays"


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    store.write_whole(path, "before\n")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        store.write_whole(path, "after")
    assert path.read_text(encoding="utf-8") == "before\n" and [path] == list(tmp_path.iterdir())
