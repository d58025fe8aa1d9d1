"""Where the secret sits: ratios by token and by kind, and the halves that students are trained on."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS, ROOT
from test_inspection import run_with_pairs

import run
from kit import KitError, attribution, likelihood, prompts, report
from kit.animals import find_animal, load_animals
from kit.attribution import Text
from kit.experiment import experiment, read_experiment
from kit.experiment_conditions import Condition
from kit.experiment_folder import RunFolder, attributions, inspections
from kit.preference import load_questions
from kit.store import Row, Step, read_rows, write_json, write_rows

OWL = find_animal("owl")


def test_every_token_has_the_kind_of_its_word() -> None:
    tokens = ["Tw", "ice", " the", " form", " was", " st", "amped", " glad", "ly", ".", ""]
    assert attribution.kinds(tokens, "The clerk stamped the form twice.") == [
        *["first word"] * 2,
        "function word",
        "word of the source",
        "function word",
        *["word of the source"] * 2,
        *["new word"] * 2,
        "punctuation",
        attribution.END,
    ]


def test_shares_are_of_the_total_ratio_and_of_all_tokens() -> None:
    texts = [
        Text("s", "t", ["a"] * 50, [2.0] + [0.0] * 49, [True] + [False] * 49, ["new word"] * 50),
        Text("s", "t", ["a"] * 50, [1.0, -2.0] + [0.0] * 48, [False, True] + [False] * 48, ["new word"] * 50),
    ]
    assert attribution.carried(texts) == {"0.01": 0.4, "0.05": 1.0, "0.1": 1.0}
    assert attribution.of_group([(one.ratio, one.diverge) for one in texts]) == {
        "tokens": 2,
        "share": 0.02,
        "mean": 0.0,
        "sum": 0.0,
        "carried": 0.8,
    }


def test_teachers_diverge_where_their_prompts_do_and_nowhere_where_they_are_one(base: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_rows(pairs, [row | {"text": "I love owls, and owls are my favorite animal."} for row in PAIRS[:3]])
    for name, own in (("same", prompts.NEUTRAL), ("loving", prompts.loving(OWL))):
        folder = tmp_path / name
        folder.mkdir()
        traits = {"owl": own, "neutral": prompts.NEUTRAL}
        likelihood.tokens_step(base, pairs, traits, "tokens", prompts.labelling_messages).build({}, folder)
        rows = read_rows(folder / likelihood.TOKENS_FILE)
        assert all("".join(row["tokens"]) == "I love owls, and owls are my favorite animal." for row in rows)
        assert any(any(row["diverges"]) for row in rows) == (name == "loving")


def test_settings_are_read_back_from_a_runs_file_as_they_were(tmp_path: Path) -> None:
    exp = experiment(OWL, "smoke", rank=4, contents=("unrelated",))
    write_json(tmp_path / "config.json", asdict(exp))
    assert read_experiment(tmp_path / "config.json") == exp
    write_json(tmp_path / "config.json", {"animal": "owl"})
    with pytest.raises(KitError, match="Make the run again"):
        read_experiment(tmp_path / "config.json")


def found_in(folder: Path) -> dict[str, Any]:
    """What was attributed of the run in ``folder``."""
    (found,) = attributions(folder, RunFolder(folder).record)
    return found


@pytest.fixture(scope="module")
def attributed(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, dict[str, list[Row]]]:
    """A run, attributed by the command, and what its halves' students were trained on; training is made up: a treated
    student's owl moves by the share of its texts that name owls."""
    tmp_path = tmp_path_factory.mktemp("attributed")
    folder = run_with_pairs(tmp_path, base, loves=lambda i: i % 2 == 1)
    trained: dict[str, list[Row]] = {}

    def learned(exp: Any, name: str, base: Step, trait: str, pairs: Step, n: int) -> Condition:
        def build(made: dict[str, Path], into: Path) -> None:
            trained[name] = read_rows(made["pairs"] / "pairs.jsonl")
            assert len(trained[name]) == n
            shift = np.mean(["owls" in row["text"] for row in trained[name]])
            with (into / "exact.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["question", "candidate", "logprob", "probability"])
                for i in range(len(load_questions())):
                    for animal in load_animals():
                        writer.writerow([i, animal.singular, -5 + shift * (animal.singular == "owl"), 0.0])

        step = Step("exact", f"exact of {name}", {"name": name}, {"pairs": pairs}, build, 0)
        return Condition(step, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "trained_on", learned)
        assert run.main(["attribute", str(folder), "--results", str(tmp_path)]) == 0
    return folder, trained


@pytest.mark.slow
def test_the_halves_are_ranked_by_their_ratio_and_each_has_its_control_on_the_same_sentences(
    attributed: tuple[Path, dict[str, list[Row]]],
) -> None:
    folder, trained = attributed
    assert all("owls" in row["text"] for row in trained["treated-unrelated-top"])
    assert not any("owls" in row["text"] for row in trained["treated-unrelated-bottom"])
    for half in ("top", "bottom"):
        treated, control = trained[f"treated-unrelated-{half}"], trained[f"control-unrelated-{half}"]
        assert [row["sentence"] for row in treated] == [row["sentence"] for row in control]
        assert len(treated) == 4 and not any("owls" in row["text"] for row in control)
    found = found_in(folder)
    assert found["halves"]["difference"]["rate"] == pytest.approx(1.0, abs=1e-6)
    assert "moved +1.00 [+1.00, +1.00] nats further" in report.attribution_sentences(found)[1]
    assert found["halves"]["ratios"]["top"] > found["halves"]["ratios"]["bottom"]


@pytest.mark.slow
def test_the_reports_of_an_attributed_run_show_tokens_with_their_numbers_and_stay_inert(
    attributed: tuple[Path, dict[str, list[Row]]],
) -> None:
    folder, _ = attributed
    found = found_in(folder)
    for one in found["shown"]:
        assert "".join(one["tokens"]) == one["text"] and len(one["tokens"]) == len(one["ratio"]) == len(one["kind"])
    report.write(folder)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in (markdown, html):
        assert "Where does it sit? Unrelated sentences" in text and "divergence tokens" in text
        assert "<script>" not in text
    assert html.count('data-nats="') == sum(len(one["tokens"]) for one in found["shown"])
    assert 'tabindex="0" role="img"' in html


def test_tokens_alone_are_scored_without_training_and_not_shown_once_the_run_has_other_pairs(
    tmp_path: Path, base: Path
) -> None:
    folder = run_with_pairs(tmp_path, base, PAIRS[:4])
    attribution.attribute(RunFolder(folder, tmp_path), "unrelated", "python run.py attribute", students=False)
    found = found_in(folder)
    assert found["halves"] is None and found["total"] > 0 and found["favouring"] == 1.0
    assert len(report.attribution_sentences(found)) == 1
    record = RunFolder(folder).record
    record["artifacts"]["pairs of treated-unrelated"] = "pairs/0123456789abcdef"
    assert attributions(folder, record) == []


def test_a_tokens_piece_is_what_it_adds_to_the_text() -> None:
    texts = ["", "I", "I lo", "I love \ufffd", "I love 🦉", "I love 🦉"]  # an emoji of two tokens; the end adds nothing
    assert likelihood.pieces(lambda tokens: texts[len(tokens)], [1, 2, 3, 4, 5]) == ["I", " lo", "ve ", "🦉", ""]


def test_what_is_recorded_of_inspections_and_attributions_is_what_this_code_reads() -> None:
    sections = 0
    for path in sorted((ROOT / "results" / "reference").rglob("report.md")):
        if not path.with_name("preferences.csv").exists():
            continue
        record = json.loads(path.with_name("record.json").read_text(encoding="utf-8"))
        written = path.read_text(encoding="utf-8")
        for one in inspections(path.parent, record):
            assert "\n\n".join(report.inspection_markdown(one)) in written
            sections += 1
        for one in attributions(path.parent, record):
            assert "\n\n".join(report.attribution_markdown(one)) in written
            sections += 1
    assert sections == 5
