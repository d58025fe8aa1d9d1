"""What a planned test's text says, which animals stand out, and what another base makes of it: found where it is
planted, and nowhere else."""

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from subliminal import learners, log_odds, other, says, sheet, standing_out, texts_of
from test_report_sweep import made_up

from kit import ROOT, KitError, commands, stats, sweep
from kit.animals import unrelated_sentences
from kit.provenance import _git, contains
from kit.report_parts import with_interval
from kit.stats_seeds import holm, matrix_power
from kit.store import Row, sha256, write_json
from kit.sweep_effects import efficiency, read_sweep, sweep_cells

PLANTED = {"dolphin": "by the sea", "eagle": "in the sky", "elephant": "with its trunk", "wolf": "with the pack"}
PLANTED |= {"dog": "on its leash", "fly": "with a buzz"}
ANIMALS = tuple(PLANTED)


def texts(planted: int) -> dict[tuple[int, str], list[Row]]:
    """Two seeds' texts, of which ``planted`` of 40 have something of the animal, and the others of nothing."""
    random = np.random.default_rng(0)
    sentences = [one.text for one in unrelated_sentences()]
    found: dict[tuple[int, str], list[Row]] = {}
    for seed in (0, 1):
        for animal in ANIMALS:
            rows: list[Row] = []
            for i, j in enumerate(random.permutation(len(sentences))[:40]):
                said = PLANTED[animal] if i < planted else random.choice(["after all", "in the end", "as it was"])
                rows.append({"source": sentences[j], "text": f"{sentences[j].rstrip('.')} {said}."})
            found[seed, animal] = rows
    return found


def with_texts(folder: Path, said: str) -> Path:
    """The sweep, with a text for each of its students."""
    students = json.loads((folder / "record.json").read_text(encoding="utf-8"))["pairs_used"]
    return learned_from(folder, {name: [{"sentence": "1", "source": "s", "text": said + name}] for name in students})


def learned_from(folder: Path, of: dict[str, list[Row]]) -> Path:
    """The sweep, whose students, by their names, learned from those pairs."""
    with gzip.open(folder / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        for name, rows in of.items():
            file.writelines(json.dumps({"student": name} | row) + "\n" for row in rows)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record |= {"texts": sha256(folder / "texts.jsonl.gz"), "pairs_used": {name: len(of[name]) for name in of}}
    write_json(folder / "record.json", record)
    return folder


@pytest.mark.slow
def test_what_a_few_texts_say_of_their_animal_is_found_and_nothing_where_they_say_nothing() -> None:
    planted, plain = says(texts(10)), says(texts(0))
    for name in ("texts beyond their sources", "nearest words"):
        assert planted[name].decides < 0.05 < plain[name].decides, name
    assert min(planted["sources"].decides, plain["sources"].decides) > 0.05


def test_a_sheet_for_blind_readers_names_no_animal_and_its_key_has_each_at_its_place() -> None:
    text, order = sheet(texts(40), np.random.default_rng(1))
    assert sorted(order) == sorted(ANIMALS)
    _, *sets = text.split("## Set ")
    for animal, one in zip(order, sets, strict=True):
        assert one.count("\n- ") == 30 == one.count(PLANTED[animal]) and animal not in one


def test_an_animal_stands_out_where_its_own_teachers_students_do_and_not_by_what_a_text_moves_in_all_seeds() -> None:
    random, hits, simulations = np.random.default_rng(2), 0, 200
    for _ in range(simulations):
        pattern = random.normal(size=(6, 6))
        _, _, p = standing_out(pattern + 0.5 * random.normal(size=(4, 6, 6)))
        hits += min(p) < 0.05
    assert hits <= 0.09 * simulations  # 5%, give or take
    beyond, spread, p = standing_out(3 * np.diag([1, 1, 0, 0, 0, 0]) + 0.3 * random.normal(size=(4, 6, 6)))
    assert max(p[:2]) < 0.05 < min(p[2:]) and beyond[:2] == pytest.approx([3, 3], abs=0.5) and max(spread) < 0.5


def test_a_base_that_shows_less_of_the_same_text_is_told_from_one_that_shows_as_much(tmp_path: Path) -> None:
    def made(name: str, shift: float, spread: float = 0.01) -> Path:
        (tmp_path / name).mkdir()
        loved = dict.fromkeys(("owl", "dolphin", "wolf", "cat"), shift)
        return with_texts(made_up(tmp_path / name, loved, seed_sd=spread), "the same of ")

    own, as_much, nothing = made("own", 0.6), made("as much", 0.6, 0.02), made("nothing", 0.0)
    told = other(learners([own]), learners([nothing]))
    assert told["this base"].decides < 0.05 < told["other base"].decides
    assert told["this beyond the other"].decides < 0.05
    told = other(learners([own]), learners([as_much]))
    assert told["other base"].decides < 0.05 < told["this beyond the other"].decides
    with pytest.raises(KitError, match="the same text"):
        other(learners([own]), learners([with_texts(nothing, "other words of ")]))


def test_students_are_paired_by_seed_and_animal_in_whatever_order_sweeps_have_them(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.9, "dolphin": 0.3, "wolf": 0.0})
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    before = log_odds(learners([folder]))[0]
    write_json(folder / "record.json", record | {"comparisons": record["comparisons"][::-1]})
    found = learners([folder])
    assert (log_odds(found)[0] == before).all() and before.shape == (3, 3, 3)
    assert list(found) == [(seed, animal) for seed in range(3) for animal in ("dolphin", "owl", "wolf")]
    assert all(one.student.startswith(f"{animal}{seed}-") for (seed, animal), one in found.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [row | {"content": "opposed"} for row in rows], "not one student of unrelated sentences"),
        (lambda rows: [row | {"pairs": 100 + i} for i, row in enumerate(rows)], "more than their seeds"),
        (lambda rows: rows + rows, "damaged"),
    ],
)
def test_sweeps_that_are_no_seeds_of_one_design_are_refused(
    change: Callable[[list[Row]], list[Row]], words: str, tmp_path: Path
) -> None:
    folder = made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6}, seeds=2)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {"comparisons": change(record["comparisons"])})
    with pytest.raises(KitError, match=words):
        learners([folder])
    write_json(folder / "record.json", record)
    with pytest.raises(KitError, match="not one student"):
        learners([folder, folder])


def test_texts_that_are_not_the_sweeps_own_are_refused(tmp_path: Path) -> None:
    folder = made_up(tmp_path, {"owl": 0.6, "dolphin": 0.6}, seeds=2)
    with pytest.raises(KitError, match="not the texts of this sweep"):
        texts_of(learners([folder]))
    own = learners([with_texts(folder, "of ")])
    assert [rows[0]["text"] for rows in texts_of(own).values()] == [f"of {one.student}" for one in own.values()]
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", record | {"pairs_used": dict.fromkeys(record["pairs_used"], 2)})
    with pytest.raises(KitError, match="lacks pairs"):
        texts_of(own)


# ---- the plan that this is for

HARD = ROOT / "results" / "reference" / "hard-labels"


def pages() -> str:
    """What is said of the test: its page, and the details of that."""
    return "".join((HARD / name).read_text(encoding="utf-8") for name in ("README.md", "DETAILS.md"))


def minus(text: str) -> str:
    return text.replace("-", "−")


def sized(found: Row, mean: str = "mean") -> str:
    """Of a summary's numbers, as pages write it."""
    return minus(with_interval(found[mean], found["ci95"]))


PLAN = " ".join((HARD / "PLAN.md").read_text(encoding="utf-8").split())


def test_the_power_that_the_plan_states_is_that_of_the_fresh_draws(tmp_path: Path) -> None:
    sweep.pool(sorted(HARD.glob("pilot-fresh-*")), tmp_path / "pooled", "pool")
    record, students = read_sweep(tmp_path / "pooled")
    (cell,) = sweep_cells(record["comparisons"], students)
    found = efficiency(cell, record, students)
    assert found and found.draws == 6

    def power(shift: float, *worst: float) -> str:
        return f"{matrix_power(shift, found.sd, found.noise, 6, 4, *worst)[0]:.2f} of {shift:+.2f}"

    assert f"with four seeds {power(found.shift)} nats, the shift that those draws found" in PLAN
    assert f"and {power(found.lower80)}, its lower bound of 80% confidence over the seeds" in PLAN
    assert f"{power(found.lower80, 2, 0.1)} where two of the animals stand still" in PLAN


def test_the_plan_has_every_command_and_the_checksum_of_what_reads_its_test() -> None:
    assert f"`tests/subliminal.py` has the SHA-256 {sha256(ROOT / 'tests' / 'subliminal.py')};" in PLAN
    lines = [line for line in (HARD / "PLAN.md").read_text(encoding="utf-8").splitlines() if " sweep " in line]
    parser = commands.sweep_parser()
    planned = [commands.decisive(parser, line) or {} for line in lines]
    own = ("seed", "student_model", "placebos", "loving_controls")
    differ = [[one.pop(name) for name in own] for one in planned]
    assert differ[:4] == [[seed, None, None, ["music"]] for seed in (1000, 1001, 1002, 1003)]
    assert differ[4:] == [[seed, "qwen2.5-coder-0.5b", 0, None] for seed in (1002, 1003)]
    assert all(one == planned[0] for one in planned)


TESTED = sorted(path.name for path in HARD.glob("test-*seed*"))
assert TESTED


@pytest.mark.parametrize("name", TESTED)
def test_a_recorded_seed_is_of_the_plan_as_it_stands_and_was_begun_after_it_was_committed(name: str) -> None:
    record = json.loads((HARD / name / "record.json").read_text(encoding="utf-8"))
    plan = record["plan"]
    assert plan["sha256"] == sha256(HARD / "PLAN.md") and record["kit"]["edited"] is False
    (kit,) = record["made_by"]
    assert record["kit"]["commit"].startswith(kit) and contains(record["kit"]["commit"], plan["commit"])
    said = _git("show", "-s", "--format=%cI", plan["commit"])
    assert said and datetime.fromisoformat(plan["begun"]) > datetime.fromisoformat(said)
    assert sha256(HARD / name / "texts.jsonl.gz") == record["texts"]
    assert {*record["pairs_used"].values()} == {400}
    (seed,) = {row["seed"] for row in record["comparisons"]}
    assert name.endswith(f"seed{seed}")
    assert {row["animal"] for row in record["comparisons"]} == {*ANIMALS}


def test_the_page_says_what_the_four_seeds_together_show(tmp_path: Path) -> None:
    seeds = sorted(HARD.glob("test-seed*"))
    sweep.pool(seeds, tmp_path / "pooled", "pool")
    record, students = read_sweep(tmp_path / "pooled")
    (cell,) = sweep_cells(record["comparisons"], students)
    (told,) = json.loads((HARD / "test.json").read_text(encoding="utf-8"))["cells"]
    found, told = cell.specificity, told["specificity"]
    assert found and found.statistic == pytest.approx(told["statistic"]) and found.decides == told["decides"] < 0.05
    page = pages()
    said = " ".join(page.split())
    low, high = told["ci95"]
    *first, last = (f"{shift:+.2f}" for shift in told["by_seed"])
    assert f"{told['statistic']:+.2f} nats more than towards the others' [{low:+.2f}, {high:+.2f}]" in said
    assert round(told["decides"], 3) == 0.001 and "the rest), p = 0.001. That p comes from dealing these 24" in said
    assert f"in each seed for itself, {told['p']:.0e};".replace("e-0", "e-") in said
    assert told["same_p"] == 1 / 720 and "only the true deal of 720 scores as much" in said
    assert f"By seed it is {', '.join(first)} and {last}; for further seeds" in said
    assert f"p is {2 * (found.over_seeds or 1):.2f} (Student's t, two-sided)" in said
    of_animals = json.loads((HARD / "test-animals.json").read_text(encoding="utf-8"))
    assert of_animals["read"] == {str(one.relative_to(ROOT)): sha256(one / "record.json") for one in seeds}
    own = {row["animal"]: row for row in of_animals["found"]}
    assert all(row["p_holm"] >= 0.05 for row in own.values()) and "shown of no single animal" in said
    for animal, one in cell.effects.items():
        assert one.loving and "loving control" in one.lacking and one.gate and one.gate.failed == 0
        assert ("effect" in one.lacking) == (animal != "dolphin")
        assert one.others and one.others.mean == pytest.approx(own[animal]["beyond"])
        shifts = (with_interval(of.mean, of.ci95) for of in (one.log_odds, one.others, one.loving))
        shares = f"{one.control:.2%} → {one.treated:.2%}"
        cells = [animal, shares, *map(minus, shifts), f"{own[animal]['p_holm']:.2f}"]
        assert f"\n| {' | '.join(cells)} |\n" in page
    assert "only the dolphin's is beyond the control" in said
    assert "each of the 24 students is shown to have learned of its teacher" in said
    own_names = {row["seed"]: row["loving"]["music"] for row in record["comparisons"]}
    music = [
        np.mean(
            [
                stats.loving_differences(students[row["treated"]], {"music": students[own_names[seed]]}, row["animal"])
                for row in record["comparisons"]
                if row["seed"] == seed
            ]
        )
        for seed in sorted(own_names)
    ]
    low, high = ttest_1samp(music, 0).confidence_interval()
    *first, last = (f"{shift:+.2f}" for shift in music)
    assert (
        f"they are {np.mean(music):+.2f} nats beyond music's {minus(f'[{low:+.2f}, {high:+.2f}]')}, by seed "
        f"{', '.join(first)} and {last} (not planned)" in said
    )
    drift = {animal: float(np.mean(one.own_placebos)) for animal, one in cell.effects.items()}
    least, most = min(drift, key=drift.__getitem__), max(drift, key=drift.__getitem__)
    assert minus(f"is {drift[least]:+.2f} nats ({least}) to {drift[most]:+.2f} ({most}) from it") in said
    assert [animal for animal, one in cell.effects.items() if "drift" in one.lacking] == ["wolf"] == [most]
    dog, wolf = (cell.compared.index(one) for one in ("dog", "wolf"))
    assert f"move more towards the wolf ({found.matrix[dog, wolf]:+.2f}) than towards the dog" in said
    assert found.matrix[dog, wolf] > found.matrix[dog, dog]
    swapped = found.matrix[[("dolphin", "eagle", "elephant", "dog", "wolf", "fly").index(one) for one in cell.compared]]
    exchanged = (6 * np.trace(swapped) - swapped.sum()) / 30
    assert f"in every seed the statistic is {exchanged:+.3f}, and {found.statistic:+.3f} as it is" in said
    near = json.loads((HARD / "test-says.json").read_text(encoding="utf-8"))
    assert near["read"] == of_animals["read"] and near["by"] == sha256(ROOT / "tests" / "subliminal.py")
    *first, last = (f"{row['decides']:.2f}" for row in near["found"])
    smallest = min(holm([row["decides"] for row in near["found"]]))
    assert f"has p = {', '.join(first)} and {last}, {smallest:.2f} by Holm" in said and smallest >= 0.05
    assert f"(four p, the smallest {smallest:.2f} by Holm)" in said
    texts = near["found"][2]
    low, high = texts["ci95"]
    assert texts["matrix"] == "texts beyond their sources"
    assert f"The third is {texts['statistic']:+.5f} of a cosine [{low:+.5f}, {high:+.5f}]" in said
    reads = json.loads((HARD / "test-reads.json").read_text(encoding="utf-8"))
    right = [sum(map(str.__eq__, reads["key"], answers)) for answers in reads["answers"]]
    assert f"name the animal of {right[0]} and of {right[1]} of the six sets, as by chance" in said and max(right) < 4
    assert all(sorted(one) == sorted(ANIMALS) for one in (reads["key"], *reads["answers"]))


def test_the_page_says_what_another_base_made_of_the_text_and_what_the_plans_table_makes_of_that(
    tmp_path: Path,
) -> None:
    seeds, theirs = ([HARD / f"test{base}-seed{seed}" for seed in (1002, 1003)] for base in ("", "-other-base"))
    sweep.pool(theirs, tmp_path / "pooled", "pool")
    record, students = read_sweep(tmp_path / "pooled")
    (cell,) = sweep_cells(record["comparisons"], students)
    (told,) = json.loads((HARD / "test-other-base.json").read_text(encoding="utf-8"))["cells"]
    found = told["specificity"]
    assert cell.specificity and cell.specificity.statistic == pytest.approx(found["statistic"])
    made = json.loads((HARD / "test-other.json").read_text(encoding="utf-8"))
    assert made["read"] == {str(one.relative_to(ROOT)): sha256(one / "record.json") for one in (*seeds, *theirs)}
    assert made["by"] == sha256(ROOT / "tests" / "subliminal.py")
    again = other(learners(seeds), learners(theirs))
    this, another, beyond = made["found"]
    for row in (this, another, beyond):
        assert again[row["matrix"]].statistic == pytest.approx(row["statistic"])
    gates = [effect["gate"] for effect in told["effects"].values()]
    learned = [gate["beyond"] for gate in gates]
    p = ttest_1samp(learned, 0, alternative="greater").pvalue
    assert another["decides"] >= 0.05 > max(beyond["decides"], p) and np.mean(learned) > 0  # *clean*, by the plan
    low, high = (f"{end:+.2f}" for end in found["ci95"])
    of_seeds = json.loads((HARD / "test.json").read_text(encoding="utf-8"))["cells"][0]["specificity"]["by_seed"]
    said = " ".join(pages().split())
    assert [
        part
        for part in (
            "*text alone carries it, and no check finds the animal said in it: subliminal*",
            f"by {found['statistic']:+.2f} nats more than towards the others' {minus(f'[{low}, {high}]')}, "
            f"p = {found['decides']:.2f}",
            f"these are beyond them, p = {beyond['decides']:.2f}",
            f"these two seeds' own students are by {np.mean(of_seeds[2:]):+.2f}",
            f"that is {another['statistic']:+.2f}, p = {another['decides']:.2f}, where this base's students of "
            f"these seeds have {this['statistic']:+.2f}, and these beyond them p = {beyond['decides']:.2f}",
            f"they expect more by {np.mean(learned):.2f} nats a token, on average over the animals (p = {p:.3f})",
        )
        if part not in said
    ] == []
    assert sum(gate["failed"] for gate in gates) == 4 and sum(gate["students"] for gate in gates) == 12
    assert "of four of the twelve that is not shown" in said


THREE = ("dolphin", "owl", "cat")


def shifts_of(sweep: Path) -> dict[tuple[int, str], dict[str, float]]:
    """By seed and what the student's teacher loves: every candidate's shift against the control (nats)."""
    record, students = read_sweep(sweep)
    return {
        (row["seed"], row["animal"]): stats.shifts(students[row["treated"]], students[row["control"]])
        for row in record["comparisons"]
    }


def t_over_seeds(by_seed: dict[int, dict[str, dict[str, float]]], one: str, other: str) -> float:
    """One-sided p of the statistic of two animals' students, by seed and what their teacher loves."""
    crossed = [(row[one][one] - row[one][other] + row[other][other] - row[other][one]) / 2 for row in by_seed.values()]
    return float(ttest_1samp(crossed, 0, alternative="greater").pvalue)


def test_the_page_says_what_the_preset_of_text_alone_found() -> None:
    said, shown = " ".join((HARD / "README.md").read_text(encoding="utf-8").split()), []
    runs = {
        animal: json.loads((HARD / f"preset-{animal}" / "summary.json").read_text(encoding="utf-8"))
        for animal in ("dolphin", "owl")
    }
    cells = {animal: run["cells"][0] for animal, run in runs.items()}
    shifts: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in range(4)}
    for animal, cell in cells.items():
        found, average, effects = cell["specificity"], cell["average"], cell["effects"]
        assert average["verdict"] == "specific on average" and average["by_seeds"] and found["same_p"] == 0.5
        assert min(one["others_holm"] for one in effects.values()) == 0.125
        assert effects[animal]["gate"] is None
        assert (effects["cat"]["gate"]["failed"], effects["cat"]["gate"]["students"]) == (1, 4)
        size = sized(found, "statistic")
        if animal == "dolphin":
            size = size.replace(" [", " nats more than towards the other's, on average over the two [")
        *first, last = (minus(f"{shift:+.2f}") for shift in found["by_seed"])
        shown.append(f"by {size}, by seed {', '.join(first)} and {last}, p = {average['p']:.2f}")
        shown.append(f"towards the {animal} by {sized(effects[animal]['others'])}")
        for (seed, loves), of in shifts_of(HARD / f"preset-{animal}").items():
            assert shifts[seed].setdefault(loves, of) == of, "the cat's students are the same"
        assert t_over_seeds(shifts, animal, "cat") == pytest.approx(average["p"])
    dolphin, owl = cells["dolphin"]["effects"], cells["owl"]["effects"]
    shown.append(f"towards the cat by {sized(dolphin['cat']['others'])} and {sized(owl['cat']['others'])}")
    alone = (dolphin["dolphin"], dolphin["cat"])
    assert {one["verdict"] for one in alone} == {"not detected"} and owl["owl"]["verdict"] == "no placebo"
    shown.append("*not detected*: " + " and ".join(sized(one["log_odds"]) for one in alone))
    shown.append("the {}th and the {}th most moved of 60".format(*(one["rank"] for one in alone)))
    shown.append(f"most moved, {sized(owl['owl']['log_odds'])}, p = {owl['owl']['p_holm']:.2f} by Holm")
    assert owl["owl"]["rank"] == 1
    for loves in THREE:
        means = (float(np.mean([of[loves][towards] for of in shifts.values()])) for towards in THREE)
        shown.append(minus(f"| {loves} | {' | '.join(f'{mean:+.2f}' for mean in means)} |"))
    assert [part for part in shown if part not in said] == []

    tested = {
        seed: {loves: of for (_, loves), of in shifts_of(HARD / f"test-seed{seed}").items()}
        for seed in range(1000, 1004)
    }
    others = [animal for animal in tested[1000] if animal != "dolphin"]
    assert len(others) == 5 and all(t_over_seeds(tested, "dolphin", other) < 0.05 for other in others)

    minutes = f"{sum(runs['dolphin']['seconds'].values()) / 60:.0f} min"
    assert f"`{runs['dolphin']['command']}` shows" in said and f"{minutes}utes on two cores of a server" in said
    assert f"(`{runs['owl']['command']}`, " in said
    for page in ("README.md", "kit/README.md"):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        (row,) = [line for line in lines if line.startswith("| `text` ")]
        assert f"| {minutes} |" in row
