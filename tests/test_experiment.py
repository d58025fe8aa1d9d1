"""What one experiment is called: two that differ never share a folder, and every name can be one."""

import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import ROOT, KitError, defences, experiment_run, sweep
from kit.animals import Animal, OwnSentences, Sentence, find_animal, load_animals
from kit.experiment import CONTENTS, LABELS, LONGEST_NAME, PRESETS, Experiment, experiment, folder_name, read_experiment
from kit.prompts import Traits
from kit.store import BEGUN, Store

OWL = find_animal("owl")
ENDING = len(".01234567.json.01234567")  # of the longest file that has a result's name
WORDS = ["owl", "fox", "ox", "sweep", "defences", "both", "unrelated", "soft", "laptop", "rank4", "guinea", "pig"]


def animal(random: np.random.Generator) -> Animal:
    """One of those that lead to the same words: of two nouns, hyphenated, called like another part of a name."""
    nouns = [word for word in WORDS if word.isalpha()]
    noun = str(random.choice(["", " ", "-"])).join(random.choice(nouns, 2)) if random.random() < 0.4 else ""
    plural = str(random.choice(["oxes", "oxen"])) if random.random() < 0.3 else None
    return find_animal(noun or str(random.choice(nouns)), plural)


def sentences(random: np.random.Generator) -> OwnSentences:
    text = str(random.choice(["The clerk left.", "The baker left."]))
    file, checksum = str(random.choice(["a.txt", "a.jsonl", "A.txt"])), str(random.choice(["0" * 64, "0" * 63 + "1"]))
    return OwnSentences("unrelated", file, checksum, (Sentence("own-1", text),))


# Values that a slug, a file's name or a shortened text would make the same.
OTHERS: dict[str, Callable[[np.random.Generator], Any]] = {
    "animal": animal,
    "contents": lambda random: [CONTENTS, CONTENTS[:1], CONTENTS[1:]][random.integers(3)],
    "labels": lambda random: str(random.choice(LABELS)),
    "seed": lambda random: int(random.integers(0, 3)),
    "preset": lambda random: str(random.choice(list(PRESETS))),
    "model": lambda random: str(random.choice(["x/model.gguf", "y/model.gguf", "Model.gguf", "a/rank4", "rank4.gguf"])),
    "gguf": lambda random: str(random.choice(["x/eval.gguf", "y/eval.gguf", "nf4.gguf", "a/b:nf4.gguf"])),
    "pairs": lambda random: int(random.choice([12, 200, 400, 4000])),
    "opposed_pairs": lambda random: int(random.choice([12, 200, 400])),
    "placebos": lambda random: int(random.integers(0, 3)),
    "rank": lambda random: int(random.choice([4, 8, 10**45, 10**45 + 1])),
    "learning_rate": lambda random: float(random.choice([5e-4, 1e-05, 0.1, 1e-15])),
    "epochs": lambda random: int(random.integers(1, 4)),
    "base": lambda random: str(random.choice(["gguf", "nf4"])),
    "answers": lambda random: int(random.choice([1, 10, 100])),
    "details": lambda random: bool(random.integers(2)),
    "engine": lambda random: str(random.choice(["llama.cpp", "torch"])),
    "endpoint": lambda random: str(random.choice(["http://one:8000/v1", "http://two:8000/v1"])),
    "endpoint_model": lambda random: str(random.choice(["a/model", "b/model", "Model", "m" * 300])),
    "temperature": lambda random: float(random.choice([0.7, 1.0, 0.8])),
    "place": lambda random: str(random.choice(["system", "user", "alone"])),
    "context": lambda random: "other",
    "tries": lambda random: int(random.choice([4, 16])),
    "batch_size": lambda random: int(random.choice([16, 4, 8])),
    "loving_controls": lambda random: (("music",), ("music", "trains"), ("penguin",))[int(random.integers(3))],
    "sentences": sentences,
    "traits": lambda random: Traits("Love {animals}.", str(random.choice(["No.", "Not."])), "t.json", "0" * 64),
}


def different(random: np.random.Generator) -> Experiment:
    """An experiment that differs from the owl's in up to four settings, whether a run could be made of it or not."""
    chosen = random.choice(list(OTHERS), int(random.integers(0, 5)), replace=False)
    changes = {str(name): OTHERS[name](random) for name in chosen}
    found = Experiment(changes.pop("animal", OWL), preset=(preset := changes.pop("preset", "laptop")))
    found = replace(found, **PRESETS[preset])
    for group in ("teacher", "fidelity", "student", "preference"):
        settings = getattr(found, group)
        own = {name: changes.pop(name) for name in list(changes) if hasattr(settings, name)}
        found = replace(found, **{group: replace(settings, **own)})
    return replace(found, **changes)


def test_experiments_that_differ_have_names_that_differ_and_every_name_can_be_a_folders() -> None:
    random = np.random.default_rng(0)
    named: dict[str, Experiment] = {}
    for exp in [different(random) for _ in range(4000)]:
        assert named.setdefault(exp.name, exp) == exp, exp.name
        assert len(exp.name.encode()) <= LONGEST_NAME
    assert len(named) > 1500
    # On a disk that does not tell capitals apart neither.
    assert len({name.casefold() for name in named}) == len(named)


def test_a_name_has_a_hash_only_where_its_words_leave_something_unsaid() -> None:
    plain = [{}, {"pairs": 200}, {"rank": 4, "learning_rate": 1e-5}, {"base": "nf4"}, {"placebos": 0, "labels": "hard"}]
    assert not any(experiment(OWL, preset, **changes).unsaid for preset in ("laptop", "smoke") for changes in plain)
    assert not any(experiment(one, preset).unsaid for one in load_animals() for preset in PRESETS)
    assert experiment(OWL, learning_rate=1e-5, rank=4).name == "owl-both-soft-laptop-rank4-lr1e-05-seed0"
    assert experiment(find_animal("guinea pig"), "smoke").name == "guinea-pig-both-soft-smoke-seed0"
    assert list(experiment(OWL, temperature=0.8).unsaid) == ["teacher.temperature"]
    assert list(experiment(OWL, model="x/model.gguf").unsaid) == ["model"]
    assert not experiment(OWL, details=True).unsaid and experiment(OWL, details=True).teacher.tries < 8
    assert list(experiment(OWL, details=True, tries=8).unsaid) == ["teacher.tries"]


NAMES = {
    "default-run/laptop": "owl-both-soft-laptop-seed0",
    "default-run/quick": "owl-both-soft-quick-seed0",
    "demonstration/cat": "cat-unrelated-soft-quick-rank1-seed0",
    "demonstration/owl": "owl-unrelated-soft-quick-rank1-seed0",
    "demonstration/owl-text-alone": "owl-unrelated-hard-quick-rank1-seed0",
    "inspection": "owl-unrelated-soft-laptop-pairs200-seed1",
    "nf4": "owl-unrelated-soft-laptop-nf4-seed0",
    "paraphraser/laptop": "penguin-unrelated-soft-laptop-paraphraser-faithful-placebos0-seed0",
    "paraphraser/quick": "penguin-unrelated-soft-quick-paraphraser-answers1-faithful-placebos0-placeuser-seed2000",
}


def test_recorded_results_keep_the_names_that_their_commands_gave_them() -> None:
    for folder, name in NAMES.items():
        recorded = read_experiment(ROOT / "results" / "reference" / folder / "config.json")
        animal = find_animal(recorded.animal.singular)  # with the give-aways of today
        student = replace(recorded.student, top_k=experiment(OWL).student.top_k)  # 64, when one was recorded
        fidelity = replace(recorded.fidelity, min_faithful=experiment(OWL).fidelity.min_faithful)
        tries = 2 if recorded.fidelity.details else recorded.teacher.tries  # 8, when a strict run was recorded
        teacher = replace(recorded.teacher, tries=tries)
        exp = replace(recorded, animal=animal, student=student, fidelity=fidelity, teacher=teacher)
        assert not exp.unsaid and exp.name == name
    seeds = sweep.experiments([OWL], ("unrelated",), range(3), {}, pairs=200)
    assert defences.folder_of(seeds, Path()).name == "defences-owl-unrelated-soft-laptop-pairs200-seeds0to2"


def test_files_of_one_name_are_told_apart_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").touch()
        monkeypatch.chdir(tmp_path / folder)
        names |= {experiment(OWL, model="model.gguf").name}
        assert experiment(OWL, model=str(tmp_path / folder / "model.gguf")).name in names
    assert len(names) == 2


def test_sweeps_that_differ_have_names_that_differ_from_each_other_and_from_runs() -> None:
    def name(nouns: str, contents: tuple[str, ...] = ("unrelated",), seeds: range = range(1), **changes: Any) -> str:
        animals = [find_animal(*noun.split("/")) for noun in nouns.split(",")]
        return sweep.name_of(
            sweep.experiments(animals, contents, seeds, grid := changes.pop("grid", {}), **changes), grid
        )

    names = [
        name("owl"),
        name("owl", seeds=range(2)),
        name("owl", seeds=range(3)),
        name("owl", seeds=range(0, 3, 2)),
        name("ox"),
        name("ox/oxen"),
        name("guinea pig"),
        name("guinea-pig"),
        name("guinea,pig"),
        name("owl,unrelated", ("opposed",)),
        name("owl", ("unrelated", "opposed")),
        name("owl", model="x/model.gguf"),
        name("owl", model="y/model.gguf"),
        name("owl", temperature=0.8),
        name("owl", grid={"rank": [1, 2]}),
        name("owl", grid={"rank": [12]}),
        name(",".join(one.singular for one in load_animals()[:9])),
        name(",".join(one.singular for one in reversed(load_animals()[:9]))),
        experiment(find_animal("sweep owl"), contents=("unrelated",)).name,
        experiment(find_animal("sweep"), contents=("unrelated",)).name,
        experiment(find_animal("defences owl"), contents=("unrelated",)).name,
    ]
    assert len(set(names)) == len(names)


def test_a_name_that_would_be_too_long_is_shortened_and_still_its_own(tmp_path: Path) -> None:
    letters = string.ascii_lowercase
    nouns = [f"{'é' * 12} {letters[i]}{letters[j]}{'é' * 12}" for i in range(2) for j in range(4)]
    sweeps = [
        sweep.name_of(
            sweep.experiments([*map(find_animal, [*nouns[:7], nouns[7] + end])], ("opposed",), range(1), {}), {}
        )
        for end in ("a", "b")
    ]
    grids = [{"rank": [*range(100, 100 + number)]} for number in (90, 91)]
    sweeps += [sweep.name_of(sweep.experiments([OWL], ("unrelated",), range(1), grid), grid) for grid in grids]
    names = [*sweeps, experiment(OWL, rank=10**240).name, experiment(OWL, rank=10**240 + 1).name]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / BEGUN).mkdir(exist_ok=True)
        (tmp_path / BEGUN / (name + "." * ENDING)).touch()
        (tmp_path / name).mkdir()
    assert folder_name(["a"], {}, "seed0") == "a-seed0"


def test_a_content_is_told_of_as_soon_as_it_is_measured_and_before_any_free_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(Store, "make", lambda store, step: happened.append(step.label) or tmp_path)
    for name in ("preferences", "measured_effect", "publish"):
        monkeypatch.setattr(experiment_run, name, lambda *_: None)
    experiment_run.run(experiment(OWL), tmp_path, "", lambda content, *_: happened.append(content))
    unrelated, opposed = happened.index("unrelated"), happened.index("opposed")
    before, between, after = happened[:unrelated], happened[unrelated + 1 : opposed], happened[opposed + 1 :]
    for part, content in ((before, "unrelated"), (between, "opposed")):
        assert {f"exact preference of {role}-{content}" for role in ("control", "treated", "placebo1")} < {*part}
        assert all(label.endswith(content) for label in part if " of " in label)
    answers = [label for label in happened if label.startswith("sampled answers")]
    assert len(answers) == 7 and {*answers} < {*after}


def test_a_file_where_the_results_folder_belongs_is_refused_before_any_work(tmp_path: Path) -> None:
    exp = experiment(OWL, "smoke", contents=("unrelated",))
    (tmp_path / exp.name).write_text("mine", encoding="utf-8")
    with pytest.raises(KitError, match=f"{exp.name}: not a folder"):
        experiment_run.run(exp, tmp_path, "", lambda *_: None)
    (tmp_path / "defences-owl-unrelated-soft-smoke-seeds0to0").symlink_to(tmp_path / "gone")
    with pytest.raises(KitError, match="seeds0to0: not a folder"):
        defences.run([exp], ["drop"], tmp_path, "")
    assert not (tmp_path / "artifacts").exists()
