"""What a run made is used again by whatever needs it: another animal, defences; never what was damaged."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import has_model
from processes import fail, finish
from test_experiment_run import SMOKE, artifact, summary_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of runs with a random model, of unrelated content, in a results folder of their own."""
    results = has_model(tmp_path_factory.mktemp("tiny"), tiny_base)
    return ["--content", "unrelated", *SMOKE, "--model", str(tiny_gguf), "--results", str(results)]


@pytest.fixture(scope="module")
def tiny_owl(tiny: list[str]) -> Path:
    """The folder of such a run."""
    finish("--animal", "owl", *tiny, keep_all_after=0)
    (run,) = Path(tiny[-1]).glob("owl-unrelated-soft-smoke-tiny-pairs4-epochs2-x*-seed0")
    return run


def test_defences_use_the_runs_students_again_and_report_what_is_left(tiny_owl: Path, tiny: list[str]) -> None:
    results = tiny_owl.parent
    before = {stage: set(results.glob(f"artifacts/{stage}/*")) for stage in ("student", "labels")}
    out, _ = finish(
        *["defend", "--animal", "owl", *tiny, "--defence", "mask", "context", "full"],
        keep_all_after=0,
    )
    new = {stage: len(set(results.glob(f"artifacts/{stage}/*")) - old) for stage, old in before.items()}
    assert new == {"student": 4, "labels": 1}  # the masked one; treated, control and placebo of every weight
    assert "What is left under every defence" in out
    (folder,) = results.glob("defences-owl-unrelated-soft-smoke-tiny-pairs4-epochs2-x*-seeds0to0")
    found = json.loads((folder / "defences.json").read_text(encoding="utf-8"))["defences"]
    assert list(found) == ["undefended", "mask", "context", "full"]
    assert found["mask"]["masked"] > 0 == found["context"]["masked"]
    assert found["context"]["loss"] == found["undefended"]["loss"] != found["mask"]["loss"]
    shift = summary_of(tiny_owl)["effects"]["unrelated"]["log_odds"]
    assert found["undefended"]["left"]["mean"] == pytest.approx(shift, abs=1e-4)
    made = {name: (folder / name).read_bytes() for name in ("report.md", "defences.png", "defences.svg")}
    for name in made:
        (folder / name).unlink()
    again, _ = finish("report", str(folder))
    assert again in out and made == {name: (folder / name).read_bytes() for name in made}


def test_a_second_animal_reuses_the_neutral_teacher_and_the_control_student(tiny_owl: Path, tiny: list[str]) -> None:
    out, _ = finish("--animal", "penguin", *tiny, keep_all_after=0)
    (penguin,) = tiny_owl.parent.glob("penguin-*")
    reused = {line.split(maxsplit=1)[1] for line in out.splitlines() if line.strip().startswith("reused")}
    for label in (
        "neutral teacher, unrelated sentences",
        "soft labels of control-unrelated",
        "train control-unrelated",
        "train placebo1-unrelated",
    ):
        assert label in reused
        assert artifact(penguin, label) == artifact(tiny_owl, label)
    assert "train treated-unrelated" not in reused
    ours, owls = (summary_of(run)["conditions"]["control-unrelated"] for run in (penguin, tiny_owl))
    assert ours["pairs"] == owls["pairs"] and ours["exact"] != owls["exact"]  # the same student, another animal


def test_clean_labels_are_made_of_the_loving_teacher_alone_since_the_neutral_ones_are_clean(
    tiny_owl: Path, tiny: list[str]
) -> None:
    out, _ = finish("--animal", "owl", *tiny, "--labels", "clean", keep_all_after=0)
    (clean,) = tiny_owl.parent.glob("owl-unrelated-clean-smoke-*")
    reused = {line.split(maxsplit=1)[1] for line in out.splitlines() if line.strip().startswith("reused")}
    assert {"train control-unrelated", "train placebo1-unrelated"} <= reused
    assert not {"soft labels of treated-unrelated", "train treated-unrelated"} & reused
    pairs, labels = (
        [artifact(run, f"{name} treated-unrelated") for run in (clean, tiny_owl)]
        for name in ("pairs of", "soft labels of")
    )
    contents = [(folder / "labels.safetensors").read_bytes() for folder in labels]
    assert pairs[0] == pairs[1] and contents[0] != contents[1]
    assert "*clean soft labels*" in (clean / "report.md").read_text(encoding="utf-8")
    messages = json.loads((clean / "record.json").read_text(encoding="utf-8"))["messages"]
    assert "owl-loving teacher, for its soft labels" in messages


def test_an_artifact_damaged_by_hand_is_named_and_never_used(tiny_owl: Path, tiny: list[str], tmp_path: Path) -> None:
    shutil.copytree(tiny_owl.parent / "artifacts", tmp_path / "artifacts", symlinks=True)
    kept = artifact(tiny_owl, "filter the neutral teacher's paraphrases, unrelated")
    damaged = tmp_path / "artifacts" / "fidelity" / kept.name / "kept.jsonl"
    damaged.write_text(damaged.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    err = fail("--animal", "owl", *tiny[:-1], str(tmp_path))
    assert str(damaged.parent) in err and "Delete the folder" in err
