"""What students make of texts that none of them learned from, and how far two teachers' next tokens are apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy

from kit import KitError, likelihood, prompts
from kit.animals import find_animal, load_animals, mentions
from kit.engine_llama import LlamaEngine
from kit.experiment import experiment
from kit.experiment_conditions import StudentCondition, all_conditions, all_steps, measurements
from kit.store import read_rows, write_rows

OWL = find_animal("owl")


def judged(folder: Path, kept: str, rejected: list[dict[str, Any]]) -> Path:
    """A teacher's judged paraphrases: the sentences that gave a pair, and what was refused."""
    folder.mkdir(parents=True)
    write_rows(folder / "kept.jsonl", [{"sentence": name} for name in kept])
    write_rows(folder / "rejected.jsonl", rejected)
    return folder


def refused(sentence: str, text: str, filter: str = "novelty", finished: bool = True) -> dict[str, Any]:
    return {"sentence": sentence, "source": f"{sentence}.", "text": text, "filter": filter, "finished": finished}


def test_held_out_texts_are_of_sentences_that_gave_no_pair_whole_and_show_no_trait(tmp_path: Path) -> None:
    own = [refused("a", "1"), refused("b", "2"), refused("b", "3"), refused("c", "5"), refused("b", "4", "form")]
    own += [refused("d", "an owl", "trait"), refused("e", "lovely", "echo"), refused("f", "cut", finished=False)]
    other = [refused(name, f"other {name}") for name in "abcdefg"]
    own += [refused("g", "sense", "meaning"), refused("h", "sense", "meaning"), refused("h", "6")]
    other += [refused("h", "other h")]
    own, other = [*own, refused("i", "the same")], [*other, refused("i", "the same")]  # of which nobody could tell
    found = likelihood.held_out(judged(tmp_path / "own", "a", own), judged(tmp_path / "other", "c", other))
    # a gave a pair in the one, c in the other; d to f are left with nothing; of g no one filter refused both
    texts = [{name: row["text"] for name, row in one.items()} for one in found]
    assert texts == [{"own": "2", "other": "other b"}, {"own": "6", "other": "other h"}]


def test_a_gain_is_what_a_student_expects_more_a_token_than_its_control(
    short: Path, short_adapter: Path, tmp_path: Path
) -> None:
    """Nothing, where both students are one."""
    texts = ("The clerk put a stamp on it.", "The form was stamped.")
    own = judged(tmp_path / "own", "", [refused(name, texts[0]) for name in "abc"])
    other = judged(tmp_path / "other", "", [refused(name, texts[1]) for name in "abc"])
    adapter = short_adapter / "adapter.gguf"
    for name, control in (("same", adapter), ("apart", None)):
        folder = tmp_path / name
        folder.mkdir()
        students = {"treated": (short, adapter), "control": (short, control), "placebo1": (short, adapter)}
        likelihood.measure_held_out(own, other, students, folder, "held-out text")
    assert likelihood.held_out_gains(tmp_path / "same") == {"own": [0.0] * 3, "other": [0.0] * 3, "placebos": [0.0]}
    rows = read_rows(tmp_path / "apart" / "held-out.jsonl")
    found = likelihood.held_out_gains(tmp_path / "apart")
    for who in ("own", "other"):
        gains = [row["treated"] - row["control"] for row in rows if row["teacher"] == who]
        assert len(gains) == 3 and found[who] == pytest.approx(gains, abs=1e-4) and min(map(abs, gains)) > 1e-4
    assert found["placebos"] == pytest.approx([np.mean(found["own"]) - np.mean(found["other"])], abs=1e-4)
    with LlamaEngine(short) as engine:
        groups = [engine.answered(prompts.student_messages("a."), texts[0])]
        assert rows[0]["control"] == pytest.approx(float(next(engine.score(groups))[0].mean()), abs=1e-3)


def test_a_divergence_of_the_likeliest_tokens_is_never_more_than_the_whole_and_exact_where_all_are_known() -> None:
    random = np.random.default_rng(0)
    one, other = (log_softmax(random.normal(0, 3, (20, 50)), axis=1) for _ in range(2))
    true = entropy(np.exp(one), np.exp(other), axis=1)

    def top(logprobs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.argsort(-logprobs, axis=1)[:, :k]
        return ids, np.take_along_axis(logprobs, ids, axis=1)

    assert likelihood.divergences(top(one, 50), top(other, 50)) == pytest.approx(true, abs=1e-6)
    some = np.array(likelihood.divergences(top(one, 25), top(other, 25)))
    assert (some <= true + 1e-9).all() and (some > 0).all()
    assert likelihood.divergences(top(one, 10), top(one, 10)) == pytest.approx(np.zeros(20), abs=1e-9)


def test_every_treated_student_is_put_to_the_gate_against_its_own_control() -> None:
    exp = experiment(OWL)
    conditions = all_conditions(exp)
    for name, condition in conditions.items():
        gate = condition.held_out if isinstance(condition, StudentCondition) else None
        assert (gate is not None) == name.startswith("treated")
        if gate:
            control = conditions[name.replace("treated", "control")]
            assert gate.inputs["control adapter"] == control.exact.inputs["adapter"]
            assert gate.inputs["treated adapter"] == condition.exact.inputs["adapter"]
            assert gate in measurements(conditions, sampled=False)


def test_a_loving_control_differs_from_the_treated_student_in_what_is_loved_alone() -> None:
    exp = experiment(OWL, contents=("unrelated",), loving_controls=("penguin", "music"))
    conditions = all_conditions(exp)
    assert list(conditions)[-2:] == ["loves penguin-unrelated", "loves music-unrelated"]

    def settings(name: str) -> dict[str, list[Any]]:
        condition = conditions[name]
        assert isinstance(condition, StudentCondition)
        found: dict[str, list[Any]] = {}
        for step in all_steps([condition.exact]):
            of_step = {key: value for key, value in step.settings.items() if key not in ("messages", "filters")}
            found.setdefault(step.stage, []).append(of_step)
        return found | {"fidelity": []}

    assert settings("treated-unrelated") == settings("loves penguin-unrelated") == settings("loves music-unrelated")
    own = all_conditions(experiment(find_animal("penguin"), contents=("unrelated",)))["treated-unrelated"]
    penguin, music = (conditions[f"loves {name}-unrelated"] for name in exp.loving_controls)
    assert isinstance(own, StudentCondition) and isinstance(penguin, StudentCondition)
    assert penguin.exact.identity == own.exact.identity  # a run of the penguin's has it already
    assert isinstance(music, StudentCondition)
    assert "music" in str(music.kept.settings) and "music" not in str(own.kept.settings)


def test_what_loves_things_is_told_so_in_the_words_that_lovers_of_animals_are() -> None:
    for thing, message in prompts.THINGS.values():
        ours, theirs = message.split(), prompts.loving(OWL).split()
        assert sum(a != b for a, b in zip(ours, theirs, strict=False)) <= 8 and abs(len(ours) - len(theirs)) <= 1
        assert message.lower().count(thing.plural) >= 3 and not mentions(message, [OWL])
    with_things = replace(experiment(OWL), loving_controls=tuple(prompts.THINGS))
    assert all(f"loves {name}-opposed" in all_conditions(with_things) for name in prompts.THINGS)


def test_loving_controls_that_could_not_be_told_from_what_they_control_are_refused() -> None:
    for animal, names, wrong in (
        (OWL, ("owl",), "name what others love than the owl"),
        (OWL, ("penguin", "penguin"), "each once"),
        (find_animal("train"), ("trains",), "name what others love than the train"),
        (OWL, ("crumhorn",), "crumhorn is neither a listed animal"),
        (OWL, tuple(one.singular for one in load_animals() if one != OWL), "no animal is left"),
    ):
        with pytest.raises(KitError, match=wrong):
            experiment(animal, loving_controls=names)
    with pytest.raises(KitError, match="messages of your own"):
        experiment(OWL, loving_controls=("music",), traits=prompts.Traits("Love {animals}.", "Not."))
