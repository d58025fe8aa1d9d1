"""The documentation: its commands, options and links exist, and every figure that it quotes is the recorded one."""

import ast
import inspect
import json
import math
import re
import shlex
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

import run
from kit import REFERENCE, ROOT
from kit.animals import find_animal
from kit.defences import BESIDE, UNDEFENDED
from kit.demo import RECORDED_RUNS
from kit.experiment import PRESETS, StudentSettings, experiment
from kit.experiment_folder import read_run, summarise
from kit.models import PARAPHRASER_ADAPTER
from kit.models_prepare import MOST_APART
from kit.paraphraser import PILOTS
from kit.report_parts import p_value, verdict_sentence
from kit.report_sweep import summarise_sweep
from kit.stats import Placement, above_zero, lacks, shifts
from kit.stats_calibration import read as read_calibration
from kit.stats_seeds import holm, share_interval, two_sided
from kit.sweep_effects import read_sweep, sweep_cells, sweep_power

RECORDED = [str(page.relative_to(ROOT)) for page in sorted(REFERENCE.rglob("*.md")) if page.name != "report.md"]
NAMES = ("README.md", "kit/README.md", "kit/lesson.md", "tests/README.md", "results/README.md", *RECORDED)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
# What quotes the records, as one page; of the hard labels see test_recomputed.py, of what was read test_judged.py.
OF_RECORDS = [name for name in NAMES if name.startswith("results/") and name.endswith("/README.md")]
PAGES["results"] = "\n".join(PAGES[name] for name in OF_RECORDS if "hard-labels" not in name and "faithful" not in name)
# Options of other programs, in commands that start those.
OTHERS = {
    *("--force-reinstall", "--no-cache-dir", "--nproc-per-node"),  # pip, torchrun
    *("--top-k", "--min-p", "--generation-config"),  # llama-server, vLLM
    *("--dist", "--no-loadscope-reorder", "--collect-only"),  # pytest
    *("--after", "--chosen", "--readings", "--of"),  # tests/faithful.py, tests/subliminal.py
}


def code(text: str) -> list[str]:
    """What a page has as code: the lines of its fences, those that end in a backslash joined, and its code spans."""
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [" ".join(one.split()) for one in (*lines, *spans)]


@cache
def help_of(command: str) -> str:
    """The --help of a command; of the experiment where it is empty."""
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        run.main([command, "--help"] if command else ["--help"])
    return said.getvalue()


def options(command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(command)))


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Every command of run.py in a page, with the words after it."""
    found = []
    for line in code(text):
        _, mark, rest = line.partition("run.py ")
        words = shlex.split(rest.partition(" #")[0]) if mark else []
        if words:
            named = words[0] in run.COMMANDS
            found.append((words[0] if named else "", words[named:]))
    return found


@pytest.mark.parametrize("page", NAMES)
def test_every_command_in_a_readme_exists_and_has_the_options_that_it_is_given(page: str) -> None:
    for command, words in commands_in(PAGES[page]):
        assert command or words[0].startswith("--"), f"{page}: run.py {' '.join(words)}"
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options(command), f"{page}: {command} {given - options(command)}"


@pytest.mark.parametrize("page", NAMES)
def test_every_option_in_a_readme_exists(page: str) -> None:
    known = OTHERS.union(*(options(command) for command in ("", *run.COMMANDS)))
    named = {option for line in code(PAGES[page]) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)}
    assert named <= known, named - known


def test_every_command_and_every_option_of_the_experiment_is_documented() -> None:
    assert [name for name in run.COMMANDS if f"`{name}`" not in PAGES["README.md"]] == []
    everything = " ".join(line for text in PAGES.values() for line in code(text))
    assert [option for option in options("") if option not in everything and option != "--help"] == []


def anchors(text: str) -> set[str]:
    """GitHub's names of a page's headings, and the page's own."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = re.findall(r'<a id="([\w-]+)">', text)
    return {*named, *(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)}


@pytest.mark.parametrize("page", NAMES)
def test_every_link_in_a_readme_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_readme_leads_and_leaves_the_rest_to_others() -> None:
    assert len(PAGES["README.md"].encode()) <= 12_288


def test_what_the_readme_says_to_change_stands_where_it_says() -> None:
    table = PAGES["README.md"].partition("## Change one thing")[2].partition("\n## ")[0]
    named = re.findall(r"`(kit/\w+\.py)`: ((?:`\w+`(?:, )?)+)", table)
    assert len(named) >= 8
    for file, names in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", text, re.MULTILINE), f"{file}: {name}"
    assert all((ROOT / file).exists() for file in re.findall(r"`(data/[\w.]+)`", table))


def test_the_python_of_the_readmes_imports_what_there_is() -> None:
    for text in PAGES.values():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            compile(block, "README", "exec")
            names: dict[str, Any] = {}
            exec("\n".join(line for line in block.splitlines() if line.startswith(("from ", "import "))), names)
            for node in ast.walk(ast.parse(block)):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and inspect.isfunction(called := names.get(node.func.id))
                ):
                    inspect.signature(called).bind(
                        *node.args, **{one.arg: one.value for one in node.keywords if one.arg}
                    )


# ---- figures

Record = dict[str, Any]
SIX = "six-animals"
OPPOSED = "opposed"
LABELS = "labels"
PAIRS = "opposed/unrelated-200-pairs"
RANKS = "ranks"
OWL, NF4 = "default-run/laptop", "nf4"
QUICK = "default-run/quick"
INSPECTED = "inspection"
TUNED = "paraphraser/laptop"
FAITHFUL = "paraphraser/quick"
DEFENCES = "defences"


def flat(text: str) -> str:
    return " ".join(text.replace("**", "").replace("−", "-").split())


@cache
def recorded(folder: str, file: str = "summary.json") -> Any:
    return json.loads((REFERENCE / folder / file).read_text(encoding="utf-8"))


def cell(folder: str, **settings: object) -> Record:
    """The one cell of a recorded sweep with these settings."""
    (found,) = [one for one in recorded(folder)["cells"] if settings.items() <= one["settings"].items()]
    return dict(found)


def effect_in(folder: str, animal: str = "owl", **settings: object) -> Record:
    return dict(cell(folder, **settings)["effects"][animal])


def between(interval: list[float], digits: int = 2) -> str:
    return f"[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def estimate(one: Record) -> str:
    return f"{one['mean']:+.2f} {between(one['ci95'])}"


def rates(effect: Record) -> str:
    return f"{100 * effect['control']:.2f} → {100 * effect['treated']:.2f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def short_p(value: float) -> str:
    return p_value(value).replace("e-0", "e-")


def digits(value: float) -> str:
    """A drift or a p as the tables have it: two digits, or three where the first of them are zeros."""
    return short_p(value).removeprefix("p = ") if value < 0.001 else f"{value:.2f}" if value >= 0.02 else f"{value:.3f}"


def of_sweeps() -> list[str]:
    """Every figure of the recorded sweeps that both pages quote."""
    found = []
    for folder in (SIX, OPPOSED):
        for animal, one in cell(folder)["effects"].items():
            last = [f"{one['rank']} of {one['candidates']}"] if folder == OPPOSED else [estimate(one["others"])]
            sizes = (
                rates(one),
                estimate(one["exact_pp"]),
                estimate(one["log_odds"]),
                f"{one['log_odds']['seed_sd']:.2f}",
            )
            found.append(row(animal, *sizes, f"{one['drift']['rms']:.2f}", *last, one["verdict"]))
    for value in (1, 2, 4, 8, 32, 128):
        one = effect_in(RANKS, rank=value)
        assert one["rank"] == 1
        sizes = (estimate(one["exact_pp"]), estimate(one["log_odds"]), f"{one['log_odds']['seed_sd']:.2f}")
        found.append(row(value, rates(one), *sizes))
    for labels in ("soft", "hard"):
        for pairs in (25, 100, 400):
            one = effect_in(LABELS, pairs=pairs, labels=labels)
            verdict = one["verdict"] + (f" ({', '.join(one['lacking'])})" if one["lacking"] else "")
            tests = (
                digits(one["p_holm"]),
                digits(one["drift"]["rms"]),
                f"{one['rank']} of {one['candidates']}",
                verdict,
            )
            found.append(row(pairs, labels, rates(one), estimate(one["log_odds"]), *tests))
    return found


def of_another_base() -> Record:
    return recorded("hard-labels", "test-other-base.json")["cells"][0]["specificity"]


def of_the_front_page() -> list[str]:
    found = []
    for animal, one in cell(SIX)["effects"].items():
        assert (one["rank"], one["candidates"], one["verdict"]) == (1, 60, "transmitted")
        shares = (f"{100 * one['control']:.2f}%", f"{100 * one['treated']:.2f}%")
        found.append(row(animal, *shares, estimate(one["exact_pp"]), estimate(one["log_odds"])))
    hard = [one["settings"]["pairs"] for one in recorded(LABELS)["cells"] if one["settings"]["labels"] == "hard"]
    assert not any(effect_in(LABELS, pairs=n, labels="hard")["verdict"] == "transmitted" for n in hard)
    test = recorded("hard-labels", "test.json")["cells"][0]
    whole = test["specificity"]
    part = recorded("hard-labels/test-faithful", "faithful.json")["found"][0]
    return [
        *found,
        "Each shift is the largest of 60 animals': *transmitted*",
        f"by {whole['statistic']:+.2f} nats more than towards the others' {between(whole['ci95'])}, "
        f"{short_p(whole['decides'])}",
        f"call faithful: {part['statistic']:+.2f} {between(part['ci95'])}, {short_p(part['decides'])}",
        f"the whole text is not found to do it (p = {of_another_base()['decides']:.1f})",
        "Of the owl none was detected",
        verdict_sentence("owl", "unrelated", recorded(QUICK)["effects"]["unrelated"]),
        f"the filters keep {kept_share('unrelated')}, on opposed sentences {kept_share('opposed')}",
    ]


def of_nf4() -> list[str]:
    one = recorded(NF4)["effects"]["unrelated"]
    return [f"(one seed: {one['exact_pp']:+.2f} pp {between(one['exact_ci95'])})"]


def kept_share(content: str) -> str:
    """Of the paraphrases in the recorded run of the owl, how many passed every filter."""
    filters = [steps for name, steps in recorded(OWL)["filters"].items() if name.endswith(content)]
    return (
        f"{sum(of[-1]['entered'] - of[-1]['rejected'] for of in filters) / sum(of[0]['entered'] for of in filters):.0%}"
    )


def of_filters() -> list[str]:
    unrelated, opposed = kept_share("unrelated"), kept_share("opposed")
    return [
        f"the filters keep {unrelated} of what the teachers write on unrelated sentences and {opposed} on opposed ones"
    ]


def of_paraphraser() -> list[str]:
    made, one = (
        json.loads((PARAPHRASER_ADAPTER / f"{name}.json").read_text(encoding="utf-8")) for name in ("tuning", "figures")
    )

    def plus_minus(left: list[float]) -> str:
        return f"{left[0]:+.3f} ± {left[1]:.3f}"

    def line(name: str, prompt: str, temperature: str) -> str:
        of = one[name][temperature]
        kept = (f"{of['kept'][who] / one['samples']:.1%}" for who in ("neutral", *PILOTS))
        neutral = [plus_minus(of["trait"][who]["neutral"]) for who in PILOTS]
        return row(
            *(name, prompt, temperature, ", ".join(kept), ", ".join(neutral)),
            plus_minus(of["trait"][PILOTS[0]]["other"]),
        )

    rounds = [f"{each['kept'] / each['samples']:.1%}" for each in made["rounds"]]
    most = sorted(one["animals"], key=lambda name: -one["animals"][name]["untouched"])[:5]
    apart = sum(abs(shares["tuned"] - shares["untouched"]) for shares in one["animals"].values()) / 2
    moved = (f"{name} {one['animals'][name]['untouched']:.1%} → {one['animals'][name]['tuned']:.1%}" for name in most)
    plain = [one[name]["nats_per_token"] for name in ("untouched", "tuned")]
    return [
        line("untouched", "with the worked example", "0.7"),
        line("tuned", "without", "0.7"),
        line("tuned", "without", "1.0"),
        f"the filters kept {', '.join(rounds[:-1])} and {rounds[-1]} of {made['rounds'][0]['samples']:,} samples",
        f"({', '.join(moved)}; in all {apart:.0%} of the probability is elsewhere)",
        f"{one['samples']:,} samples of {one['sentences']} sentences",
        f"from {plain[0]:.2f} to {plain[1]:.2f} nats a token",
        f"{shift_of(TUNED, 'unrelated')}, {recorded(TUNED)['effects']['unrelated']['verdict']} (the [",
        f": {effect_in(SIX, 'penguin')['log_odds']['mean']:+.2f}); the classifier was then of",
        f"{shift_of(FAITHFUL, 'unrelated')}, {recorded(FAITHFUL)['effects']['unrelated']['rank']}th of "
        f"{recorded(FAITHFUL)['effects']['unrelated']['candidates']}",
    ]


def of_tries() -> list[str]:
    shown = recorded("../../tests", "proofs.json")["tries"]["shown"]
    rows = re.findall(r"(\w+), (\w+) filters: ([\d, ]+ of \d+) sentences.*?, ([\d.]+) a second", shown)
    names = {"embedded": "untouched", "paraphraser": "tuned"}
    assert len(rows) == 4
    return [row(names[model], filters, given, pace) for model, filters, given, pace in rows]


def shift_of(folder: str, content: str) -> str:
    effect = recorded(folder)["effects"][content]
    return f"{effect['log_odds']:+.2f} nats {between(effect['log_odds_ci95'])}"


def of_power() -> list[str]:
    record, students = read_sweep(REFERENCE / LABELS)
    cells = sweep_cells(record["comparisons"], students)
    powers = zip(cells, sweep_power(cells, [], 0.8), strict=True)
    (last,) = [power for one, power in powers if {"pairs": 400, "labels": "hard"}.items() <= one.settings.items()]
    return [f"{last.own_seeds} seeds would find an effect of that size, the owl's own or not, with probability 0.8"]


def of_specificity() -> list[str]:
    six, opposed = cell(SIX), cell(OPPOSED)
    animals = list(six["effects"])
    matrix = np.array(six["specificity"]["matrix"])
    null = [end for one in six["effects"].values() for end in one["placebo"]["null95"]]
    (own,) = {one["others_holm"] for one in six["effects"].values()}
    assert own == pytest.approx(six["effects"]["owl"]["others_floor"])
    assert all(one["rank"] == 1 and one["placebo"]["at_least"] == 0 for one in six["effects"].values())
    assert all(matrix[animals.index("cat")][animals.index(other)] < 0 for other in animals if other != "cat")

    def gains(teacher: str, other: str) -> str:
        return f"{matrix[animals.index(teacher), animals.index(other)]:+.2f}"

    found = opposed["specificity"]
    assert found["rows_on_diagonal"] == 9 and six["specificity"]["rows_on_diagonal"] == 18
    return [
        f"95% of them lie between {min(null):+.2f} and {max(null):+.2f} nats",
        f"Specificity: {six['specificity']['statistic']:+.2f} nats, {short_p(six['specificity']['p'])}",
        f"dealt alike in every seed {short_p(six['specificity']['same_p'])}, the smallest of 720",
        f"students: p = {own:.2f} (Holm; the smallest that six animals and three seeds can give)",
        f"the eagle's student gains owl ({gains('eagle', 'owl')}), the dolphin's penguin "
        f"({gains('dolphin', 'penguin')}) and the penguin's dolphin ({gains('penguin', 'dolphin')})",
        f"Specificity: {found['statistic']:+.2f} nats against {found['drift']['rms']:.2f} in three sets of placebo "
        f"students on the same sentences, {short_p(found['p'])}",
    ]


def of_what_was_found() -> list[str]:
    """The first section, and the sentences that say the same of the sweeps below it."""
    six, opposed, shifts = cell(SIX)["effects"], cell(OPPOSED)["effects"], recorded(RANKS)["cells"]
    drifts, means = [one["drift"]["rms"] for one in six.values()], [one["log_odds"]["mean"] for one in six.values()]
    ranks = [one["effects"]["owl"]["log_odds"]["mean"] for one in shifts]
    hard, soft = ([effect_in(LABELS, pairs=n, labels=name) for n in (25, 100, 400)] for name in ("hard", "soft"))
    few = effect_in(PAIRS)["log_odds"]
    last = hard[-1]
    assert last["lacking"] == ["effect"] and last["placebo"]["at_least"] == 0 < last["log_odds"]["ci95"][0]
    ratios = [a["log_odds"]["mean"] / b["log_odds"]["mean"] for a, b in zip(soft, hard, strict=True)]
    spread = [[f"{one['log_odds']['seed_sd']:.3f}" for one in of] for of in (soft, hard)]
    seconds = recorded(OPPOSED)["seconds"]
    owl, whole = (
        estimate(opposed["owl"]["log_odds"]),
        recorded(DEFENCES, "defences.json")["defences"][UNDEFENDED]["left"],
    )
    undefended = estimate(whole)
    assert 0.6 < opposed["owl"]["log_odds"]["mean"] / whole["mean"] < 0.7, "two thirds"
    moved = [f"{one['log_odds']['mean']:+.2f}" for one in soft]
    return [
        f"move by {min(drifts):.2f} to {max(drifts):.2f} nats where these move by {min(means):.2f} to {max(means):.2f}",
        f"the shift is {owl.replace(' [', ' nats [')} for the owl, {estimate(opposed['dolphin']['log_odds'])} for the "
        f"dolphin, {estimate(opposed['penguin']['log_odds'])} for the penguin; each transmitted",
        f"with as many unrelated ones the owl's is {undefended}",
        f"(owl, 400: {estimate(last['log_odds'])}, p = {last['p_holm']:.2f} after correction), where soft ones give "
        f"{moved[0]}, {moved[1]} and {moved[2]}",
        f"from 1 to 128 (owl: {min(ranks):+.2f} to {max(ranks):+.2f})",
        f"moves by {estimate(few).replace(' [', ' nats [')}, on two with it",
        f"by {undefended}. Opposed ones, made on two with it, give {owl}: two thirds of that",
        f"the distance to the {moved[2]} of the [",
        f"(the three took {seconds['paraphrases'] / 60:.0f} minutes of the sweep's {sum(seconds.values()) / 60:.0f})",
        f"carry {ratios[0]:.1f}, {ratios[1]:.1f} and {ratios[2]:.1f} times the shift of hard ones",
        f"vary by {spread[0][0]}, {spread[0][1]} and {spread[0][2]} nats (standard deviation), hard ones by "
        f"{spread[1][0]}, {spread[1][1]} and {spread[1][2]}",
    ]


def of_runs() -> list[str]:
    found = []
    for folder, content in product((OWL, QUICK), ("unrelated", "opposed")):
        one, conditions = recorded(folder)["effects"][content], recorded(folder)["conditions"]
        control, treated = (conditions[f"{role}-{content}"]["exact"]["rate"] for role in ("control", "treated"))
        low, high = one["sampled_ci95"]
        found.append(
            row(
                content,
                f"{100 * control:.2f} → {100 * treated:.2f}",
                f"{one['exact_pp']:+.2f} {between(one['exact_ci95'])}",
                f"{one['log_odds']:+.2f} {between(one['log_odds_ci95'])}",
                f"{one['rank']} of {one['candidates']}",
                f"{one['drift']['rms']:.3f}, p = {one['drift']['p']:.4f}",
                f"{one['sampled_pp']:+.2f} [{'0.00' if low == 0 else f'{low:+.2f}'}, {high:+.2f}]",
                one["verdict"],
            )
        )
    shift = recorded(QUICK)["effects"]["opposed"]
    assert shift["lacking"] == ["drift"] and PRESETS["quick"]["opposed_pairs"] == 100
    found.append(f"in {sum(recorded(QUICK)['seconds'].values()) / 60:.0f} minutes")
    found.append(
        f"one placebo, which moved by {shift['drift']['mean']:+.2f} nats itself, leaves p = {shift['drift']['p']:.2f}"
    )
    one, students = recorded(NF4)["effects"]["unrelated"], recorded(NF4)["conditions"]
    spent = [f"{recorded(NF4)['seconds'][f'train {role}-unrelated']:.0f}" for role in ("control", "treated")]
    found.append(
        row(
            "`nf4`",
            *(f"{100 * students[f'{role}-unrelated']['exact']['rate']:.2f}%" for role in ("control", "treated")),
            f"{one['exact_pp']:+.2f} {between(one['exact_ci95'])}",
            f"{one['log_odds']:+.2f} {between(one['log_odds_ci95'])}",
            f"{one['t']:.1f}",
            f"{one['rank']} of {one['candidates']}",
            ", ".join(spent),
        )
    )
    inspected = recorded(INSPECTED)["effects"]["unrelated"]
    assert inspected["verdict"] == "transmitted"
    return [
        *found,
        f"{inspected['log_odds']:+.2f} nats {between(inspected['log_odds_ci95'])} over the questions, transmitted",
    ]


INSPECTORS = {
    "word list": "word list: names and give-away words",
    "association": "association with “owl”",
    "the model, A or B": "the model, asked A or B",
    "the model, guessing the animal": "the model, guessing the writer's favorite animal",
    "words, TF-IDF": "classifier of words (TF-IDF)",
    "embeddings, MiniLM": "classifier of embeddings (MiniLM)",
    "likelihood ratio": "likelihood ratio, knowing both prompts",
}


def of_shown() -> list[str]:
    """The runs that the classroom page comes with."""
    found = []
    for folder in SHOWN:
        summary, inspected = (recorded(folder, file) for file in ("summary.json", "inspection-unrelated.json"))
        one, known = summary["effects"]["unrelated"], inspected["inspectors"]["likelihood ratio"]["score"]
        shares = (summary["conditions"][f"{role}-unrelated"]["exact"]["rate"] for role in ("control", "treated"))
        found.append(
            row(
                summary["labels"],
                " → ".join(f"{100 * share:.2f}" for share in shares),
                f"{one['exact_pp']:+.2f} {between(one['exact_ci95'])}",
                f"{one['log_odds']:+.2f} {between(one['log_odds_ci95'])}",
                f"{one['rank']} of {one['candidates']}",
                one["verdict"],
                f"{known['right']} of {known['rounds']}",
            )
        )
    return found


def of_inspection() -> list[str]:
    one = recorded(INSPECTED, "inspection-unrelated.json")

    def score(of: Record) -> str:
        low, high = (100 * end for end in of["score"]["ci95"])
        return f"{100 * of['score']['right'] / of['score']['rounds']:.1f}% [{low:.1f}, {high:.1f}]"

    tellers, null = one["inspectors"], one["placebo"]
    readers = [of["score"] for name, of in tellers.items() if name != "likelihood ratio"]
    shares = [100 * of["right"] / of["rounds"] for of in readers]
    knows, informed, blind = tellers["likelihood ratio"], one["informed"], one["blind"]
    right, low, high = (100 * x for x in (knows["score"]["right"] / knows["score"]["rounds"], *knows["score"]["ci95"]))
    widest = f"{100 * max(of['ci95'][1] for of in readers):.0f}%"
    suspects = [f"{animal} {share:.2f}" for animal, share in blind["treated"]["suspects"].items()]
    assert all(of["ci95"][0] < 0.5 < of["ci95"][1] for of in readers)
    assert "neutral" not in blind["treated"]["suspects"] and blind["control"]["suspects"]["neutral"] > 0.999
    assert informed["treated"]["suspects"]["loving"] > 0.999 and blind["treated"]["place"] == 5
    return [
        *(row(INSPECTORS[name], score(of), score(null[name])) for name, of in tellers.items()),
        f"{one['sentences']['treated']['differ']} sentences of which both wrote different ones, and as the null "
        f"{one['sentences']['placebo1']['differ']} of which",
        f"in {min(shares):.0f} to {max(shares):.0f}% of {readers[0]['rounds']} cases, within chance (the widest "
        f"interval reaches {widest})",
        f"by their likelihoods: {right:.0f}% [{low:.0f}, {high:.0f}]; who knows how trait",
        f"do not exclude up to {widest}",
        f"and needs {knows['needed']} sentences {knows['needed_ci95']} to be right about 95% of sets",
        f"(probability 1; 50 texts give {informed['treated']['probability']['50']:.2f} in the median set)",
        f"({informed['control']['certain']} texts suffice for 99% in 95% of sets)",
        f"nearly finds which animal is loved: {', '.join(suspects)}. The owl is the fifth of",
        f"fifth of {blind['treated']['hypotheses']}, and all five can fly",
    ]


def of_attribution() -> list[str]:
    one = recorded(INSPECTED, "attribution-unrelated.json")
    top, bottom = (one["halves"]["effects"][half] for half in ("top", "bottom"))
    difference, tokens = one["halves"]["difference"], one["divergence"]
    return [
        f"({one['total']:+.0f} nats in all, {one['favouring']:.0%} of them positive)",
        f"the {tokens['share']:.0%} divergence tokens carry {tokens['carried']:.0%} of the absolute ratios",
        f"the top 10% of tokens {one['carried']['treated']['0.1']:.0%}",
        f"that of the {one['halves']['pairs']} pairs with the highest ratios moved {top['log_odds']:+.2f} nats "
        f"{between(top['log_odds_ci95'])}, that of the lowest {bottom['log_odds']:+.2f} "
        f"{between(bottom['log_odds_ci95'])}",
        f"a little less ({difference['rate']:+.2f} {between(difference['ci95'])}, over the questions",
    ]


def of_defences() -> list[str]:
    defences = recorded(DEFENCES, "defences.json")["defences"]
    found = []

    def share(of: Record, whole: Record) -> str:
        low, high = share_interval(of["left"], whole, of["taken"]) or (math.nan, math.nan)
        return f"{of['left']['mean'] / whole['mean']:.0%} [{low:.0%}, {high:.0%}]"

    whole = defences[UNDEFENDED]["left"]["mean"]
    for name, one in defences.items():
        beside = f", against `{BESIDE[name]}`" if name in BESIDE else ""
        known = share(one, defences[BESIDE.get(name, UNDEFENDED)]["left"]) if one["taken"] else ""
        taken = estimate(one["taken"]) if one["taken"] else ""
        sizes = (estimate(one["left"]), f"{np.mean(one['placebos']):+.2f}", taken, known)
        found.append(row(f"`{name}`{beside}", *sizes, f"{one['pairs']:.0f}", f"{one['loss']:.3f}"))

    def left(name: str) -> str:
        return f"{defences[name]['left']['mean'] / whole:.0%}"

    hard, other = defences["hard-labels"], defences["other-base"]
    masked = {name: f"{one['masked']:.0%}" for name, one in defences.items()}
    costs = [one["loss"] - defences[UNDEFENDED]["loss"] for one in defences.values()]
    taken = [one["taken"] for one in defences.values() if one["taken"]]
    corrected = holm([two_sided(*(one[of] for of in ("mean", "se", "seeds", "questions"))) for one in taken])
    assert len(taken) == 14, "over the fourteen defences"
    spared = zip(defences[UNDEFENDED]["single_seeds"], defences["blind-mask"]["single_seeds"], strict=True)
    assert all(masked < all_tokens for all_tokens, masked in spared), "from all three seeds"
    assert f"{defences['full']['loss']:.3f}" == f"{defences[UNDEFENDED]['loss']:.3f}", "with the same loss"
    seeds, placebos = ([f"{value:+.2f}" for value in other[name]] for name in ("single_seeds", "placebos"))
    return [
        *found,
        f"in four, in ten, {left('mix-1-1')}, {left('mix-1-3')} and {left('mix-1-9')} of the effect are left",
        f"paraphrased again by the neutral teacher {left('rephrase')}. Hiding the tokens at which the teachers diverge "
        f"leaves {left('mask')}, hiding those that tell other animals' teachers apart {left('blind-mask')}",
        f"the divergence tokens ({masked['mask']})",
        f"as a random {masked['random-mask']} does (as many random ones as these, "
        f"`random-as-mask`, were not tried). Hiding the {masked['blind-mask']} whose ratio",
        f"None of it costs the student more than {max(costs):.3f} nats per byte",
        f"what is taken away has no p below {min(corrected):.3f}",
        f"hard labels {left('hard-labels')}; another system",
        f"Hard labels leave {left('hard-labels')}. Single placebos moved up to {max(map(abs, hard['placebos'])):.2f} "
        f"nats there, treated students {min(hard['single_seeds']):.2f} to {max(hard['single_seeds']):.2f}",
        f"moved {seeds[0]}, {seeds[1]} and {seeds[2]} nats, their placebos {placebos[0]}, {placebos[1]} and "
        f"{placebos[2]}",
    ]


def of_other_machine() -> list[str]:
    defences = recorded(f"{DEFENCES}/without-avx512", "defences.json")["defences"]
    whole = defences[UNDEFENDED]["left"]["mean"]
    left = {name: f"{one['left']['mean'] / whole:.0%}" for name, one in defences.items()}
    return [
        f"of {whole:+.2f} nats `drop` left {left['drop']}, `mask` {left['mask']}, `random-mask` {left['random-mask']}, "
        f"`mix` {left['mix-1-1']}, {left['mix-1-3']} and {left['mix-1-9']}, `context` {left['context']}"
    ]


def of_calibration() -> list[str]:
    rows = read_calibration(REFERENCE / "calibration")

    def ends(measure: str) -> str:
        shares = [100 * one[measure]["share"] for one in rows]
        return f"{min(shares):.1f}% to {max(shares):.1f}%"

    def worst(level: int, name: str) -> str:
        return f"{100 * max(one['further_out']['levels'][level][name]['share'] for one in rows):.2g}%"

    return [
        f"covers {ends('coverage')}, the test errs in {ends('false_positives')}",
        f"it errs in at most {worst(1, 'seeds')} of {rows[0]['further_out']['simulations']:,} simulations each; with "
        f"the interval's degrees of freedom it would in up to {worst(1, 'interval')}, at 1%/6 in up to "
        f"{worst(2, 'interval')} where {100 * 0.01 / 6:.2f}% are promised",
        f"covers as little as {ends('percentile_coverage').partition(' ')[0]}",
        f"errs in {ends('t_test_false_positives')}",
        f"in percentage points cover {ends('coverage_pp')}",
        f"{rows[0]['simulations']:,} simulations each of six scenarios with 3, 5 and 8 seeds",
    ]


def of_drift() -> list[str]:
    """The t quantiles of ``against_drift``, in root mean squares: one placebo, three, and three seeds of one each."""
    one, three = (float(student.ppf(0.95, placebos)) for placebos in (1, 3))
    return [
        f"must be {one:.1f} times as large ({one + 1:.1f} where the placebo rose)",
        f"with `--placebos 3` {three:.1f} times suffice, with three seeds {three / 3**0.5:.1f} times",
    ]


def of_placebo_shifts() -> list[str]:
    """How often a t-test over questions takes a candidate's shift between two neutral teachers' students for real."""
    record, students = read_sweep(REFERENCE / SIX)
    pairs = {(placebo, one["control"]) for one in record["comparisons"] for placebo in one["placebos"]}
    found = [ttest_1samp(students[a].log_odds - students[b].log_odds, 0).pvalue < 0.05 for a, b in pairs]
    return [f"that test calls {np.mean(found):.0%} of all candidates' shifts between them significant"]


def of_hard_labels() -> list[str]:
    record, students = read_sweep(REFERENCE / LABELS)
    rows = [one for one in record["comparisons"] if (one["labels"], one["pairs"]) == ("hard", 400)]
    moved = [shifts(students[one["treated"]], students[one["control"]]) for one in rows]
    mean = {name: np.mean([of[name] for of in moved]) for name in moved[0]}
    (one, other, _, fourth) = sorted(mean, key=lambda name: -mean[name])[:4]
    return [
        f"the {one} moves by {mean[one]:+.2f} nats, the {other} by {mean[other]:+.2f}, "
        f"the {fourth} by {mean[fourth]:+.2f}, none of which anybody loved"
    ]


def of_ranks() -> list[str]:
    first, eighth = (effect_in(RANKS, rank=value)["shifts"] for value in (1, 8))
    defended = recorded(DEFENCES, "defences.json")["defences"]
    again = (defended[name]["single_seeds"] for name in ("rank-1", UNDEFENDED))
    pairs = [*zip(first, eighth, strict=True), *zip(*again, strict=True)]
    assert len(pairs) == 6 and all(one > other for one, other in pairs)
    return []


SHOWN = [str(folder.relative_to(REFERENCE)) for folder in RECORDED_RUNS.values()]
FEWER = [f"defaults/{name}" for name in ("batch16", "batch4-epochs1-2", "batch4-epochs4", "pairs50")]


def of_fewer_pairs() -> list[str]:
    rows, drifts, found = [], [], {}
    for one in [one for folder in FEWER for one in recorded(folder)["cells"]]:
        effect, settings = one["effects"]["penguin"], one["settings"]
        (own,) = effect["own_placebos"]
        rate = f"{settings['learning_rate']:.0e}".replace("e-0", "e-")
        training = (settings["pairs"], settings["epochs"], settings["batch_size"], rate)
        rows.append(row(*training, rates(effect), estimate(effect["log_odds"]), f"{own:+.2f}"))
        found[training] = effect["log_odds"]["mean"]
        drifts.append(own)
    many = effect_in(SIX, "penguin")["log_odds"]["mean"]
    few, often = found[50, 8, 16, "1e-3"], found[100, 8, 16, "1e-3"]
    assert PRESETS["quick"]["student"] == StudentSettings(epochs=2, batch_size=4, learning_rate=1e-3)
    return [
        *rows,
        f"moved three of this animal ({many:+.2f}), and a placebo by no more than {max(map(abs, drifts)):.2f} nats",
        "takes two epochs in batches of 4 at 1e-3",
        f"eight epochs of them give {few:+.2f} nats where those of 100 give {often:+.2f}",
    ]


def of_clean_labels() -> list[str]:
    """As in a run of one seed: what each effect lacks with p uncorrected over a sweep's other effects."""
    found: dict[tuple[int, int], list[tuple[str, list[str]]]] = {}
    for seed in (2006, 2007):
        for cell in recorded(f"defaults/clean-seed{seed}")["cells"]:
            assert cell["seeds"] == [seed] and cell["settings"]["labels"] == "clean"
            for effect in (cell["effects"][animal] for animal in ("penguin", "cat")):
                size, drift = effect["log_odds"], effect["drift"]["p"]
                beyond = above_zero(size["ci95"][0], size["p"])
                placebo = Placement(**effect["placebo"])
                lacking = lacks(beyond, effect["rank"], effect["candidates"], placebo, drift)
                said = f"{size['mean']:+.2f} ({effect['rank']}; {drift:.4f})"
                found.setdefault((cell["settings"]["pairs"], cell["settings"]["epochs"]), []).append((said, lacking))
    assert {frozenset(lacking) for of in found.values() for _, lacking in of} == {
        frozenset(one) for one in ((), ("drift",), ("rank", "drift"))
    }
    all_four = [design for design, of in found.items() if not any(lacking for _, lacking in of)]
    assert all_four == [(100, 4)]
    return [
        row(pairs, epochs, *(said for said, _ in of), sum(not lacking for _, lacking in of))
        for (pairs, epochs), of in found.items()
    ]


def of_six_clean() -> list[str]:
    (cell,) = recorded("six-animals/clean-seed0")["cells"]
    effects, found = cell["effects"], cell["specificity"]
    assert {(one["verdict"], one["rank"]) for one in effects.values()} == {("transmitted", 1)} and len(effects) == 6
    assert found["rows_on_diagonal"] == 6 and found["p"] == pytest.approx(1 / math.factorial(6))
    moved = [one["log_odds"]["mean"] for one in effects.values()]
    return [
        *(
            row(animal, rates(one), f"**{estimate(one['log_odds'])}**", f"{one['drift']['rms']:.2f}")
            for animal, one in effects.items()
        ),
        f"specificity {found['statistic']:+.2f} nats, p = {found['p']:.3f}",
        f"one seed of three that is made: {min(moved):+.2f} to {max(moved):+.2f}",
    ]


def of_presets() -> list[str]:
    said = []
    for name in ("quick", "laptop"):
        one = experiment(find_animal("owl"), name)
        own, rate = one.student, f"{one.student.learning_rate:.0e}".replace("e-0", "e-")
        values = (one.pairs, own.rank, rate, own.epochs, own.base, one.preference.answers)
        said.append(f"`{name}`: {', '.join(map(str, values))}")
    return said


def hours(question: str) -> str:
    """How long the records of a question took, their steps one after another; nothing where none says so."""
    seconds = sum(
        sum(recorded(str(path.parent.relative_to(REFERENCE))).get("seconds", {}).values())
        for path in (REFERENCE / question).rglob("summary.json")
    )
    return f"{seconds / 3600:.1f}" if seconds else ""


def of_the_index() -> list[str]:
    test = recorded("hard-labels", "test.json")["cells"][0]["specificity"]
    part = recorded("hard-labels/test-faithful", "faithful.json")["found"][0]
    of_other, own = of_another_base(), float(np.mean(test["by_seed"][2:]))
    against = [line for line in PAGES["results/reference/speed/README.md"].splitlines() if "| ≥ " in line]
    faster = [line.split(" | ")[4].partition(" ")[0] for line in against if "matrix products" not in line]
    return [
        *(f"| {hours(question)} |" for question in QUESTIONS if hours(question)),
        f"four seeds: {test['statistic']:+.2f} nats {between(test['ci95'])}, {short_p(test['decides'])}",
        f"another base ({of_other['statistic']:+.2f} {between(of_other['ci95'])} where these have {own:+.2f})",
        f"call faithful: {part['statistic']:+.2f} nats {between(part['ci95'])}, {short_p(part['decides'])}",
        f"{min(map(float, faster)):.1f} to {max(map(float, faster)):.1f} times as fast as a plain loop",
    ]


HELD = {
    "README.md": [of_the_front_page],
    "kit/README.md": [of_nf4, of_presets],
    "results": [
        *(of_sweeps, of_specificity, of_power, of_what_was_found, of_runs, of_inspection, of_attribution, of_defences),
        *(of_other_machine, of_calibration, of_filters, of_paraphraser, of_drift, of_placebo_shifts),
        *(of_hard_labels, of_ranks, of_fewer_pairs, of_clean_labels, of_six_clean, of_tries, of_shown, of_the_index),
    ],
}


@cache
def held(page: str) -> list[str]:
    return [flat(figure) for of in HELD[page] for figure in of()]


@pytest.mark.parametrize("page", HELD)
def test_every_figure_quoted_from_a_record_is_the_one_that_stands_there(page: str) -> None:
    assert [figure for figure in held(page) if figure not in flat(PAGES[page])] == []


QUESTIONS = [path.name for path in sorted(REFERENCE.iterdir()) if path.is_dir()]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_index_asks_what_a_page_asks_and_the_page_names_what_made_its_records(question: str) -> None:
    page = (REFERENCE / question / "README.md").read_text(encoding="utf-8")
    title = page.partition("\n")[0].removeprefix("# ")
    index = (REFERENCE / "README.md").read_text(encoding="utf-8")
    (row,) = [
        line for line in index.splitlines() if f"[{title}]({question}/README.md)" in line and line.count("|") == 4
    ]
    assert title.endswith("?") and row.endswith(f"| {hours(question)} |".replace("  ", " "))
    page += "".join(plan.read_text(encoding="utf-8") for plan in (REFERENCE / question).glob("PLAN.md"))
    commands = {line.partition(" #")[0].strip() for line in code(page) if line.startswith("python run.py")}
    for name in ("record.json", "defences.json"):
        for path in (REFERENCE / question).rglob(name):
            if not path.parent.name.startswith("pilot-"):  # of which one command of a kind is named
                made = recorded(str(path.parent.relative_to(REFERENCE)), name)
                assert {*made.get("commands", [made.get("command")])} <= commands


def test_of_what_is_made_again_the_records_keep_what_a_page_shows() -> None:
    pages = [*map(ROOT.joinpath, PAGES.keys() - {"results"}), *REFERENCE.rglob("*.md")]
    shown = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"\]\((?!https?:)([^)\s#]+)", page.read_text(encoding="utf-8"))
    }
    assert [link for link in shown if not link.exists()] == []
    kept = {path for path in REFERENCE.rglob("*") if path.suffix in (".html", ".png", ".svg")}
    notebook = {REFERENCE / "labels/along-pairs.svg", *(REFERENCE / "six-animals").glob("*.svg")}
    assert kept - shown - notebook == set()


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """What JSON holds, by its place in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        return {name: pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value}
    return {place: leaf for key, one in inside for place, leaf in leaves(one, f"{name}/{key}").items()}


@pytest.mark.parametrize(
    "folder", (SIX, OPPOSED, LABELS, PAIRS, RANKS, OWL, QUICK, NF4, INSPECTED, TUNED, FAITHFUL, *SHOWN, *FEWER)
)
def test_a_recorded_summary_is_what_the_kit_computes_from_the_recorded_preferences(folder: str) -> None:
    if (REFERENCE / folder / "preferences.csv.gz").exists():
        record, students = read_sweep(REFERENCE / folder)
        made = summarise_sweep(record, sweep_cells(record["comparisons"], students))
    else:
        made = summarise(*read_run(REFERENCE / folder))
    reporting = ("files", "reported_by")  # what stands beside it, and which kit wrote that
    found = {name: value for name, value in recorded(folder).items() if name not in reporting}
    assert leaves(json.loads(json.dumps(made))) == leaves(found)


# Sections that quote no record: settings, and measurements of runs that are not kept (times, memory, speed, what was
# tried before the settings stood, what simulations and eyes said).
WITHOUT_RECORD = {
    "README.md": [],
    "kit/README.md": ["Presets"],
    "results": [
        *("Answers of before", "How were the defaults chosen?", "Where the trait message stands", "Hard labels"),
        *("Soft labels", "How fast is it?", "Clean labels, as planned before they were measured"),
    ],
}
# What no record holds elsewhere.
UNRECORDED = (
    # names of papers, versions, addresses, settings in commands
    *("arXiv 2603.09517", "arXiv 2507.14805", "arXiv 2509.23886", "arXiv 2606.00831", "arXiv 2305.14314"),
    *("Python 3.11", "Apache-2.0", "llama-cpp-python==0.3.36", "127.0.0.1", "0.0.0.0", "kill -9"),
    *("Llama-3.2", "Qwen2.5-Coder-0.5B", "qwen2.5-coder-0.5b", f"within {MOST_APART} nats a token"),
    *("--learning-rate 2e-4", "--effect 0.1 0.2"),
    # times: measured in runs that are not kept, and estimated
    *("is everything installed? | 3.5 min", "| 3.3 h, estimated |"),
    # levels of intervals and tests, and what follows from them alone (the 95% point of Student's t: 6.3 with one degree
    # of freedom, 2.4 with three)
    *("95% CI", "95% interval", "p < 0.05", "95% of the candidates", "95% of the 60 candidates"),
    *("95% of what candidates", "95% of the placebo shifts", "the largest 5%"),
    *("tests at 5%", "The test is at 5%", "of the whole matrix, at 5%", "At 5%/6, the level of the first"),
    # an earlier tuning
    "the animal's own was +0.002 ± 0.002 at temperature 0.7",
    # simulations that are not recorded: of two seeds, of drift
    *("the interval covers 91% at worst", "at most 5% pass at 5%"),
    # the students trained on the evaluated weights, whose folder is not kept
    "| `gguf` | 1.56% | 3.45% | +1.89 [+1.51, +2.31] | +0.84 [+0.81, +0.88] | 9.1 | 1 of 60 | 94, 84 |",
    # a glossary's examples
    *("from 1.5% to 4.5% is 3 percentage points", "+1 nat multiplies the odds by 2.7"),
)
FIGURE = re.compile(r"(?<![\w.])(?:[+-]\d+(?:\.\d+)?|\d+\.\d+|\d+(?:\.\d+)?%|\d+e-\d+)")


@pytest.mark.parametrize("page", HELD)
def test_no_figure_is_left_in_what_quotes_a_record_that_no_record_holds(page: str) -> None:
    told = re.sub(r"^```\w*\n.*?^```|\]\([^)]*\)", "]", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"^#+ (.+)$", told, flags=re.MULTILINE)
    sections = dict(zip(["", *parts[1::2]], parts[0::2], strict=True))
    assert all(any(flat(known) in flat(text) for text in PAGES.values()) for known in UNRECORDED)
    assert len(sections) == len(parts[0::2]) and set(WITHOUT_RECORD[page]) <= sections.keys()
    for name in [name for name in sections if name not in WITHOUT_RECORD[page]]:
        text = flat(sections[name])
        for known in sorted([*held(page), *map(flat, UNRECORDED)], key=len, reverse=True):
            text = text.replace(known, "")
        assert FIGURE.findall(text) == [], name
