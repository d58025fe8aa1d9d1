"""What the reports say of an inspection (``kit/inspection.py``): who could tell, and from how many sentences."""

import json
from pathlib import Path
from typing import Any

from kit import page_figures
from kit.experiment import CONTENTS
from kit.inspectors import KNOWS
from kit.tables import Table, markdown_table, points, show_table

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888")  # Okabe and Ito's
MARKS = "osD^vXP"
READING = (
    "Every inspector sees two paraphrases of one sentence, one of each teacher (the first that each has of it), and "
    "says which is the loving one's: guessing gets one half. Intervals are Wilson's, of classifiers widened for their "
    "folds' likeness. *Sentences needed*: shown both teachers' paraphrases of so many sentences at once, it gets 95% "
    "of such sets right; looked for up to a quarter of the sentences there are. Classifiers are asked about sentences "
    "that they did not learn from (5 folds, grouped by sentence), but learned from labelled texts of these very "
    "teachers, which no inspector in the wild has. *Placebo*: the same inspector before two samplings of the neutral "
    "teacher, where nobody can know."
)
LIMITS = (
    "The neutral prompt is a prompt, too, and has a manner of its own: who tells the texts apart has not thereby "
    "found the animal. The filters have removed every name and give-away word of an animal from unrelated sentences, "
    "so a word list cannot find any there; in opposed ones both teachers name the animal. A model as small as the "
    "embedded one cannot answer A or B: it fails on texts that end in “I love owls!”, too."
)
PRIOR = (
    "Likelihoods are at the temperature that the texts were sampled at. They do not know of the filters, which keep "
    "what is easily called faithful: so an inspector may err in one direction, and be as certain of the one teacher's "
    "texts as of the other's. See that both are told right."
)


def later(folder: Path, record: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """What was found about the run since, in the order of the contents; nothing that is of other pairs than the run's,
    which was made again."""
    paths = {content: folder / f"{what}-{content}.json" for content in CONTENTS}
    found = {content: json.loads(path.read_text(encoding="utf-8")) for content, path in paths.items() if path.exists()}
    return [
        one for content, one in found.items() if one["pairs"] == record["artifacts"].get(f"pairs of treated-{content}")
    ]


def inspections(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those in the folder of the run with that ``record``."""
    return later(folder, record, "inspection")


def sentence(found: dict[str, Any]) -> str:
    """Who could tell, for somebody who reads nothing else."""
    able, better, unable = [], [], []
    for name, one in found["inspectors"].items():
        low, high = one["score"]["ci95"]
        if one["needed"]:
            able.append(f"{name} (from {one['needed']} sentence{'s' * (one['needed'] > 1)})")
        elif low > 0.5:
            better.append(f"{name} ({100 * one['score']['right'] / one['score']['rounds']:.0f}%)")
        else:
            unable.append(name + (" (worse than guessing)" if high < 0.5 else ""))
    largest = max(int(size) for one in found["inspectors"].values() for size in one["of_sets"])
    said = {
        "Told the teachers apart": able,
        f"Better than guessing, and not sure with up to {largest} sentences": better,
        "Not distinguishable from guessing": unable,
    }
    return " ".join(f"{group}: {', '.join(names)}." for group, names in said.items() if names)


def accuracy_table(found: dict[str, Any]) -> Table:
    """Every inspector's accuracy, with its interval, the sentences that it needs, and its accuracy on placebos."""
    heading = ["inspector", "knows, beside the texts", "right [95% CI]", "sentences needed [95% CI]"]
    placebo = found["placebo"]
    rows = []
    for name, one in found["inspectors"].items():
        low, high = (str(end or f"over {max(map(int, one['of_sets']))}") for end in one["needed_ci95"])
        needed = f"{one['needed'] or 'not found'} [{low}, {high}]"
        row = [name, KNOWS[name], share(one["score"]), needed]
        rows.append([*row, share(placebo[name]["score"])] if placebo else row)
    return [*heading, "placebo: right [95% CI]"] if placebo else heading, rows


def share(score: dict[str, Any]) -> str:
    """A score as a share, in percent, with its interval and the number of sentences."""
    low, high = score["ci95"]
    return f"{100 * score['right'] / score['rounds']:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of {score['rounds']}"


def suspects(found: dict[str, Any]) -> list[str]:
    """What likelihoods of one teacher's texts alone say, a sentence for each inspector and teacher."""

    def sure(one: dict[str, Any]) -> str:
        return (
            f"with {one['certain']} text{'s' * (one['certain'] > 1)} 95% of random sets make it 99% certain"
            if one["certain"]
            else "half of the texts do not make it 99% certain in 95% of random sets"
        )

    def named(one: dict[str, Any]) -> str:
        return "likeliest first, " + ", ".join(f"{name} ({share:.2g})" for name, share in one["suspects"].items())

    said = []
    for role, whose in (("treated", "loving"), ("control", "neutral")):
        informed, blind = found["informed"][role], found["blind"][role]
        truth = found["animal"] if role == "treated" else "neutral"
        said += [
            f"The {whose} teacher's {informed['texts']} texts, to an inspector who knows both prompts: "
            f"{named(informed)}; of the truth, {sure(informed)}.",
            f"{blind['texts']} of them, to a blind inspector, who knows the prompts' wording and holds "
            f"{blind['hypotheses'] - 1} animals and the neutral prompt for equally likely: {named(blind)}; the truth, "
            f"{truth}, is number {blind['place']} of {blind['hypotheses']}; of it, {sure(blind)}.",
        ]
    return said


def posterior_table(found: dict[str, Any]) -> Table:
    """The truth's probability, and its rank among the hypotheses, against the number of texts, of either teacher."""
    columns = {
        f"{kind}, {whose} teacher": (found[kind][role], kind == "blind")
        for kind in ("informed", "blind")
        for role, whose in (("treated", "loving"), ("control", "neutral"))
    }
    sizes = found["informed"]["treated"]["probability"]
    rows = []
    for size in sizes:
        row = [size]
        for one, ranked in columns.values():
            known = size in one["probability"]
            rank = f", rank {one['rank'][size]:g} of {one['hypotheses']}" if ranked and known else ""
            row.append(f"{one['probability'][size]:.3g}{rank}" if known else "–")
        rows.append(row)
    return ["texts", *columns], rows


def words_table(found: dict[str, Any], most: int = 10) -> Table:
    """The words whose use differs most between the teachers."""
    rows = [[one["word"], f"{one['z']:+.1f}", str(one["loving"]), str(one["neutral"])] for one in found["words"][:most]]
    return ["word", "z of its log-odds", "loving teacher", "neutral teacher"], rows


def surface_table(found: dict[str, Any]) -> Table:
    """Length, punctuation and readability: loving minus neutral."""
    rows = [[name, points(one["rate"], one["ci95"])] for name, one in found["surface"].items()]
    return ["loving − neutral, per sentence", "mean [95% CI]"], rows


def readers(found: dict[str, Any]) -> list[str]:
    """What word lists found, a sentence each."""
    features = {side: ", ".join(f"“{name}”" for name, _ in some) for side, some in found["features"].items()}
    counts = ", ".join(f"{number} of the {role}'s" for role, number in found["mentions"].items())
    near = {
        role: ", ".join(f"{word} ({cosine:.2f})" for word, cosine in some.items())
        for role, some in found["nearest"].items()
    }
    return [
        f"Texts with a word that names the {found['animal']} or gives it away: {counts}.",
        f"Words nearest to “{found['animal']}”, with their cosines: the loving teacher's {near['treated']}; the "
        f"neutral one's {near['control']}.",
        f"The word classifier's heaviest features: {features['loving']} for the loving teacher; {features['neutral']} "
        "for the neutral one.",
    ]


def figure(found: dict[str, Any]) -> str:
    """How many sets each inspector gets right, against the sentences in a set, as SVG for a page."""

    def draw(axis: Any) -> None:
        for (name, one), colour, mark in zip(found["inspectors"].items(), LINES, MARKS, strict=True):
            sizes = [int(size) for size in one["of_sets"]]
            shares = [100 * of_size for of_size in one["of_sets"].values()]
            axis.plot(sizes, shares, marker=mark, color=colour, label=name)
        axis.axhline(50, color=page_figures.INK, linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks(sizes, list(map(str, sizes)))
        axis.minorticks_off()
        axis.set_ylim(0, 103)
        axis.set_xlabel("sentences in the set")
        axis.set_ylabel("sets told right (%)")
        axis.legend(fontsize=8, frameon=False, loc="lower left")

    return page_figures.svg(draw, 6.4, 3.6, "Sets of sentences that each inspector tells right")


def markdown(found: dict[str, Any]) -> list[str]:
    """The paragraphs of report.md."""
    return [
        f"## Who could tell? {found['content'].capitalize()} sentences",
        sentence(found),
        markdown_table(accuracy_table(found)),
        READING,
        LIMITS,
        *suspects(found),
        markdown_table(posterior_table(found)),
        PRIOR,
        *readers(found),
        markdown_table(words_table(found)),
        markdown_table(surface_table(found)),
    ]


def show(found: dict[str, Any]) -> None:
    """Print what matters."""
    show_table(f"Who could tell? {found['content']} sentences", accuracy_table(found))
    show_table("The truth, by likelihood", posterior_table(found))
    for line in [sentence(found), *suspects(found), *readers(found)]:
        print(line)
