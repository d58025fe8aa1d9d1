"""What a sweep shows: effects over seeds, placebos, correction, specificity, power; on made-up students."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import run
from kit import ROOT, KitError, report_sweep, stats, stats_seeds, sweep
from kit.animals import find_animal, load_animals
from kit.report_sweep import about_lots, average_cards, cell_title, specificity_sentence, write_sweep
from kit.stats_seeds import Components
from kit.store import Row, Step, Store, Told, write_json
from kit.sweep_effects import (
    RECORDED,
    Cell,
    efficiency,
    power_sentence,
    read_sweep,
    simulated,
    sweep_cells,
    sweep_power,
    varied_settings,
    verdict_power,
)

ANIMALS = [animal.singular for animal in load_animals()]
GRID_SETTINGS = {"labels": "soft", "pairs": 400, "rank": 8, "learning_rate": 5e-4, "epochs": 2, "base": "gguf"}


def made_up(
    folder: Path,
    animals: dict[str, float],
    seeds: int = 3,
    placebo_drift: float = 0.05,
    ranks: tuple[int, ...] = (8,),
    seed_sd: float = 0.05,
    placebos: bool = True,
    common: str | None = None,
    loving: tuple[str, ...] = (),
    held_out: float | None = None,
) -> Path:
    """A sweep's folder. Each treated student's own animal moves by ``animals`` nats times rank / 8, give or take
    ``seed_sd`` between seeds, and in each of them the ``common`` one by 0.6; each candidate of a placebo student by
    ``placebo_drift`` (sd). ``loving``: what the teachers of loving controls love, in whose students the owl moves by
    0.6; ``held_out``: by how much the treated students expect their teachers' texts more (nats)."""
    random = np.random.default_rng(0)
    questions = random.normal(-5, 1, (50, len(ANIMALS)))
    students: dict[str, tuple[str, np.ndarray]] = {}
    comparisons: list[Row] = []
    for seed in range(seeds):
        for rank in ranks:
            control = f"control{seed}-{rank}"
            students[control] = "control", questions + random.normal(0, 0.05, questions.shape)
            drift = random.normal(0, placebo_drift, len(ANIMALS))
            students[f"placebo{seed}-{rank}"] = "placebo1", students[control][1] + drift
            for name in loving:
                moved = students[control][1] + random.normal(0, 0.05, questions.shape)
                moved[:, ANIMALS.index("owl")] += 0.6
                students[f"loves {name}{seed}-{rank}"] = f"loves {name}", moved
            for animal, shift in animals.items():
                moved = students[control][1] + random.normal(0, 0.05, questions.shape)
                moved[:, ANIMALS.index(animal)] += shift * rank / 8 + random.normal(0, seed_sd)
                if common:
                    moved[:, ANIMALS.index(common)] += 0.6
                students[f"{animal}{seed}-{rank}"] = "treated", moved
                row: Row = {"animal": animal, "content": "unrelated", "seed": seed, **GRID_SETTINGS, "rank": rank}
                row |= {"control": control, "treated": f"{animal}{seed}-{rank}"}
                row |= {"loving": {name: f"loves {name}{seed}-{rank}" for name in loving}}
                if held_out is not None:
                    own, other = random.normal(held_out, 1, 60), random.normal(0, 1, 60)
                    row |= {"held_out": {"own": own.tolist(), "other": other.tolist(), "placebos": [0.05]}}
                comparisons.append(row | {"placebos": [f"placebo{seed}-{rank}"] * placebos})
    with gzip.open(folder / "preferences.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, sweep.COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        for name, (role, logprobs) in students.items():
            for question, row_of in enumerate(logprobs):
                for candidate, logprob in zip(ANIMALS, row_of, strict=True):
                    cells = {"question": question, "candidate": candidate, "logprob": f"{logprob:.5f}"}
                    writer.writerow({"student": name, "role": role, **cells, "answers": 0, "named": 0})
    record = {
        "model": "embedded",
        "preset": "laptop",
        "command": "python run.py sweep --animals owl",
        "versions": {"python": "3.11"},
        "seconds": {"student": 100.0},
        "pairs_used": dict.fromkeys(students, 400),
        "comparisons": comparisons,
        "messages": {"neutral teacher": [{"role": "user", "content": "Paraphrase this sentence: <sentence>"}]},
        "samples": {"neutral teacher, unrelated": [{"source": "The clerk left.", "text": "Off went the clerk."}]},
    }
    write_json(folder / "record.json", record)
    return folder


def cells_of(folder: Path) -> list[Cell]:
    record, students = read_sweep(folder)
    return sweep_cells(record["comparisons"], students)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up(tmp_path_factory.mktemp("three"), {"owl": 0.6, "dolphin": 0.3, "wolf": 0.0})
    report_sweep.write_sweep(folder)
    return folder


def test_effects_are_found_with_their_size_and_a_null_stays_one(three: Path) -> None:
    (cell,) = cells_of(three)
    for animal, shift in (("owl", 0.6), ("dolphin", 0.3)):
        effect = cell.effects[animal]
        assert effect.log_odds.ci95[0] < shift < effect.log_odds.ci95[1]
        assert effect.verdict == "transmitted" and effect.rank == 1 and len(effect.shifts) == 3
        assert effect.placebo and effect.placebo.at_least == 0 and effect.placebo.placebos == len(ANIMALS)
    assert cell.effects["wolf"].verdict == "not detected" and "effect" in cell.effects["wolf"].lacking


def test_p_values_are_corrected_over_the_animals(three: Path) -> None:
    (cell,) = cells_of(three)
    plain = {animal: effect.log_odds.p for animal, effect in cell.effects.items()}
    smallest = min(plain, key=lambda animal: plain[animal])
    assert cell.effects[smallest].p_holm == pytest.approx(3 * plain[smallest])
    assert all(effect.p_holm >= plain[animal] for animal, effect in cell.effects.items())


def test_p_values_are_corrected_over_a_grid_too(tmp_path: Path) -> None:
    cells = cells_of(made_up(tmp_path, {"owl": 0.6}, ranks=(2, 4, 8)))
    effects = [cell.effects["owl"] for cell in cells]
    smallest = min(effects, key=lambda effect: effect.log_odds.p)
    assert {effect.tests for effect in effects} == {3}
    assert smallest.p_holm == pytest.approx(3 * smallest.log_odds.p)


def test_without_placebos_nothing_is_called_transmitted_and_a_null_is_still_one(tmp_path: Path) -> None:
    (cell,) = cells_of(made_up(tmp_path, {"owl": 0.6, "wolf": 0.0}, placebos=False))
    owl, wolf = cell.effects.values()
    assert owl.verdict == stats.NO_PLACEBO and owl.drift is None
    assert wolf.verdict == "not detected" and "effect" in wolf.lacking


def test_one_seed_of_many_animals_is_held_to_a_drift_corrected_for_many(tmp_path: Path) -> None:
    animals = dict.fromkeys(ANIMALS[:8], 0.6)
    (cell,) = cells_of(made_up(tmp_path, animals, seeds=1, placebo_drift=0.03))
    for effect in cell.effects.values():
        assert effect.drift and effect.drift_holm and effect.drift_holm >= effect.drift.p
    lowest = min(cell.effects.values(), key=lambda effect: effect.drift.p if effect.drift else 1)
    assert lowest.drift and lowest.drift_holm == pytest.approx(8 * lowest.drift.p)


def test_opposed_content_is_tested_against_placebos_not_by_dealing(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.6, "dolphin": 0.5})
    record, students = read_sweep(folder)
    record["comparisons"] = [row | {"content": "opposed"} for row in record["comparisons"]]
    (cell,) = sweep_cells(record["comparisons"], students)
    assert cell.specificity and cell.specificity.share_p is None and cell.specificity.drift
    assert cell.specificity.drift.placebos == 3
    assert "placebo students on the same lot of sentences" in specificity_sentence(cell)
    without = [row | {"placebos": []} for row in record["comparisons"]]
    assert "no test without placebos" in specificity_sentence(sweep_cells(without, students)[0])


def test_the_matrix_is_specific_and_its_rows_are_the_teachers(three: Path) -> None:
    (cell,) = cells_of(three)
    assert cell.specificity and cell.compared == ["owl", "dolphin", "wolf"]
    assert np.diag(cell.specificity.matrix) == pytest.approx([0.6, 0.3, 0.0], abs=0.1)
    assert cell.specificity.p < 0.05 and cell.specificity.statistic == pytest.approx(0.3, abs=0.1)


UNGUARDED = "by *specific on average* alone, and whether it is the loving: so few animals cannot tell."


@pytest.mark.parametrize(("shift", "word"), [(0.4, "Specific on average"), (-0.1, "Not detected")])
def test_two_animals_are_told_over_the_seeds_since_their_deals_are_too_few(
    shift: float, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up(tmp_path, {"owl": shift, "dolphin": shift}, seeds=4, placebos=False)
    write_sweep(folder)
    report_sweep.show_sweep(folder)
    (cell,) = cells_of(folder)
    assert cell.specificity and cell.average and cell.specificity.floor == 1 / 16
    assert "by Student's t over the seeds, one-sided: deals are too few" in specificity_sentence(cell)
    report = (folder / "report.md").read_text(encoding="utf-8").split("**What was found**")[1]
    assert report.strip().startswith(f"- **{word}.** Over 2 animals, students prefer their own teacher's by")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{word}. Over 2 animals, students prefer their own teacher's by" in shown
    assert (UNGUARDED in report) == (UNGUARDED.replace("*", "") in shown) == (word == "Specific on average")
    (said,) = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["cells"]
    p = cell.specificity.over_seeds
    assert said["average"] == {"p": p, "p_holm": p, "by_seeds": True, "guarded": False, "verdict": word.lower()}


def test_nothing_is_called_transmitted_without_placebos_whatever_holds_on_average(tmp_path: Path) -> None:
    folder = made_up(tmp_path, dict.fromkeys(["owl", "dolphin", "wolf", "cat"], 0.6), placebos=False)
    write_sweep(folder)
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "Specific on average" in text and "No verdict" in text and "Transmitted." not in text
        assert "Which animal is transmitted, by" in text and "so few animals cannot tell" not in text


@pytest.mark.parametrize(("held_out", "verdict"), [(0.0, "pipeline failure"), (1.0, "not detected")])
def test_students_that_learned_nothing_are_no_null_on_average_either(
    held_out: float, verdict: str, tmp_path: Path
) -> None:
    (cell,) = cells_of(made_up(tmp_path, dict.fromkeys(["owl", "dolphin", "wolf"], -0.1), held_out=held_out))
    assert cell.average and cell.average.verdict == verdict


@pytest.mark.parametrize(
    ("animals", "seeds", "ranks", "by_seeds"),
    [
        (["owl", "dolphin", "wolf"], 3, (2, 4, 8), False),  # 6**3 ways to deal
        (["owl", "dolphin", "wolf", "cat"], 3, (8,), False),  # 24 ways alike in every seed
        (["owl", "dolphin", "wolf", "cat"], 3, (4, 8), True),  # too few for two cells
        (["owl", "dolphin"], 5, (8,), False),  # 32 ways
        (["owl", "dolphin"], 5, (4, 8), True),
    ],
)
def test_what_moves_surely_is_specific_in_every_design_however_many_cells_there_are(
    animals: list[str], seeds: int, ranks: tuple[int, ...], by_seeds: bool, tmp_path: Path
) -> None:
    cells = cells_of(made_up(tmp_path, dict.fromkeys(animals, 0.8), seeds=seeds, ranks=ranks, seed_sd=0.02))
    averages = [cell.average for cell in cells if cell.average]
    assert len(averages) == len(ranks)
    for one in averages:
        assert one.verdict == "specific on average" and one.by_seeds == by_seeds
        assert one.guarded == (len(animals) == 4 and not by_seeds)
    assert min(one.p_holm for one in averages) == pytest.approx(len(ranks) * min(one.p for one in averages))


def test_many_cells_of_a_grid_are_summarised(tmp_path: Path) -> None:
    cells = cells_of(made_up(tmp_path, dict.fromkeys(["owl", "dolphin", "wolf"], 0.4), ranks=tuple(range(2, 9))))
    (first, *others) = average_cards(cells)
    assert len(others) < 2 and "of 7 cells of the grid, over their animals: unrelated, rank" in first["sentence"]
    assert first["word"] == "Specific on average"


def test_what_is_said_on_average_goes_by_the_deals_where_they_are_enough(three: Path, tmp_path: Path) -> None:
    record, students = read_sweep(three)
    (said,) = average_cards(sweep_cells(record["comparisons"], students))
    assert said["word"] == "Specific on average"
    assert "3 animals" in said["sentence"] and "(3 seeds, p = " in said["sentence"]
    assert "Student's t" not in specificity_sentence(cells_of(three)[0])
    assert average_cards(cells_of(made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6}, seeds=1))) == []


def test_an_animal_that_moves_alike_in_every_loving_teachers_student_is_not_transmitted(tmp_path: Path) -> None:
    """Whatever it does against the control: it is none of its own teacher's."""
    animals = {"owl": 0.0} | dict.fromkeys(["dolphin", "wolf", "cat", "eagle", "lion"], 0.7)
    (cell,) = cells_of(made_up(tmp_path, animals, seed_sd=0.02, common="owl"))
    owl, *others = cell.effects.values()
    assert owl.log_odds.mean == pytest.approx(0.6, abs=0.05) and owl.p_holm < 0.05 and owl.rank == 1 and owl.z > 5
    assert owl.others and owl.others.mean == pytest.approx(0, abs=0.05)
    assert (owl.verdict, owl.lacking) == ("not detected", ["others"])
    for effect in others:
        assert effect.verdict == "transmitted" and effect.others_holm == effect.others_floor == pytest.approx(6 / 6**3)


def test_an_animal_that_any_loving_prompt_moves_is_not_transmitted(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.6, "wolf": 0.6}, seed_sd=0.02, loving=("music", "trains"))
    (cell,) = cells_of(folder)
    owl, wolf = cell.effects.values()
    assert owl.loving and owl.loving.mean == pytest.approx(0, abs=0.05)
    assert (owl.verdict, owl.lacking) == ("not detected", ["loving control"])
    assert wolf.loving and wolf.loving.ci95[0] < 0.6 < wolf.loving.ci95[1] and wolf.verdict == "transmitted"
    assert wolf.loving_holm == pytest.approx(2 * wolf.loving.p)
    report_sweep.write_sweep(folder)
    heading, rows = report_sweep.effects_table(cell)
    assert f"p = {owl.loving_holm:.3f}" in rows[0][heading.index("beyond the loving controls, nats [95% CI]: p, Holm")]
    assert "not detected (loving control)" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("held_out", "verdict"), [(1.0, "not detected"), (0.0, "pipeline failure"), (None, "not detected")]
)
def test_a_null_of_students_that_did_not_learn_of_their_teachers_is_a_pipeline_failure(
    held_out: float | None, verdict: str, tmp_path: Path
) -> None:
    folder = made_up(tmp_path, {"owl": 0.0, "wolf": 0.6}, seed_sd=0.02, held_out=held_out)
    (cell,) = cells_of(folder)
    owl, wolf = cell.effects.values()
    assert owl.verdict == verdict and wolf.verdict == "transmitted" and "effect" in owl.lacking
    assert (owl.gate.sentences if owl.gate else None) == (None if held_out is None else 180)
    report_sweep.write_sweep(folder)
    said = (folder / "report.md").read_text(encoding="utf-8")
    assert ("*Pipeline failure*" in said) == (held_out is not None) and f"| {verdict} (" in said
    assert ("excluded: above" in said) == (verdict == "not detected")


def test_two_seeds_exclude_nothing(tmp_path: Path) -> None:
    """Their interval covers as little as 91%."""
    report_sweep.write_sweep(made_up(tmp_path, {"owl": 0.0}, seeds=2, seed_sd=0.001))
    said = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "not detected (effect" in said and "excluded" not in said


def test_a_grid_does_not_spare_an_animal_the_other_teachers_students(tmp_path: Path) -> None:
    """So many effects leave its own test no chance; the matrix and the interval speak."""
    animals = {"owl": 0.0} | dict.fromkeys(["dolphin", "wolf", "cat", "eagle", "lion"], 0.7)
    folder = made_up(tmp_path, animals, seed_sd=0.001, common="owl", ranks=(8, 16))
    for cell in cells_of(folder):
        owl, *others = cell.effects.values()
        assert owl.others_floor > 0.05 and owl.others.mean == pytest.approx(0, abs=0.05)
        if owl.others.ci95[0] <= 0:
            assert owl.verdict == "not detected" and "others" in owl.lacking
        assert all(effect.verdict == "transmitted" for effect in others)
    assert any("others" in cell.effects["owl"].lacking for cell in cells_of(folder))


def test_animals_too_few_to_tell_one_teachers_students_from_the_others_are_not_asked_to(tmp_path: Path) -> None:
    (cell,) = cells_of(made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6}, seed_sd=0.02))
    for effect in cell.effects.values():
        assert effect.others_floor == 0.25 and effect.verdict == "transmitted"


def test_an_effect_no_larger_than_what_placebos_show_is_not_transmitted(tmp_path: Path) -> None:
    (cell,) = cells_of(made_up(tmp_path, {"owl": 0.3}, placebo_drift=1.0, seed_sd=0.01))
    effect = cell.effects["owl"]
    assert effect.log_odds.p < 0.05 and effect.rank == 1
    assert effect.placebo and effect.placebo.at_least > 3
    assert effect.verdict == "not detected"


def test_seeds_that_disagree_are_not_transmitted_whatever_the_papers_t_test_says(tmp_path: Path) -> None:
    (cell,) = cells_of(made_up(tmp_path, {"owl": 0.3}, seed_sd=0.5))
    effect = cell.effects["owl"]
    assert effect.log_odds.t_p < 1e-6 and effect.verdict == "not detected"


def test_an_animal_that_others_students_were_not_asked_about_is_said_to_be_in_no_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "Compared with no other animal: the axolotl, since students whose teachers love another one"
    words = ["sweep", "--contents", "unrelated", "--results", str(tmp_path / "results"), "--dry-run", "--animals"]
    for animals, expected in ((["owl", "axolotl"], True), (["axolotl"], False), (["owl", "wolf"], False)):
        assert run.main([*words, *animals]) == 0
        assert (told in capsys.readouterr().out) == expected

    made_up(tmp_path, {"owl": 0.6, "dolphin": 0.3, "wolf": 0.0})
    table = gzip.decompress((tmp_path / "preferences.csv.gz").read_bytes()).decode().splitlines(keepends=True)
    its_own = [line.replace(",wolf,", ",axolotl,") for line in table if line.startswith(("wolf", "control", "placebo"))]
    others = [line for line in table if not line.startswith("wolf")]
    its_own = [re.sub("^(control|placebo)", r"its \1", line) for line in its_own]
    (tmp_path / "preferences.csv.gz").write_bytes(gzip.compress("".join([*others, *its_own]).encode()))
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    for row in (row for row in record["comparisons"] if row["animal"] == "wolf"):
        row |= {"animal": "axolotl", "control": f"its {row['control']}", "placebos": [f"its {row['placebos'][0]}"]}
    record["pairs_used"] |= {f"its {name}": 400 for name in record["pairs_used"]}
    write_json(tmp_path / "record.json", record)
    report_sweep.write_sweep(tmp_path)
    report_sweep.show_sweep(tmp_path)
    for text in (
        capsys.readouterr().out,
        *((tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")),
    ):
        assert told in " ".join(text.split())


def test_one_seed_is_labelled_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_up(tmp_path, {"owl": 0.6}, seeds=1)
    report_sweep.write_sweep(folder)
    report_sweep.show_sweep(folder)
    assert "seed 0 alone" in capsys.readouterr().out
    with pytest.raises(KitError, match="one seed"):
        report_sweep.show_power(folder, [0.1], 0.8)


def test_the_report_has_every_number_and_is_made_again_the_same(three: Path) -> None:
    before = {path.name: path.read_bytes() for path in three.iterdir()}
    assert {"summary.json", "effects.csv", "report.md", "effects.png", "specificity.svg"} <= set(before)
    report_sweep.write_sweep(three)
    assert {path.name: path.read_bytes() for path in three.iterdir()} == before
    text = before["report.md"].decode()
    for words in (
        "NOT the paper's protocol",
        "placebo",
        "Holm",
        "loves the dolphin",
        "Beyond the other loving teachers",
        "3 seeds",
        "Off went",
    ):
        assert words in text
    summary = json.loads(before["summary.json"])
    assert set(summary["cells"][0]["effects"]) == {"owl", "dolphin", "wolf"}
    with (three / "effects.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert len(set(header)) == len(header)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    (cell,) = cells_of(three)
    expected = [(animal, str(cell.settings["rank"]), str(one.rank)) for animal, one in cell.effects.items()]
    assert [(row["animal"], row["rank"], row["shift_rank"]) for row in rows] == expected


def test_what_the_teachers_lacked_and_what_the_arms_share_is_said_from_least_to_most() -> None:
    control = {"asked": 200, "lacking": 20, "shared": 180, "same": 180}
    treated = [{"asked": 400, "lacking": n, "shared": 240, "same": n} for n in (40, 80)]
    said = about_lots([{"control": control, "treated": one} for one in treated])
    for words in (
        "10% gave controls",
        "10 to 20% treated students",
        "67 to 75% are the control's",
        "11 to 25% with the very",
    ):
        assert words in said
    assert about_lots([]) == ""


def test_a_grid_is_drawn_along_its_number(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.6}, ranks=(2, 8))
    report_sweep.write_sweep(folder)
    assert (folder / "along-rank.png").exists()
    assert not (folder / "specificity.png").exists()
    small, large = cells_of(folder)
    assert small.effects["owl"].log_odds.mean == pytest.approx(0.15, abs=0.1)
    assert large.effects["owl"].log_odds.mean == pytest.approx(0.6, abs=0.1)


def test_contents_with_their_own_numbers_of_pairs_are_no_grid(three: Path) -> None:
    (cell,) = cells_of(three)
    opposed = replace(cell, content="opposed", settings=cell.settings | {"pairs": 200})
    assert varied_settings([cell, opposed]) == [] and cell_title(opposed, [cell, opposed]) == "opposed"
    fewer = replace(cell, settings=cell.settings | {"pairs": 100})
    assert varied_settings([cell, opposed, fewer]) == ["pairs"]
    assert cell_title(fewer, [cell, fewer]) == "unrelated, pairs 100"


def test_power_wants_more_seeds_for_less_effect(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = cells_of(three)
    heading, (row,) = report_sweep.power_table(cells, sweep_power(cells, [0.05, 0.2], 0.8), [0.05, 0.2])
    assert heading[-2:] == ["for 0.05", "for 0.2"]
    assert row[-2] == "more questions" or int(row[-2]) > int(row[-1])
    report_sweep.show_power(three, [0.2], 0.8)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Seeds that find an effect" in shown and "5% / 3, what Holm's correction asks" in shown
    with pytest.raises(KitError, match="--power 1"):
        report_sweep.show_power(three, [0.2], 1.0)
    with pytest.raises(KitError, match="--effect -1"):
        report_sweep.show_power(three, [-1], 0.8)


def test_what_a_minute_buys_is_the_shift_over_the_noise_from_draw_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    components, random = Components(seed=0.02, question=0.01, residual=0.001), np.random.default_rng(0)
    rows, students = simulated(components, 0.5, 6, 4, 1, random)
    (cell,) = sweep_cells(rows, students)
    assert efficiency(cell, {"comparisons": rows}, students) is None  # nobody wrote down how long it took
    timed = [row | {"seconds": {"paraphrases": 200.0, "student": 100.0}} for row in rows]
    found = efficiency(cell, {"comparisons": timed}, students)
    assert found and found.draws == 24 and found.minutes == 5
    assert found.shift == pytest.approx(0.5, abs=0.1)
    # A student's own variance, a half of the component, and that of the mean of three others.
    assert found.noise == pytest.approx(0.01**0.5, rel=0.1)
    assert found.score(found.shift) == pytest.approx((found.shift / found.noise) ** 2 / 5)
    assert found.score(-0.5) < 0
    # A draw's shift has its own student's variance and that of the mean of three others.
    assert found.sd == pytest.approx((0.01 * 4 / 3) ** 0.5, rel=0.25)
    assert np.mean(found.of_seeds) == pytest.approx(found.shift) and len(found.of_seeds) == 6
    assert found.shift - found.sd < found.lower80 < found.shift
    half = 1.96 * found.noise * (4 / 3 / 24) ** 0.5
    assert found.ci95 == pytest.approx((found.shift - half, found.shift + half))
    timeless = [row | {"seconds": {"student": 0.0}} for row in rows]
    assert efficiency(cell, {"comparisons": timeless}, students) is None

    folder = made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6})
    report_sweep.show_power(folder, [0.2], 0.8)
    assert "What a minute buys" not in capsys.readouterr().out
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    for row in record["comparisons"]:
        row["seconds"] = {"student": 90.0}
    write_json(folder / "record.json", record)
    report_sweep.show_power(folder, [0.2], 0.8)
    shown = " ".join(capsys.readouterr().out.split())
    assert "What a minute buys" in shown and "1.5" in shown
    assert "What a sweep of 6 animals would find" in shown
    heading, (as_found, bound, worst) = report_sweep.matrix_table([cell], [found])
    assert heading[-1] == "6 seeds" and float(bound[2]) < float(as_found[2]) == pytest.approx(found.shift, abs=1e-3)
    assert as_found[-1] == "1.00, 1.00" and worst[2] == bound[2] and worst[3:] < bound[3:]


def test_the_noise_of_a_draw_is_a_students_own_however_many_teachers_there_are() -> None:
    components, found = Components(seed=0.02, question=0.01, residual=0.0), []
    for animals in (2, 8):
        rows, students = simulated(components, 0.5, 8, animals, 1, np.random.default_rng(1))
        (cell,) = sweep_cells(rows, students)
        timed = [row | {"seconds": {"student": 60.0}} for row in rows]
        one = efficiency(cell, {"comparisons": timed}, students)
        assert one
        found.append(one.noise)
    assert found[0] == pytest.approx(0.1, rel=0.1) and found[1] == pytest.approx(0.1, rel=0.1)


def test_no_power_is_asked_of_what_is_no_effect(three: Path) -> None:
    for effect in (float("nan"), float("inf"), 0.0):
        with pytest.raises(KitError, match="must be positive"):
            report_sweep.show_power(three, [effect], 0.8)


def test_what_was_made_before_the_sweep_is_charged_as_if_it_were_made_by_it(tmp_path: Path) -> None:
    """Samples that an earlier sweep, or another number of pairs, had made already."""
    store = Store(tmp_path)

    def step(name: str, new: float | None) -> Step:
        def build(made: dict[str, Path], folder: Path) -> Told | None:
            (folder / "n").write_text(name)
            return None if new is None else Told(new)

        return Step("paraphrases", name, {"name": name}, {}, build, 1)

    steps = {new: step(f"step {new}", new) for new in (None, 0.25, 0.0)}
    for one in steps.values():
        manifest = store.make(one) / "manifest.json"
        saved = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps(saved | {"seconds": 10.0}), encoding="utf-8")
    assert sweep._anew([steps[None], steps[0.25]], store) == {"paraphrases": 50.0}
    assert sweep._anew(steps.values(), store) == {}


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="not a finished sweep"):
        report_sweep.write_sweep(tmp_path)
    made_up(tmp_path, {"owl": 0.5}, seeds=1)
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(KitError, match="damaged"):
        report_sweep.write_sweep(tmp_path)


def test_what_a_sweep_would_find_is_said_before_it_is_made_by_how_recorded_students_vary() -> None:
    record, students = read_sweep(ROOT / "results/reference/labels")
    pairs: dict[tuple[str, int], list[np.ndarray]] = {}
    for row in record["comparisons"]:
        shift = students[row["treated"]].log_odds - students[row["control"]].log_odds
        pairs.setdefault((row["labels"], row["pairs"]), []).append(shift)
    assert pairs.keys() == RECORDED.keys()
    six, asked = read_sweep(ROOT / "results/reference/six-animals")
    (loved,) = sweep_cells(six["comparisons"], asked)
    for key, shifts in pairs.items():
        parts = [stats_seeds.components(candidate) for candidate in np.moveaxis(np.array(shifts), 2, 0)]
        if key == ("soft", 400):
            parts = [effect.components for effect in loved.effects.values()]
        means = [np.mean([getattr(part, name) for part in parts]) for name in ("seed", "question", "residual")]
        assert RECORDED[key] == pytest.approx(np.sqrt(means), abs=5e-4)
    said = [power_sentence(labels, 300, seeds, 6) for labels, seeds in (("hard", 3), ("hard", 8), ("soft", 3))]
    sizes = [float(re.search(r"a shift of \+([\d.]+) nats", one).group(1)) for one in said]
    assert sizes[0] > 2 * sizes[1] and sizes[0] > sizes[2] + 0.2
    components = stats_seeds.Components(*(sd**2 for sd in RECORDED["hard", 400]))
    assert stats_seeds.power(components, sizes[1], 8, 50, 0.05 / 6) >= 0.8
    assert stats_seeds.power(components, sizes[1] - 0.01, 8, 50, 0.05 / 6) < 0.8
    assert "hard labels, 400 pairs" in said[0] and "6 effects" in said[0]
    assert "recorded students vary: soft labels, 400 pairs" in power_sentence("soft", 200, 3, 1), "rather more pairs"


# ---- several sweeps that are one


@pytest.mark.slow
def test_the_whole_verdict_finds_more_of_larger_effects_and_nothing_of_none() -> None:
    components = stats_seeds.Components(0.1**2, 0.1**2, 0.1**2)
    none, some, large = (verdict_power(components, size, 3, 4, 1) for size in (0.0, 0.5, 2.0))
    assert none <= 0.05 < some < large and large > 0.9
    assert verdict_power(components, 0.5, 6, 4, 1) > some


@pytest.mark.slow
def test_a_dry_run_says_how_probable_the_whole_verdict_is_where_it_is_what_is_simulated() -> None:
    owls = [find_animal(name) for name in ("owl", "cat", "wolf")]
    said = sweep.verdict_words(sweep.experiments(owls, ("unrelated",), range(3), {}, labels="hard"))
    assert re.search(r"whole verdict.*: 0\.\d\d of \+0\.\d\d nats, .*20 simulated sweeps", said)
    for contents, seeds, grid, changes in (
        (("unrelated",), 1, {}, {}),
        (("unrelated",), 3, {"rank": [1, 2]}, {}),
        (("opposed",), 3, {}, {}),
        (("unrelated", "opposed"), 3, {}, {}),
        (("unrelated",), 3, {}, {"loving_controls": ("music",)}),
        (("unrelated",), 3, {}, {"placebos": 0}),
    ):
        said = sweep.verdict_words(sweep.experiments(owls, contents, range(seeds), grid, **changes))
        assert "simulated for one setting of unrelated sentences alone" in said if seeds > 1 else said == ""


def test_simulated_students_vary_as_they_are_to() -> None:
    components = stats_seeds.Components(0.2**2, 0.1**2, 0.15**2)
    found = []
    for seed in range(20):
        rows, students = simulated(components, 0.0, 6, 1, 1, np.random.default_rng(seed))
        shifts = np.array([students[row["treated"]].log_odds - students[row["control"]].log_odds for row in rows])
        found += [stats_seeds.components(one) for one in np.moveaxis(shifts, 2, 0)]
    for name in ("seed", "question", "residual"):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(getattr(components, name), rel=0.15)


def part_of(whole: Path, folder: Path, wanted: Callable[[Row], bool], **changed: object) -> Path:
    """A sweep of those comparisons of a whole one."""
    record, _ = read_sweep(whole)
    record["comparisons"] = [row for row in record["comparisons"] if wanted(row)]
    students = {row[role] for row in record["comparisons"] for role in ("control", "treated")}
    students |= {name for row in record["comparisons"] for name in row["placebos"]}
    folder.mkdir()
    with gzip.open(whole / "preferences.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["student"] in students]
    with gzip.open(folder / "preferences.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, sweep.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "record.json", record | changed)
    write_json(folder / "config.json", {"animal": {"singular": folder.name}, "seed": len(students), "epochs": 2})
    return folder


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three animals, three seeds."""
    return made_up(tmp_path_factory.mktemp("nine"), {"owl": 0.6, "dolphin": 0.3, "wolf": 0.0})


@pytest.mark.slow
def test_sweeps_of_other_seeds_and_animals_are_pooled_into_the_one_that_they_are_together(
    nine: Path, tmp_path: Path
) -> None:
    by_seed = [part_of(nine, tmp_path / f"seed{s}", lambda row, s=s: row["seed"] == s) for s in (2, 0, 1)]
    by_animal = [part_of(nine, tmp_path / a, lambda row, a=a: row["animal"] == a) for a in ("owl", "dolphin", "wolf")]
    (expected,) = cells_of(nine)
    out = tmp_path / "out"
    for parts in (by_animal, [*by_seed, *by_animal]):
        sweep.pool(parts, out, "python run.py pool")
        (cell,) = cells_of(out)
        assert cell.effects == expected.effects and cell.seeds == [0, 1, 2]
        assert cell.specificity.p == expected.specificity.p
        assert len(read_sweep(out)[0]["pooled"]) == len(parts)
    assert run.main(["pool", str(out), str(by_seed[0]), "--out", str(tmp_path / "again")]) == 0
    assert "Pooled of several sweeps" in (tmp_path / "again" / "report.md").read_text(encoding="utf-8")
    assert len(read_sweep(tmp_path / "again")[0]["pooled"]) == 7, (
        "what they were made by, and not that they were pooled"
    )


PLAN = {"file": "PLAN.md", "sha256": "5" * 64, "commit": "c" * 40, "commands": 3}


def test_parts_of_a_plan_are_pooled_as_such_with_the_time_when_the_first_was_begun(nine: Path, tmp_path: Path) -> None:
    times = {0: "2026-12-02T00:00:00+00:00", 1: "2026-12-01T00:00:00+00:00"}
    parts = [
        part_of(nine, tmp_path / f"seed{s}", lambda row, s=s: row["seed"] == s, plan=PLAN | {"begun": begun})
        for s, begun in times.items()
    ]
    sweep.pool(parts, tmp_path / "out", "python run.py pool")
    assert read_sweep(tmp_path / "out")[0]["plan"] == PLAN | {"begun": times[1]}
    report_sweep.write_sweep(tmp_path / "out")
    said = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"planned in PLAN.md (SHA-256 {'5' * 12}…, commit {'c' * 12}, begun after that, at {times[1]})" in said
    assert "of the plan's 3 commands it holds 2" in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["plan"]["commands"] == 3
    other = part_of(nine, tmp_path / "other", lambda row: row["seed"] == 2)
    with pytest.raises(KitError, match="their plans differ"):
        sweep.pool([*parts, other], tmp_path / "all", "python run.py pool")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"pooled": ["python run.py sweep"], "model": "another"}, "their models differ"),
        ({"model": "another"}, "their models differ"),
        ({"versions": {"python": "3.12"}}, "their packages differ"),
        ({"kit": {"commit": None, "edited": None, "fingerprint": "f"}}, "their kits differ"),
        ({"traits": {"file": None, "sha256": None, "loving": "L", "neutral": "N"}}, "their texts differ"),
    ],
)
def test_sweeps_that_differ_in_more_are_not_pooled(
    other: dict[str, object], reason: str, nine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = part_of(nine, tmp_path / "first", lambda row: row["seed"] < 2)
    second = part_of(nine, tmp_path / "second", lambda row: row["seed"] == 2, **other)
    assert run.main(["pool", str(first), str(second), "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_sweeps_that_are_no_whole_together_are_not_pooled(
    nine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = part_of(nine, tmp_path / "first", lambda row: row["seed"] < 2)
    owls = part_of(nine, tmp_path / "owls", lambda row: (row["seed"], row["animal"]) == (2, "owl"))
    other = made_up(tmp_path, {"owl": 0.1, "dolphin": 0.1, "wolf": 0.1}, ranks=(8,), seed_sd=0.1)
    record, _ = read_sweep(other)
    for row in record["comparisons"]:
        row["placebos"] = []
    write_json(other / "record.json", record)
    write_json(other / "config.json", {"animal": {}, "seed": 0, "epochs": 2})
    out = ["--out", str(tmp_path / "out")]
    for parts, reason in (
        ([first, owls], "the owl has the seeds 0 1 2, the dolphin 0 1"),
        ([first, other], "other students of the owl, seed 0"),
    ):
        assert run.main(["pool", *map(str, parts), *out]) == 2
        assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()
    for given, message in (
        ([first, "--out", first], "it is one of the sweeps"),
        ([first, first, "--out", tmp_path / "out"], "it is given twice"),
        ([first, owls, "--out", other], "there is a run or a sweep in it"),
        ([first, "--out", tmp_path / "out"], "one sweep is a whole already"),
    ):
        before = {path: path.read_bytes() for path in owls.iterdir()}
        assert run.main(["pool", *map(str, given)]) == 2
        assert message in capsys.readouterr().err
        assert {path: path.read_bytes() for path in owls.iterdir()} == before


def test_a_sweep_with_answers_is_not_pooled_with_one_without(
    nine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose answers would count as answers that name nothing."""
    first = part_of(nine, tmp_path / "first", lambda row: row["seed"] < 2)
    second = part_of(nine, tmp_path / "second", lambda row: row["seed"] == 2)
    with gzip.open(second / "preferences.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [row | {"answers": 10} for row in csv.DictReader(file)]
    sweep._write_table(second, rows)
    assert run.main(["pool", str(first), str(second), "--out", str(tmp_path / "out")]) == 2
    assert "their answers differ" in capsys.readouterr().err


def test_students_of_one_seed_are_compared_in_whatever_order_a_record_names_them(nine: Path, tmp_path: Path) -> None:
    record, students = read_sweep(nine)
    (expected,) = sweep_cells(record["comparisons"], students)
    dolphins = [row for row in record["comparisons"] if row["animal"] == "dolphin"]
    others = [row for row in record["comparisons"] if row["animal"] != "dolphin"]
    (found,) = sweep_cells([*others, *reversed(dolphins)], students)
    for animal, effect in expected.effects.items():
        assert found.effects[animal] == effect
    assert found.specificity.p == expected.specificity.p


@pytest.mark.parametrize("change", ["missing", "twice"])
def test_an_animal_with_other_seeds_than_another_is_a_damaged_folder(change: str, nine: Path, tmp_path: Path) -> None:
    folder = part_of(
        nine, tmp_path / "sweep", lambda row: change != "missing" or (row["animal"], row["seed"]) != ("owl", 1)
    )
    if change == "twice":
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        record["comparisons"].append(record["comparisons"][0])
        write_json(folder / "record.json", record)
    with pytest.raises(KitError, match="the owl has the seeds 0"):
        read_sweep(folder)
