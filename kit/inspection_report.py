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
    "Every inspector sees two paraphrases of one sentence, one of each teacher, and says which is the loving one's: "
    "guessing gets one half. Intervals are Wilson's, of classifiers widened for their folds' likeness. *Sentences "
    "needed*: shown both teachers' paraphrases of so many sentences at once, it gets 95% of such sets right; looked "
    "for up to a quarter of the sentences there are. Classifiers are asked about sentences that they did not learn "
    "from (5 folds, grouped by sentence), but learned from labelled texts of these very teachers, which no inspector "
    "in the wild has. *Placebo*: the same inspector before two samplings of the neutral teacher, where nobody can know."
)
PRIOR = (
    "Likelihoods are at temperature 1; the texts were sampled at the teacher's temperature and then filtered, so the "
    "probabilities are those of an inspector who does not know that."
)


def inspections(folder: Path) -> list[dict[str, Any]]:
    """Those in a run's folder, in the order of the contents."""
    paths = [folder / f"inspection-{content}.json" for content in CONTENTS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def sentence(found: dict[str, Any]) -> str:
    """Who could tell, for somebody who reads nothing else."""
    able = {name: one["needed"] for name, one in found["inspectors"].items() if one["needed"]}
    unable = [name for name in found["inspectors"] if name not in able]
    parts = [f"{name} (from {needed} sentence{'s' * (needed > 1)})" for name, needed in able.items()]
    told = f"Told the teachers apart: {', '.join(parts)}." if able else "Nobody told the teachers apart."
    return f"{told} Did not: {', '.join(unable)}." if unable else told


def accuracy_table(found: dict[str, Any]) -> Table:
    """Every inspector's accuracy, with its interval, the sentences that it needs, and its accuracy on placebos."""
    heading = ["inspector", "knows, beside the texts", "right [95% CI]", "sentences needed"]
    placebo = found["placebo"]
    rows = []
    for name, one in found["inspectors"].items():
        row = [name, KNOWS[name], share(one["score"]), str(one["needed"] or "not found")]
        rows.append([*row, share(placebo[name]["score"])] if placebo else row)
    return [*heading, "placebo: right [95% CI]"] if placebo else heading, rows


def share(score: dict[str, Any]) -> str:
    """A score as a share, in percent, with its interval and the number of sentences."""
    low, high = score["ci95"]
    return f"{100 * score['right'] / score['rounds']:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of {score['rounds']}"


def suspects(found: dict[str, Any]) -> list[str]:
    """What likelihoods of one teacher's texts alone say, a sentence for each inspector."""
    animal, informed = found["animal"], found["informed"]

    def after(size: int | None) -> str:
        return f"from {size} text{'s' * (size > 1)} on" if size else "not from half of the texts"

    sentences = [
        f"The informed inspector knows both prompts, and is shown texts of the loving teacher alone: in 95% of random "
        f"sets it is 99% certain {after(informed['certain'])}."
    ]
    for role, whose in (("treated", "loving"), ("control", "neutral")):
        blind = found["blind"][role]
        sentences.append(
            f"The blind inspector knows the shape of the prompts, and holds {blind['hypotheses'] - 1} animals and none "
            f"at all for equally likely. Of {blind['texts']} texts of the {whose} teacher the likeliest is "
            f"{blind['likeliest']!r} (probability {blind['likeliest_probability']:.3g}); the truth is "
            f"{animal if role == 'treated' else 'neutral'!r}, of which it is 99% certain {after(blind['certain'])}."
        )
    return sentences


def posterior_table(found: dict[str, Any]) -> Table:
    """The truth's probability and rank among the hypotheses, against the number of texts."""
    informed, blind, innocent = found["informed"], found["blind"]["treated"], found["blind"]["control"]
    heading = ["texts", "informed: probability", "blind: probability", "blind: rank", "blind, neutral teacher: rank"]
    rows = []
    for size, probability in informed["probability"].items():
        seen = [f"{probability:.3g}"]
        if size in blind["probability"]:
            seen += [f"{blind['probability'][size]:.3g}", f"{blind['rank'][size]:g} of {blind['hypotheses']}"]
        if size in innocent["rank"]:
            seen.append(f"{innocent['rank'][size]:g} of {innocent['hypotheses']}")
        rows.append([size, *seen, *["–"] * (len(heading) - 1 - len(seen))])
    return heading, rows


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
    near = ", ".join(f"{word} ({cosine:.2f})" for word, cosine in found["nearest"].items())
    return [
        f"Texts with a word that names the {found['animal']} or gives it away: {counts}.",
        f"The loving teacher's words nearest to “{found['animal']}”, with their cosines: {near}.",
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
