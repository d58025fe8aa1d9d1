"""Many experiments: what a sweep consists of, its scheduling on Ray, and one whole sweep by both ways."""

import csv
import gzip
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import checksums, has_model
from processes import Run, fail, finish
from rule_teacher import serving

import run
from kit import KitError, commands, store, sweep
from kit.animals import OwnSentences, Sentence, find_animal, load_animals
from kit.engine_endpoint import check_url
from kit.experiment import experiment
from kit.experiment_conditions import StudentCondition, all_conditions, all_steps, lot
from kit.models import EMBEDDED, PARAPHRASER
from kit.preference import load_questions
from kit.prompts import CONTEXTS
from kit.provenance import cpu_threads
from kit.store import Step, Store, read_rows
from kit.sweep_effects import read_sweep

OWL, DOLPHIN = find_animal("owl"), find_animal("dolphin")


def write(folder: Path, value: str) -> None:
    (folder / "value.txt").write_text(value, encoding="utf-8")


def step(name: str, inputs: dict[str, Step] | None = None, stage: str = "pairs") -> Step:
    return Step(stage, name, {"name": name}, inputs or {}, lambda made, folder: write(folder, name), 1)


class Chain:
    """A plan of steps of one's own."""

    def __init__(self, goals: list[Step], store: Store) -> None:
        self.goals, self.store = goals, store
        self.conditions: dict = {}
        self.done: set[str] = set()
        self.reused = frozenset[str]()

    def steps(self):
        return {one.identity: (one, experiment(OWL)) for one in all_steps(self.goals)}

    def left(self):
        return [one for identity, (one, _) in self.steps().items() if identity not in self.done]

    def ready(self):
        found = []
        for one, exp in self.steps().values():
            if one.identity not in self.done and all(made.identity in self.done for made in one.inputs.values()):
                if self.store.find(one):
                    self.done.add(one.identity)
                else:
                    found.append((one, exp))
        return found


def test_what_is_left_on_ray_is_told_by_its_stages_and_by_how_much_goes_on_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of samples four times as slow as estimated and training as fast, two at once, samples are left."""
    monkeypatch.setattr(store, "slowness", lambda: 1.0)
    stages = ("samples", "adapter", "samples", "samples")
    made = [replace(step(str(n), stage=stage), seconds=60) for n, stage in enumerate(stages)]
    plan = Chain(made, Store(tmp_path))
    took, now = iter([240.0, 60.0]), [0.0]
    monkeypatch.setattr(plan.store, "manifest", lambda folder: {"seconds": next(took)})
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now[0])
    progress = sweep.Progress(plan, {}, "Ray")
    for one in made[:2]:
        plan.store.make(one)
        plan.done.add(one.identity)
        progress.made(one)
    now[0] = 150
    assert progress._headline() == "2 of 4 artifacts, about 4 min left, on Ray."  # 2 x 60 x 4, two side by side
    plan.done.add(made[2].identity)
    assert progress._headline() == "3 of 4 artifacts, about 4 min left, on Ray."  # which the last one is not


# ---- what a sweep consists of


def test_a_grid_makes_every_combination_seeds_outermost() -> None:
    grid = sweep.parse_grid(["rank=2,8", "labels=hard,soft"])
    assert grid == {"rank": [2, 8], "labels": ["hard", "soft"]}
    exps = sweep.experiments([OWL, DOLPHIN], ("unrelated", "opposed"), range(3, 5), grid, preset="smoke")
    assert len(exps) == len(set(exps)) == 2 * 2 * 2 * 2 * 2
    assert [exp.seed for exp in exps] == [3] * 16 + [4] * 16
    assert {(exp.student.rank, exp.labels) for exp in exps} == {(2, "hard"), (2, "soft"), (8, "hard"), (8, "soft")}


@pytest.mark.parametrize(
    ("given", "words"),
    [(["colour=red"], "Choose from labels, pairs"), (["rank=two"], "not int values"), (["rank"], "not int values")],
)
def test_a_grid_that_cannot_be_varied_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(KitError, match=words):
        sweep.parse_grid(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("temperature=0", "above 0"),
        ("temperature=nan", "above 0"),
        ("batch_size=0", "at least 1"),
        ("averaged=0", "least 1"),
        ("context=none", "training, other"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_grids_name(given: str, words: str) -> None:
    with pytest.raises(KitError, match=f"--grid {given.partition('=')[0]}.*{words}"):
        sweep.experiments([OWL], ("unrelated",), range(1), sweep.parse_grid([given]))


def test_every_weight_is_a_rank_of_a_grid_and_is_not_averaged() -> None:
    grid = sweep.parse_grid(["rank=0,8", "learning_rate=5e-5"])
    whole, lora = sweep.experiments([OWL], ("unrelated",), range(1), grid)
    stages = [
        {step.stage for step in all_steps([all_conditions(exp)["treated-unrelated"].exact])} for exp in (whole, lora)
    ]
    assert "weights" in stages[0] - stages[1] and "adapter" in stages[1] - stages[0]
    for changes in ({"averaged": 3}, {"base": "nf4"}):
        with pytest.raises(KitError, match="--rank 0: every weight"):
            experiment(OWL, rank=0, **changes)


def test_the_teachers_temperature_can_be_varied_and_leaves_what_does_not_depend_on_it() -> None:
    exps = sweep.experiments([OWL], ("unrelated",), range(1), {"temperature": [0.7, 1.0]})
    cold, warm = (all_conditions(exp)["treated-unrelated"] for exp in exps)
    assert [sweep.settings_of(exp)["temperature"] for exp in exps] == [0.7, 1.0]
    assert cold.kept.identity != warm.kept.identity
    assert cold.exact.settings == warm.exact.settings


@pytest.mark.parametrize("model", [EMBEDDED, PARAPHRASER])
def test_the_place_of_the_trait_message_changes_what_teachers_are_asked_and_nothing_else(model: str) -> None:
    """The neutral teacher alike: the two conversations still differ in the message alone."""
    places = {"place": ["system", "user", "alone"]}
    exps = sweep.experiments([OWL], ("unrelated",), range(1), places, model=model)
    told, asked, alone = exps
    assert asked == experiment(OWL, contents=("unrelated",), model=model, place="user")
    (only,) = alone.conversation("TRAIT", "Rain fell.")
    assert only == {"role": "user", "content": "TRAIT\n\nParaphrase this sentence: Rain fell."}
    for role in ("control-unrelated", "treated-unrelated"):
        ours, theirs = (all_conditions(exp)[role] for exp in (told, asked))
        samples = [dict(one.kept.inputs["paraphrases"].inputs["samples"].settings) for one in (ours, theirs)]
        assert samples[0].pop("messages") != samples[1].pop("messages") and samples[0] == samples[1]
        student = [one.exact.inputs["adapter"].inputs["student"].settings for one in (ours, theirs)]
        assert student[0] == student[1] and ours.exact.settings == theirs.exact.settings
    loving, neutral = (
        [(one["role"], one["content"].replace(trait, "TRAIT")) for one in asked.conversation(trait, "Rain fell.")]
        for trait in (asked.traits.loves(OWL), asked.traits.neutral)
    )
    assert loving == neutral and loving[-1] == ("user", "TRAIT\n\nParaphrase this sentence: Rain fell.")
    assert "system" not in dict(loving) and told.conversation("TRAIT", "Rain fell.")[0]["role"] == "system"
    content = f"{asked.traits.loves(OWL)}\n\nParaphrase this sentence: ..."
    for exp in (asked, alone):
        adapter = all_conditions(replace(exp, labels="soft"))["treated-unrelated"].exact.inputs["adapter"]
        labels = adapter.inputs["student"].inputs["labels"]
        assert labels.settings["messages"] == [{"role": "user", "content": content}]


def test_asked_in_another_context_students_are_the_same_and_what_they_are_asked_is_not() -> None:
    exps = sweep.experiments([OWL], ("unrelated",), range(1), {"context": ["training", "other"]})
    trained, other = (all_conditions(exp)["treated-unrelated"] for exp in exps)
    assert [sweep.settings_of(exp)["context"] for exp in exps] == ["training", "other"]
    for ours, theirs in ((trained.exact, other.exact), (trained.sampled, other.sampled)):
        assert ours.inputs["adapter"].identity == theirs.inputs["adapter"].identity
        assert theirs.settings == ours.settings | {"system": CONTEXTS["other"]} != ours.settings
    with pytest.raises(KitError, match="--grid context elsewhere: unknown. Choose one of training, other"):
        sweep.experiments([OWL], ("unrelated",), range(1), {"context": ["elsewhere"]})


def test_an_animal_named_twice_and_no_seeds_are_refused() -> None:
    with pytest.raises(KitError, match="name every animal once"):
        sweep.experiments([OWL, OWL], ("unrelated",), range(1), {})
    with pytest.raises(KitError, match="--seeds 0"):
        sweep.experiments([OWL], ("unrelated",), range(0), {})


def test_control_and_placebo_are_shared_by_animals_and_ranks_share_their_teachers() -> None:
    owl, dolphin = (all_conditions(experiment(animal, contents=("unrelated",))) for animal in (OWL, DOLPHIN))
    for name in ("base", "control-unrelated", "placebo1-unrelated"):
        assert owl[name].exact.identity == dolphin[name].exact.identity
    assert owl["treated-unrelated"].exact.identity != dolphin["treated-unrelated"].exact.identity
    rank = all_conditions(experiment(OWL, contents=("unrelated",), rank=2))
    for name in ("control-unrelated", "treated-unrelated"):
        ours, theirs = owl[name], rank[name]
        assert isinstance(ours, StudentCondition) and isinstance(theirs, StudentCondition)
        assert ours.pairs.identity == theirs.pairs.identity and ours.exact.identity != theirs.exact.identity


def test_a_placebo_differs_from_its_control_in_the_sampling_of_its_text_alone() -> None:
    conditions = all_conditions(experiment(OWL, contents=("unrelated",), placebos=2))
    control, *placebos = (conditions[f"{role}-unrelated"] for role in ("control", "placebo1", "placebo2"))
    assert isinstance(control, StudentCondition)
    seeds = set()
    for placebo in placebos:
        assert isinstance(placebo, StudentCondition)
        taught = [condition.kept.inputs["paraphrases"] for condition in (control, placebo)]
        assert taught[0].settings == taught[1].settings
        assert taught[0].inputs["sentences"].identity == taught[1].inputs["sentences"].identity
        ours, theirs = (dict(one.inputs["samples"].settings) for one in taught)
        seeds |= {ours.pop("seed"), theirs.pop("seed")}
        assert ours == theirs
        student, theirs_student = (one.exact.inputs["adapter"].inputs["student"] for one in (control, placebo))
        assert student.settings == theirs_student.settings
    assert len(seeds) == 3


def test_sweeps_that_differ_have_folders_of_their_own() -> None:
    def name(grid: dict[str, list], **changes: object) -> str:
        return sweep.name_of(sweep.experiments([OWL], ("unrelated",), range(3), grid, **changes), grid)

    assert name({}) == "sweep-owl-unrelated-soft-laptop-seeds0to2"
    assert name({"rank": [2, 8]}) == "sweep-owl-unrelated-soft-laptop-rank2-8-seeds0to2"
    assert name(
        {"learning_rate": [1e-3], "batch_size": [4], "averaged": [3], "temperature": [0.2, 1.0], "place": ["user"]}
    ) == ("sweep-owl-unrelated-soft-laptop-lr0.001-batch4-averaged3-temperature0.2-1.0-placeuser-seeds0to2")
    assert name({"rank": [2, 8]}, pairs=100, placebos=0) == (
        "sweep-owl-unrelated-soft-laptop-pairs100-placebos0-rank2-8-seeds0to2"
    )
    others = [{"epochs": 1}, {"learning_rate": 1e-4}, {"base": "nf4"}, {"answers": 3}, {"model": "other.gguf"}, {}]
    others += [{"labels": "hard", "endpoint": "http://localhost", "endpoint_model": "a b?*\n"}, {"labels": "hard"}]
    others += [{"model": f"Qwen/Qwen2.5-{size}-Instruct", "gguf": "a/b:c.gguf"} for size in ("3B", "7B")]
    names = {name({}, **changes) for changes in others}
    assert len(names) == len(others) - 1  # answers are not sampled in this sweep, however many there would be
    assert all(re.fullmatch(r"[a-z0-9.-]+", one) for one in names)
    exps = sweep.experiments([OWL], ("unrelated",), range(3), {})
    assert sweep.name_of(exps, {}, sampled=True) == "sweep-owl-unrelated-soft-laptop-answers10-seeds0to2"
    crowds = [load_animals()[:9], load_animals()[1:10]]
    assert len({sweep.name_of(sweep.experiments(list(some), ("opposed",), range(1), {}), {}) for some in crowds}) == 2


# ---- a test that was planned

LINE = "python run.py sweep --animals owl dolphin --contents unrelated --preset laptop --seed 1000 --plan PLAN.md"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed plan in a repository of its own, with a kit that nobody edited since."""
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "committed", lambda path: "c0ffee")
    monkeypatch.setattr(sweep, "unchanged_since", lambda commit: commit == "c0ffee")
    path = tmp_path / "PLAN.md"
    text = f"# The owl's plan\n\n    {LINE}\n\npython run.py sweep isn't all\npython run.py sweep \\\n"
    path.write_text(text, encoding="utf-8")
    return path


def refused(line: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that is not begun."""
    words = [str(plan) if word == "PLAN.md" else word for word in shlex.split(line)]
    assert run.main([*words[2:], "--results", str(plan.parent / "results"), "--dry-run"]) == 2
    return capsys.readouterr().err


def test_a_planned_command_is_one_of_the_plans_however_it_is_spelt_and_wherever_it_works(plan: Path) -> None:
    parser = commands.sweep_parser()
    own = commands.decisive(parser, LINE)
    other = LINE.replace("--seed 1000", "--seed=1000").replace("PLAN.md", str(plan)) + " --results=x --ray-address a:1"
    assert commands.decisive(parser, other) == own
    found = sweep.registered_plan(plan, lambda line: commands.decisive(parser, line) == own)
    assert found == {"file": "PLAN.md", "sha256": sweep.sha256(plan), "commit": "c0ffee", "commands": 3}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (f"{LINE} --pairs 800", "no such command"),
        (LINE.replace("1000", "1001"), "no such command"),
        (LINE.replace(" dolphin", ""), "no such command"),
        (LINE.replace("--preset laptop ", ""), "--preset"),
        (f"{LINE} --trait-file mine.json", "--trait-file mine.json: what it holds"),
        (f"{LINE} --teacher-url http://localhost", "--teacher-url"),
        (f"{LINE} --model mine.gguf", "--model mine.gguf: a --plan's must be"),
        (f"{LINE} --student-model mine.gguf", "--student-model mine.gguf: a --plan's must be"),
    ],
)
def test_a_command_that_the_plan_has_not_or_that_could_do_another_thing_is_refused(
    changed: str, words: str, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(changed, plan, capsys)
    assert not (plan.parent / "results").exists()


def test_a_plan_that_could_be_younger_than_its_run_or_mean_another_kit_is_refused(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "unchanged_since", lambda commit: False)
    assert "code or data are not what they were in its commit" in refused(LINE, plan, capsys)
    monkeypatch.setattr(sweep, "committed", lambda path: None)
    assert "not committed" in refused(LINE, plan, capsys)
    plan.unlink()
    assert "cannot be read" in refused(LINE, plan, capsys)


def test_what_was_made_before_the_plan_is_no_part_of_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither artifacts nor samples that they would begin with."""
    monkeypatch.setattr(sweep, "contains", lambda commit, earlier: commit == "after" and earlier == "plan")
    for commit in ("before", "after"):
        store = Store(tmp_path / commit, kit={"commit": commit, "edited": False, "fingerprint": commit})
        goal = step("paraphrases", {"first": step("first")})
        sweep.check_after({"commit": "plan"}, store, all_steps([goal]))
        store.make(goal)
        if commit == "after":
            sweep.check_after({"commit": "plan"}, store, all_steps([goal]))
            continue
        with pytest.raises(KitError, match="first was made before the plan"):
            sweep.check_after({"commit": "plan"}, store, all_steps([goal]))


def test_a_planned_sweep_keeps_the_time_when_it_was_first_begun(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered, folder = sweep.registered_plan(plan, lambda line: True), tmp_path / "sweep"
    first = sweep.begun(registered, folder)
    assert first.items() > registered.items() and first["begun"].endswith("+00:00")
    (folder / "plan.json").write_text(json.dumps(first | {"begun": "2026-01-01T00:00:00+00:00"}), encoding="utf-8")
    assert sweep.begun(registered, folder)["begun"].startswith("2026-01-01")
    with pytest.raises(KitError, match="another plan"):
        sweep.begun(registered | {"sha256": "0" * 64}, folder)
    (folder / "plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match="is missing"):
        sweep.begun(registered, folder)


def test_a_planned_test_has_sentences_and_questions_of_its_own() -> None:
    planned, other = (experiment(OWL, contents=("unrelated",), confirmatory=planned) for planned in (True, False))
    assert planned.name == "owl-unrelated-soft-laptop-confirmatory-seed0"
    lots = [{row["text"] for row in lot(exp, "unrelated")} for exp in (planned, other)]
    assert lots[0] and lots[0].isdisjoint(lots[1])
    asked = [all_conditions(exp)["base"].exact.settings["questions"] for exp in (planned, other)]
    assert asked == [load_questions(True), load_questions()]
    own = OwnSentences("unrelated", "mine.txt", "0" * 64, (Sentence("1", "The clerk left the shop at noon."),))
    with pytest.raises(KitError, match="--plan, --sentences-file mine.txt"):
        experiment(OWL, contents=("unrelated",), confirmatory=True, sentences=own)


def test_students_of_another_model_read_the_same_text(tiny_gguf: Path) -> None:
    same, other = (
        experiment(OWL, contents=("unrelated",), labels="hard", student_model=model) for model in (None, str(tiny_gguf))
    )
    ours, theirs = (all_conditions(exp)["treated-unrelated"] for exp in (same, other))
    assert ours.pairs.identity == theirs.pairs.identity and ours.exact.identity != theirs.exact.identity
    bases = [one.inputs["model"].settings["source"] for one in (theirs.exact, all_conditions(other)["base"].exact)]
    assert bases == [{"base.gguf": sweep.sha256(tiny_gguf)}] * 2
    assert re.fullmatch(r"owl-unrelated-hard-laptop-student-tiny-x[0-9a-f]{12}-seed0", other.name)
    with pytest.raises(KitError, match="--student-model .*Add --labels hard"):
        experiment(OWL, student_model=str(tiny_gguf), labels="soft")
    with pytest.raises(KitError, match="--student-model some/repo: it and --model embedded"):
        experiment(OWL, student_model="some/repo", labels="hard")


# ---- scheduling


def test_a_step_shared_by_two_goals_is_made_once_and_a_failure_spares_the_rest(tmp_path: Path) -> None:
    def fail(made: dict[str, Path], folder: Path) -> None:
        raise KitError("--pairs 4: only 2 pairs survived.")

    shared = step("shared")
    goals = [step("a", {"shared": shared}), step("b", {"shared": shared})]
    broken = Step("pairs", "broken", {"name": "broken"}, {}, fail, 1)
    plan = Chain([step("c", {"broken": broken}), *goals], Store(tmp_path))
    with pytest.raises(KitError, match=r"1 steps could not be made[\s\S]*broken: --pairs 4: only 2"):
        sweep.finish(plan, sweep.Here(tmp_path))  # type: ignore[arg-type]
    made = [json.loads(path.read_text())["label"] for path in tmp_path.glob("*/*/manifest.json")]
    assert sorted(made) == ["a", "b", "shared"]


def test_without_ray_one_line_says_so_and_an_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with sweep.workers(tmp_path, None) as by:
        assert isinstance(by, sweep.Here)
    assert "Ray is not installed" in capsys.readouterr().out
    with pytest.raises(KitError, match=r"requirements-sweep\.txt"), sweep.workers(tmp_path, "auto"):
        pass


def test_a_task_asks_for_what_its_stage_needs_and_no_more_than_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = experiment(OWL)
    node = {"CPU": 16.0, "GPU": 0.0, "memory": 64e9}
    asked = {stage: sweep.resources(step(stage, stage=stage), exp, node) for stage in ("pairs", "student", "exact")}
    assert asked["pairs"] == {"num_cpus": 1, "memory": sweep.LIGHT_BYTES}
    assert asked["student"]["num_cpus"] == sweep.CPUS and asked["student"]["memory"] > 1e9
    assert sweep.resources(step("s", stage="student"), exp, node | {"GPU": 2.0})["num_gpus"] == 1
    small = sweep.resources(step("s", stage="student"), exp, {"CPU": 1.0, "GPU": 0.0, "memory": 1e9})
    assert small == {"num_cpus": 1, "num_gpus": 0, "memory": 1e9}


@pytest.fixture
def ray() -> Any:
    """Ray, whose workers are given this module, which they do not know."""
    ray = pytest.importorskip("ray", reason="requirements-sweep.txt is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_on_ray_a_step_whose_worker_is_killed_is_made_again_and_a_mendable_error_comes_back(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def die_once(made: dict[str, Path], folder: Path) -> None:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, "second")

    def fail(made: dict[str, Path], folder: Path) -> None:
        raise KitError("--pairs 4: only 2 pairs survived.")

    fragile = Step("pairs", "fragile", {"name": "fragile"}, {}, die_once, 1)
    broken = Step("pairs", "broken", {"name": "broken"}, {}, fail, 1)
    root = tmp_path / "artifacts"
    plan = Chain([step("after", {"fragile": fragile}), broken], Store(root))
    with sweep.workers(root, None) as by, pytest.raises(KitError, match="broken: --pairs 4: only 2"):
        sweep.finish(plan, by)  # type: ignore[arg-type]
    assert by.name.startswith("Ray") and died.exists()
    assert {path.read_text() for path in root.glob("pairs/*/value.txt")} == {"second", "after"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_on_ray_a_worker_that_began_with_a_small_step_computes_a_large_one_on_all_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def count(made: dict[str, Path], folder: Path) -> None:
        import torch

        torch.randn(512, 512) @ torch.randn(512, 512)
        write(folder, f"{os.getpid()} {torch.get_num_threads()}")

    small = Step("pairs", "small", {"name": "small"}, {}, count, 1)
    large = Step("student", "large", {"name": "large"}, {"small": small}, count, 1)
    root = tmp_path / "artifacts"
    with sweep.workers(root, None) as by:
        sweep.finish(Chain([large], Store(root)), by)  # type: ignore[arg-type]
    (worker, one), (same, all_its) = (
        next(root.glob(f"{stage}/*/value.txt")).read_text().split() for stage in ("pairs", "student")
    )
    assert (worker, one) == (same, "1") and int(all_its) == min(sweep.CPUS, cpu_threads())


@pytest.mark.slow
def test_on_a_cluster_the_nodes_get_the_code_and_share_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="requirements-sweep.txt is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # Where a local Ray left a token in the home, a new cluster asks for it, and an explicit address does not send it.
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        + ["--num-cpus=2", "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={port}"],
        cwd=tmp_path,  # so that nothing of the kit is found there by chance
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family = psutil.Process(head.pid)
    try:
        assert head.stdout and any("Ray runtime started" in line for line in head.stdout)
        address = f"127.0.0.1:{port}"
        root = tmp_path / "artifacts"
        plan = Chain([step("after", {"first": step("first")})], Store(root))
        with sweep.workers(root, address) as by:
            assert by.name == f"Ray at {address}, 2 CPUs"
            sweep.finish(plan, by)  # type: ignore[arg-type]
        assert {path.read_text() for path in root.glob("pairs/*/value.txt")} == {"first", "after"}
    finally:
        for process in [*family.children(recursive=True), family]:
            process.kill()
        head.wait()


# ---- one whole sweep: of random students, taught by their teachers' text alone

NAME = "sweep-owl-fox-unrelated-hard-smoke-tiny-pairs6-endpoint-rule-x*-seed0"  # whose model is a path


@pytest.fixture(scope="module")
def taught(tiny_gguf: Path) -> Iterator[list[str]]:
    """The options that all its experiments have."""
    with serving() as teacher:
        options = ["--preset", "smoke", "--pairs", "6", "--model", str(tiny_gguf), "--labels", "hard"]
        yield [*options, "--teacher-url", teacher.url, "--teacher-model", "rule"]


@pytest.fixture(scope="module")
def command(taught: list[str]) -> list[str]:
    return ["sweep", "--animals", "owl", "fox", "--contents", "unrelated", *taught, "--results"]


@pytest.fixture(scope="module")
def plain(command: list[str], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The sweep in one process, and what the terminal showed."""
    results = has_model(tmp_path_factory.mktemp("plain"), tiny_base)
    out, _ = finish(*command, str(results), network=True, without="ray")
    return results, out


@pytest.mark.slow
def test_a_sweep_leaves_a_tidy_table_of_every_student_question_and_candidate(plain: tuple[Path, str]) -> None:
    results, shown = plain
    assert "Ray is not installed" in shown and "Specificity" in shown and "left, on this process" in shown
    (folder,) = results.glob(NAME)
    with gzip.open(folder / "preferences.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == sweep.COLUMNS
    record, students = read_sweep(folder)
    assert len(rows) == len(students) * 50 * len(next(iter(students.values())).candidates)
    assert sorted(row["animal"] for row in record["comparisons"]) == ["fox", "owl"]
    for row in record["comparisons"]:
        control, treated = row["lot"]["control"], row["lot"]["treated"]
        assert 0 < control["shared"] == control["same"] <= control["asked"] - control["lacking"]
        assert treated["same"] <= treated["shared"] <= treated["asked"] - treated["lacking"]
    assert "Of the sentences of the lot" in (folder / "report.md").read_text(encoding="utf-8")
    controls = {row["control"] for row in record["comparisons"]}
    assert len(controls) == 1 and len(students) == 5  # base, control, placebo, two treated
    roles = {row["student"]: (row["role"], row["animal"]) for row in rows}
    assert sorted(roles.values()) == [
        ("base", ""), ("control", ""), ("placebo1", ""), ("treated", "fox"), ("treated", "owl")
    ]  # fmt: skip


@pytest.mark.slow
def test_a_planned_sweep_keeps_every_pair_that_its_students_learned_from(
    plain: tuple[Path, str], taught: list[str], tmp_path: Path
) -> None:
    given = dict(zip(taught[::2], taught[1::2], strict=True))
    exps = sweep.experiments(
        *([OWL, find_animal("fox")], ("unrelated",), range(1), {}),
        preset=given["--preset"],
        pairs=int(given["--pairs"]),
        model=given["--model"],
        labels=given["--labels"],
        endpoint=check_url(given["--teacher-url"]),
        endpoint_model=given["--teacher-model"],
    )
    store = Store(plain[0] / "artifacts")
    planned = sweep.Plan(exps, lambda conditions: sweep.measurements(conditions, False), store)
    assert planned.left() == []
    registered = {"file": "PLAN.md", "sha256": "0" * 64, "commit": "c0ffee", "commands": 1, "begun": "2026-01-01"}
    folder = sweep.publish(planned, False, tmp_path / "sweep", "the command", {"plan": registered})
    record, _ = read_sweep(folder)
    with gzip.open(folder / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert Counter(row["student"] for row in rows) == record["pairs_used"]
    kept = {row["text"] for path in store.root.glob("pairs/*/pairs.jsonl") for row in read_rows(path)}
    assert {row["text"] for row in rows} == kept
    assert not list(plain[0].glob("*/texts.jsonl.gz"))  # of what was not planned the report shows some


def assert_the_same_on_ray(command: list[str], plain: Path, results: Path, **options: Any) -> None:
    """A driver on Ray, killed with all its workers when they have begun the first student, and the same command again:
    in ``results`` stands what the sweep in one process left in ``plain``."""
    driver = Run(*command, str(results), network=True, **options)
    try:
        while not any((results / "artifacts" / "student").glob("*")):
            assert driver.poll() is None, driver.wait()
            time.sleep(0.02)
    finally:
        for process in psutil.Process(driver.pid).children(recursive=True):
            process.kill()
        driver.kill()
        driver.wait()
    out, _ = finish(*command, str(results), network=True, **options)
    assert "on Ray" in out and ", 0 of them there already" not in out
    assert checksums(results) == checksums(plain)
    (table,) = plain.glob("sweep-*/preferences.csv.gz")
    assert (results / table.parent.name / table.name).read_bytes() == table.read_bytes()


@pytest.mark.slow
def test_the_same_sweep_on_ray_with_its_driver_killed_leaves_the_same_artifacts_hash_for_hash(
    plain: tuple[Path, str], command: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    """With random models; the embedded one: ``python tests/proofs.py ray``."""
    pytest.importorskip("ray", reason="requirements-sweep.txt is not installed")
    assert_the_same_on_ray(command, plain[0], has_model(tmp_path, tiny_base))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_sweep_on_ray_with_its_workers(
    number: int, code: int, command: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="requirements-sweep.txt is not installed")
    driver = Run(*command, str(has_model(tmp_path, tiny_base)), network=True)
    while not any((tmp_path / "artifacts" / "paraphrases").glob("*")):
        assert driver.poll() is None, driver.wait()
        time.sleep(0.02)
    workers = psutil.Process(driver.pid).children(recursive=True)
    assert len(workers) > 2
    driver.send(number)
    ended, _, err = driver.wait()
    assert ended == code, err
    assert "The same command goes on where it stopped." in err and "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=20)[1] == []


@pytest.mark.slow
def test_seeds_of_one_animal_and_a_report_made_again_reuse_what_the_sweep_made(
    plain: tuple[Path, str], taught: list[str]
) -> None:
    results = plain[0]
    fox = ["--animal", "fox", "--content", "unrelated", *taught, "--seeds", "1", "--results", str(results)]
    repeated, _ = finish(*fox)
    assert "about 0 s of work" in repeated
    (folder,) = results.glob(NAME.replace("owl-fox", "fox"))
    assert "seed 0 alone" in repeated and (folder / "report.md").exists()
    again, _ = finish("report", str(folder))
    assert again[1:] in repeated
    assert "one seed" in fail("power", str(folder))
