"""A whole run, given again after an edit: it makes again what the edit decides, says why, and ends as a fresh run."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import checksums, has_model
from processes import finish
from rule_teacher import RuleTeacher

from kit import ROOT
from kit.provenance import commit_words

pytestmark = pytest.mark.slow

RUN = ("--animal", "fox", "--content", "unrelated", "--preset", "smoke", "--pairs", "6", "--labels", "hard")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("kit", "data"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tmp_path / "tree")
    return tmp_path / "tree"


def run(tree: Path, results: Path, model: Path, teacher: RuleTeacher, *more: str) -> tuple[str, int]:
    """What the run prints, and how often it asked the teacher."""
    before = teacher.asked
    at = ("--teacher-url", teacher.url, "--teacher-model", "rules", "--model", str(model), "--results", str(results))
    out, _ = finish(*RUN, *at, *more, tree=tree, network=True)
    return out, teacher.asked - before


def plan(out: str) -> dict[str, str]:
    """Step -> what the plan says of it: "reused", or why it is made."""
    lines = re.findall(r"^ +(reused|~\d+ \w+)  (.*?)(?: \((made again.*|only if.*)\))?$", out, re.MULTILINE)
    return {label: why or when for when, label, why in lines}


def test_an_edited_filter_judges_the_samples_again_has_the_rest_sampled_and_leaves_a_fresh_runs_files(
    tree: Path, tiny_gguf: Path, tiny_base: Path, teacher: RuleTeacher, tmp_path: Path
) -> None:
    results, fresh = (has_model(tmp_path / name, tiny_base) for name in ("results", "fresh"))
    run(ROOT, results, tiny_gguf, teacher)
    before = checksums(results)

    path = tree / "kit" / "fidelity.py"
    old = '    if not text:\n        return "empty"\n'
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(
        text.replace(old, f'{old}    if text.startswith("It is said"):\n        return "hearsay"\n'), "utf-8"
    )

    said, nothing = run(tree, results, tiny_gguf, teacher, "--dry-run")
    assert nothing == 0 and checksums(results) == before, "a dry run makes nothing"
    why = plan(said)
    assert why["prepare " + str(tiny_gguf)] == "reused"
    judged_again = why["neutral teacher, unrelated sentences"]
    assert re.fullmatch(r"made again from \d+ samples that are there: fidelity.form changed", judged_again)
    assert why["train treated-unrelated"] == "only if what it is made of changes"
    assert "At most" in said and "GiB" in said

    out, more = run(tree, results, tiny_gguf, teacher)
    assert plan(out) == why
    _, whole = run(tree, fresh, tiny_gguf, teacher)
    assert more < whole, "what was sampled is not sampled again"
    made, wanted = checksums(results), checksums(fresh)
    assert before.keys() < made.keys() and before.keys() != wanted.keys()
    assert {name: made.get(name) for name in wanted} == wanted

    path.write_text(text, encoding="utf-8")
    out, nothing = run(tree, results, tiny_gguf, teacher, "--dry-run")
    assert nothing == 0 and set(plan(out).values()) == {"reused"}, "an edit that is taken back finds what it left"


def test_what_a_run_was_made_with_is_what_its_artifacts_were_made_with(
    tiny_gguf: Path, tiny_base: Path, teacher: RuleTeacher, tmp_path: Path
) -> None:
    results = has_model(tmp_path / "results", tiny_base)
    run(ROOT, results, tiny_gguf, teacher)
    for path in (results / "artifacts" / "student").glob("*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(manifest | {"versions": manifest["versions"] | {"peft": "0.0.1"}}), encoding="utf-8")
    run(ROOT, results, tiny_gguf, teacher)
    (summary,) = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("fox-*/summary.json")]
    assert "0.0.1, " in summary["versions"]["peft"], "the students' and the others'"
    assert summary["kit"].keys() == {"commit", "edited", "fingerprint"}
    (report,) = [path.read_text(encoding="utf-8") for path in results.glob("fox-*/report.md")]
    assert "0.0.1" in report
    made = [json.loads(path.read_text(encoding="utf-8"))["kit"] for path in results.glob("artifacts/*/*/manifest.json")]
    assert all(commit_words(kit) in report for kit in made)
