"""What the reports say of an attribution (``kit/attribution.py``): where the secret sits, and if that predicts much."""

from pathlib import Path
from typing import Any

from kit.inspection_report import later
from kit.tables import Table, markdown_table, points, show_table

TINT = 1.0  # nats at which a token's tint is fullest
FOCUSED = 0.2  # nats from which a token is a stop of the keyboard; the numbers of all stand below each paraphrase
READING = (
    "The *ratio* of a token is how much likelier the loving teacher was than the neutral one to write it there, in "
    "nats; of a text or a group of tokens it is their sum. {} *Divergence tokens* are those at which the two teachers' "
    "likeliest next tokens differ (after arXiv 2509.23886). What tokens *carry* is their share of the sum of absolute "
    "ratios. Kinds are told by a list of function words, not by grammar."
)
CONVERSATIONS = {
    "soft": "Teachers are taken as the student met them in its soft labels: under the trait message and the request "
    "alone, not under the worked example with which the text was written.",
    "hard": "Teachers are taken as they wrote the text.",
}


def attributions(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those in the folder of the run with that ``record``, in the order of the contents, which are of its own pairs."""
    return later(folder, record, "attribution")


def sentences(found: dict[str, Any]) -> list[str]:
    """What was found, for somebody who reads nothing else."""
    said = [
        f"{found['texts']} kept paraphrases of the loving teacher, {found['tokens']} tokens: {found['total']:+.1f} "
        f"nats for it in all; {found['favouring']:.0%} of the texts speak for it. The most telling tokens: "
        f"{carried(found, 'treated')}. (In the neutral teacher's texts: {carried(found, 'control')}.)"
    ]
    if found["halves"]:
        pairs, difference, ratios = (found["halves"][name] for name in ("pairs", "difference", "ratios"))
        said.append(
            f"Of the students of the halves, that of the {pairs} pairs with the highest ratios ({ratios['top']:+.2f} "
            f"nats a pair) moved {points(difference['rate'], difference['ci95'])} nats further than that of the "
            f"{pairs} with the lowest ({ratios['bottom']:+.2f}), each against its control. The 95% interval is over "
            "the questions: it speaks of these four students, not of others."
        )
    return said


def carried(found: dict[str, Any], role: str) -> str:
    """What the most telling tokens of a teacher's texts carry."""
    shares = found["carried"][role].items()
    return ", ".join(f"{float(top):.0%} of them carry {share:.0%}" for top, share in shares)


def reading(found: dict[str, Any]) -> str:
    """What the words mean."""
    return READING.format(CONVERSATIONS[found["labels"]])


def groups_table(found: dict[str, Any]) -> Table:
    """How many tokens each kind has, and what it carries."""
    groups = {"divergence tokens": found["divergence"], **found["kinds"]}
    rows = [
        [
            name,
            str(one["tokens"]),
            f"{one['share']:.1%}",
            f"{one['mean']:+.3f}",
            f"{one['sum']:+.1f}",
            f"{one['carried']:.1%}",
        ]
        for name, one in groups.items()
    ]
    return ["tokens", "number", "of all tokens", "mean ratio, nats", "sum, nats", "carry"], rows


def halves_table(found: dict[str, Any]) -> Table:
    """The students of the two halves."""
    heading = ["pairs", "effect, pp [95% CI]", "log-odds, nats [95% CI]", "rank"]
    rows = [
        [
            {"top": "the half with the highest ratios", "bottom": "the half with the lowest"}[half],
            points(one["exact_pp"], one["exact_ci95"]),
            points(one["log_odds"], one["log_odds_ci95"]),
            f"{one['rank']} of {one['candidates']}",
        ]
        for half, one in found["halves"]["effects"].items()
    ]
    return heading, rows


def shown_table(found: dict[str, Any], most: int = 3) -> Table:
    """The paraphrases that were chosen at random, with their most telling tokens."""
    rows = []
    for one in found["shown"]:
        telling = sorted(zip(one["tokens"], one["ratio"], strict=True), key=lambda item: -abs(item[1]))[:most]
        words = ", ".join(f"“{token.strip() or '(end)'}” {ratio:+.2f}" for token, ratio in telling)
        rows.append([one["source"], one["text"], f"{sum(one['ratio']):+.2f}", words])
    return ["source", "the loving teacher's paraphrase", "ratio, nats", "most telling tokens"], rows


def tinted(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The paraphrases for a page: their tokens with colour, strength (0-1) and number."""
    return [
        {
            "source": one["source"],
            "total": f"{sum(one['ratio']):+.2f}",
            "tokens": [
                {
                    "text": token if place < len(one["tokens"]) - 1 else "⏎",
                    "nats": f"{ratio:+.2f} nats" + (", diverges" if diverges else ""),
                    "side": "loving" if ratio > 0 else "neutral",
                    "strength": f"{min(1.0, abs(ratio) / TINT):.2f}",
                    "focused": abs(ratio) >= FOCUSED,
                    "diverges": diverges,
                }
                for place, (token, ratio, diverges) in enumerate(
                    zip(one["tokens"], one["ratio"], one["diverge"], strict=True)
                )
            ],
        }
        for one in found["shown"]
    ]


def markdown(found: dict[str, Any]) -> list[str]:
    """The paragraphs of report.md."""
    parts = [f"## Where does it sit? {found['content'].capitalize()} sentences", *sentences(found)]
    parts.append(markdown_table(groups_table(found)))
    if found["halves"]:
        parts.append(markdown_table(halves_table(found)))
    return [*parts, reading(found), markdown_table(shown_table(found))]


def show(found: dict[str, Any]) -> None:
    """Print what matters."""
    show_table(f"Where does it sit? {found['content']} sentences", groups_table(found))
    if found["halves"]:
        show_table("Students of the halves", halves_table(found))
    print("\n".join(sentences(found)))
