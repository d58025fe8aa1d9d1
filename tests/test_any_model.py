"""Whole runs with other models than the embedded one: a transformers folder, an endpoint, several processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from processes import finish
from rule_teacher import OPENINGS, RuleTeacher
from safetensors.numpy import load_file

from kit.store import read_rows

pytestmark = pytest.mark.slow

# A random model writes no faithful paraphrase, so here the filters keep all; everything else is run.py as it is.
KEEP_ALL = """
import runpy, sys
sys.path.insert(0, ".")
from kit import fidelity
fidelity.Judge.verdicts = lambda self, rows, progress=True: [fidelity.Verdict(None, None, 1.0) for row in rows]
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""
TINY = ["--animal", "fox", "--content", "unrelated", "--preset", "smoke", "--pairs", "10", "--answers", "1"]
TINY += ["--placebos", "0"]
KEY = "sk-canary-7d1f"


def record_of(run: Path) -> dict:
    return json.loads((run / "record.json").read_text(encoding="utf-8"))


def artifact(run: Path, label: str) -> Path:
    return run.parent / "artifacts" / record_of(run)["artifacts"][label]


@pytest.fixture(scope="module")
def mistral(random_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mistral folder: a SentencePiece vocabulary, spaces around answers, one system message at most, scaled
    rotary embeddings."""
    return shutil.copytree(random_models("scaled mistral"), tmp_path_factory.mktemp("model") / "mistral")


@pytest.fixture(scope="module")
def folder_run(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with that folder, its teacher and student in 4-bit transformers: its folder, what it printed."""
    results = tmp_path_factory.mktemp("results")
    model = ["--model", str(mistral), "--engine", "torch"]
    shown, _ = finish(*TINY, *model, "--results", str(results), keep_all_after=0)
    (run,) = results.glob("fox-unrelated-soft-smoke-mistral-pairs10-placebos0-torch-x*-seed0")
    return run, shown


def test_a_transformers_folder_goes_through_the_whole_experiment_in_four_bits(folder_run: tuple[Path, str]) -> None:
    run, shown = folder_run
    record = record_of(run)
    assert (record["base"], record["teacher"]) == ("nf4", "torch-nf4")
    for stage in ("teaching", "training", "evaluation"):
        assert f"GiB  {stage} (" in shown
    assert "NF4 weights" in shown and shown.index("Memory") < shown.index("neutral teacher")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["conditions"]) == ["base", "control-unrelated", "treated-unrelated"]
    rates = {name: entry["exact"]["rate"] for name, entry in summary["conditions"].items()}
    assert len(set(rates.values())) == 3, "both adapters moved the model"
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "Teacher: torch-nf4. The student's base: nf4, trained on CPU. Evaluation: llama.cpp on CPU." in report


def test_torchrun_trains_the_same_student_with_two_processes_of_which_one_writes(
    folder_run: tuple[Path, str], mistral: Path, tmp_path: Path
) -> None:
    script = tmp_path / "keep_all.py"
    script.write_text(KEEP_ALL, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command = [*launcher, *TINY, "--model", str(mistral), "--engine", "torch", "--results", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    shown = made.stdout + made.stderr
    assert shown.count("Effect: treated minus its control") == 1 and shown.count("About ") == 1
    together, alone = tmp_path / folder_run[0].name, folder_run[0]
    label = "train treated-unrelated"
    losses = [
        json.loads((artifact(run, label) / "training.json").read_text(encoding="utf-8"))["loss"]
        for run in (together, alone)
    ]
    assert len(losses[0]) == 3, "as many steps, with batches of 4, 4 and 2 shared by two"
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    ours, theirs = (load_file(artifact(run, label) / "adapter_model.safetensors") for run in (together, alone))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-4, err_msg=name)
    assert not [*tmp_path.glob("artifacts/*/*.partial"), *tmp_path.glob("artifacts/*/*.lock")]


def test_a_teacher_behind_an_endpoint_teaches_by_its_text_and_its_key_is_written_nowhere(
    teacher: RuleTeacher, tiny_gguf: Path, tmp_path: Path
) -> None:
    teacher.fails = 3
    out, err = finish(
        *[*TINY, "--labels", "hard", "--model", str(tiny_gguf), "--results", str(tmp_path)],
        *["--teacher-url", teacher.url, "--teacher-model", "smollm2"],
        network=True,
        environment={"OPENAI_API_KEY": KEY},
    )
    assert teacher.keys == {f"Bearer {KEY}"}
    (run,) = tmp_path.glob("fox-unrelated-hard-smoke-tiny-pairs10-placebos0-endpoint-smollm2-x*-seed0")
    assert record_of(run)["teacher"] == f"smollm2 at {teacher.url}"
    pairs = read_rows(artifact(run, "pairs of treated-unrelated") / "pairs.jsonl")
    assert len(pairs) == 10 and all(row["text"].startswith(OPENINGS) for row in pairs)
    rows = read_rows(artifact(run, "fox-loving teacher, unrelated sentences") / "paraphrases.jsonl")
    keys = [(row["sentence"], row["sample"]) for row in rows]
    assert len(keys) == len(set(keys)), "nothing doubled"
    whole = [row for row in rows if not row.get("stopped")]
    assert len(whole) > 10
    assert all(row["source"][1:] in row["text"] for row in whole), "every answer with its own sentence"
    assert KEY not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
