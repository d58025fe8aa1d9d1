"""What a finished run says: the summary's schema, its tables, and model text that must stay inert."""

import json
from pathlib import Path

import numpy as np
import pytest

from kit import KitError, preference, report
from kit.animals import load_animals
from kit.report_parts import ABOUT_NO_PLACEBO, ABOUT_PLACEBO, ABOUT_SMOKE
from kit.store import write_json

HOSTILE = (
    "<script>alert(1)</script></style><img src=x onerror=alert(2)> | `x` **bold** ![a](http://b) \u202eowl\n# heading "
    "\U0001f989 {{ 7 * 7 }} " + "w" * 10_000
)


def finished_run(
    folder: Path, shift: float = 1.0, labels: str = "soft", preset: str = "laptop", placebos: int = 1
) -> Path:
    """A run's folder with made-up preferences: the treated student's owl moved by ``shift`` nats."""
    names = [animal.singular for animal in load_animals()]
    random = np.random.default_rng(0)
    rows = []
    placebo = [f"placebo{1 + i}-unrelated" for i in range(placebos)]
    for condition in ("base", "control-unrelated", "treated-unrelated", *placebo):
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
        assert set(condition) == {"pairs", "exact", "sampled"}
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


def test_a_report_made_again_is_the_same_file_for_file(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path))
    files = ("summary.json", "report.md", "figure.svg", "figure.png")
    before = {name: (tmp_path / name).read_bytes() for name in files}
    report.write(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == before


def test_text_written_by_a_model_is_inert_in_the_report(tmp_path: Path) -> None:
    report.write(finished_run(tmp_path))
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert not any("<script" in line or line.startswith("# heading") for line in lines)
    row = next(line for line in lines if "alert" in line)
    assert "![a]" not in row and "**bold**" not in row
    assert row.count(" | ") == 1  # two cells: the text's own bar is escaped


@pytest.mark.parametrize(("labels", "words"), [("soft", "NOT the paper's protocol"), ("hard", "the paper's protocol")])
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
    assert "no verdict, since without a placebo" in text and ": transmitted" not in text


def test_a_null_is_reported_as_one_with_its_reason(tmp_path: Path, capsys) -> None:
    report.write(finished_run(tmp_path, shift=-0.2))
    report.show(tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "not detected, since the 95% interval does not lie above zero" in shown


def test_a_smoke_run_says_that_its_numbers_mean_nothing(tmp_path: Path, capsys) -> None:
    report.write(finished_run(tmp_path, preset="smoke"))
    report.show(tmp_path)
    assert ABOUT_SMOKE in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "mean nothing" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"record\.json is missing"):
        report.write(tmp_path)
    finished_run(tmp_path)
    (tmp_path / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(KitError, match="damaged"):
        report.write(tmp_path)
