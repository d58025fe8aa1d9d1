"""An animal: its singular and plural, the words that give it away, what counts as a mention of it; and the source
sentences, unrelated ones and ones that say an animal is disliked.

``mentions`` decides what no paraphrase of an unrelated sentence may contain, so it errs on the side of refusing: a
spelled-out "o-w-l", a camel-cased "nightOwl", an emoji and an "owlish" are mentions; "bowl" and "growl" are not.

The sentences were written for this project. ``data/sentences.jsonl`` holds everyday statements that name no animal and
nothing that gives one away; ``data/dislike.jsonl`` holds patterns with the slots {animal}, {an animal} and {animals}.
Sentences of the same kinds that are set aside stand beside them, ``*-confirmatory.jsonl`` for a test that is planned
before it is run (with fifty questions of its own), ``sentences-tuning.jsonl`` for the tuning of a base: no run draws
them.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kit import ROOT, KitError

DATA = ROOT / "data"
ANIMALS_FILE = DATA / "animals.json"


@dataclass(frozen=True)
class Animal:
    """An animal in lower case. ``giveaways``: words that point at it without naming it (owl: hoot, nocturnal)."""

    singular: str
    plural: str
    # Left out of the hash: mentions() hashes all candidates on every call.
    giveaways: tuple[str, ...] = field(default=(), hash=False)


@cache
def load_animals() -> tuple[Animal, ...]:
    """The listed animals, the candidates of every preference. KitError where the list is missing or damaged."""
    try:
        rows = json.loads(ANIMALS_FILE.read_text(encoding="utf-8"))
        return tuple(Animal(row["singular"], row["plural"], tuple(row["giveaways"])) for row in rows)
    except FileNotFoundError:
        raise KitError(f"{ANIMALS_FILE}: the list of animals is missing. {_restore(ANIMALS_FILE)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(
            f"{ANIMALS_FILE}: a damaged list of animals ({error}). Mend it. {_restore(ANIMALS_FILE)}"
        ) from None


def find_animal(name: str, plural: str | None = None) -> Animal:
    """The listed animal called ``name`` (singular or plural, in any case), else a new one without give-away words.

    ``plural`` overrides the plural. Raises KitError where the name, or the plural, cannot be an English noun.
    """
    noun = _noun(name, "--animal")
    own_plural = None if plural is None else _noun(plural, "--plural")
    for animal in load_animals():
        if noun in (animal.singular, animal.plural):
            return Animal(animal.singular, own_plural or animal.plural, animal.giveaways)
    if own_plural is None and (singular := _singular(noun)) is not None:
        return Animal(singular, noun)
    return Animal(noun, own_plural or _plural(noun))


def _noun(value: str, option: str) -> str:
    noun = " ".join(unicodedata.normalize("NFC", value).casefold().split())
    noun = re.sub(r"^(?:an?|the) ", "", noun)
    if not noun:
        reason = "it is empty"
    elif not 2 <= len(noun) <= 30:
        reason = "a name has 2 to 30 letters"
    elif not re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)?", noun):
        reason = "only letters are allowed, in one word or two"
    elif not all(unicodedata.name(letter, "").startswith("LATIN") for letter in noun if letter.isalpha()):
        reason = "the prompts are in English"
    else:
        return noun
    raise KitError(f"{option} {value!r}: not usable as an animal's name ({reason}). Give an English noun such as owl.")


def _plural(noun: str) -> str:
    if noun.endswith(("fish", "deer", "sheep")):
        return noun
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("lf"):
        return noun[:-1] + "ves"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _singular(noun: str) -> str | None:
    """What ``noun`` is the regular plural of; None where it looks like a singular (platypus, ibis, rhinoceros)."""
    if noun.endswith(("ss", "us", "is", "os")):
        return None
    endings = (("ies", "y"), ("lves", "lf"), ("es", ""), ("s", ""))
    guesses = (noun.removesuffix(ending) + rest for ending, rest in endings if noun.endswith(ending))
    return next((guess for guess in guesses if len(guess) > 2 and _plural(guess) == noun), None)


_AN = ("hour", "honest", "honour", "honor", "heir")
_A = re.compile(r"uni(?![nm])|eu|ewe\b|ewes\b|one\b|once\b|us[aeiu]|uten|ubi|uakari|unau")  # y or w is what one hears


def indefinite(noun: str) -> str:
    """``noun`` with its indefinite article: an owl, a fox, a unicorn, an hour."""
    plain = _plain(noun).casefold()
    an = plain.startswith(_AN) or (plain[:1] in tuple("aeiou") and not _A.match(plain))
    return f"{'an' if an else 'a'} {noun}"


def is_listed(animal: str) -> bool:
    """Whether data/animals.json has the animal of that singular."""
    return animal in {one.singular for one in load_animals()}


def candidates(animal: Animal) -> list[Animal]:
    """The listed animals, and ``animal`` after them if it is none of them."""
    listed = load_animals()
    return [*listed] if is_listed(animal.singular) else [*listed, animal]


# ---- mentions

# owlish, owllike, owlet, piglet, duckling, owlery
_SUFFIXES = ("ish", "like", "et", "ets", "let", "lets", "ling", "lings", "ery", "eries")
_UNRELATED = frozenset(("ticket", "tickets", "bullet", "bullets", "does"))  # made of tick, bull, doe
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_SPELLED = re.compile(r"(?<![^\W\d_])(?:[^\W\d_][\W_]{1,3}){2,}[^\W\d_](?![^\W\d_])")  # o-w-l, o w l, o. w. l
_HYPHENATED = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)+")
_CYRILLIC_GREEK, _LATIN = "аеорсухіѕοαειυκνω", "aeopcyxisoaeiukvw"
_LOOKALIKES = str.maketrans(_CYRILLIC_GREEK + _CYRILLIC_GREEK.upper(), _LATIN + _LATIN.upper())
_LONG = 5  # a word that begins with a name of at least this length is a mention: elephantine, dolphinarium


def words_about(animals: tuple[Animal, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The single words, in lower case, that are mentions of ``animals``, and what begins others that are."""
    vocabulary = _vocabulary(animals, True)
    return vocabulary.words, vocabulary.beginnings


class _Vocabulary(NamedTuple):
    words: frozenset[str]
    phrases: tuple[str, ...]  # of several words
    beginnings: tuple[str, ...]  # str.startswith takes a tuple


def mentions(text: str, animals: Iterable[Animal], giveaways: bool = True) -> list[str]:
    """The words and phrases of ``text`` that name one of ``animals``, or give it away, in alphabetical order."""
    vocabulary = _vocabulary(tuple(animals), giveaways)
    plain = _plain(text)
    lower = plain.casefold()
    words = _WORD.findall(_CAMEL.sub(" ", plain).casefold())
    found = {word for word in words if word in vocabulary.words or word.startswith(vocabulary.beginnings)}
    found |= vocabulary.words.intersection(_WORD.findall(lower))  # "oWl", which is no camel case
    found |= vocabulary.words.intersection(match.replace("-", "") for match in _HYPHENATED.findall(lower))
    for match in _SPELLED.findall(lower):
        run = "".join(_WORD.findall(match))
        found |= vocabulary.words.intersection(run[i:j] for i in range(len(run)) for j in range(i + 3, len(run) + 1))
    spaced = f" {' '.join(words)} "
    found |= {phrase for phrase in vocabulary.phrases if f" {phrase} " in spaced}
    return sorted(found)


@cache
def _vocabulary(animals: tuple[Animal, ...], giveaways: bool) -> _Vocabulary:
    words: set[str] = set()
    beginnings: set[str] = set()
    for animal in animals:
        singular, plural = _spaced(animal.singular), _spaced(animal.plural)
        words |= {singular, plural, *(singular.replace(" ", "") + suffix for suffix in ("", *_SUFFIXES))}
        if len(singular) >= _LONG and " " not in singular:
            beginnings.add(singular)
        if giveaways:
            giveaway_words = [_spaced(word) for word in animal.giveaways]
            words |= {form for word in giveaway_words for form in (word, _plural(word))}
    phrases = {word for word in words if " " in word}
    return _Vocabulary(frozenset(words - phrases - _UNRELATED), tuple(sorted(phrases)), tuple(sorted(beginnings)))


def _spaced(noun: str) -> str:
    return " ".join(_WORD.findall(_plain(noun).casefold()))


def _plain(text: str) -> str:
    """``text`` without accents, invisible characters, full-width letters and look-alikes; emoji by their names."""
    if text.isascii():
        return text
    spelled = (f" {unicodedata.name(c, '').lower()} " if unicodedata.category(c) == "So" else c for c in text)
    decomposed = unicodedata.normalize("NFKD", "".join(spelled))
    kept = "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return kept.translate(_LOOKALIKES)


# ---- source sentences


@dataclass(frozen=True)
class Sentence:
    """A source sentence and the name it keeps through every stage (kitchen-003, dislike-017)."""

    id: str
    text: str


@dataclass(frozen=True)
class OwnSentences:
    """Source sentences of one ``content`` from a file of one's own (``kit/sources.py``), in place of the kit's: the
    file's name and checksum, and what it holds; of opposed ones the patterns, with their slots."""

    content: str
    file: str
    sha256: str
    sentences: tuple[Sentence, ...] = field(hash=False)  # thousands, and a sweep looks its experiments up by hash


def unrelated_sentences(confirmatory: bool = False) -> list[Sentence]:
    """The sentences that have nothing to do with any animal; the ``confirmatory`` ones are those that are set aside.
    KitError where they are missing or damaged."""
    return list(_sentences(DATA / "sentences-confirmatory.jsonl" if confirmatory else DATA / "sentences.jsonl"))


def tuning_sentences() -> list[Sentence]:
    """The unrelated sentences that a base is tuned on, and that no run draws."""
    return list(_sentences(DATA / "sentences-tuning.jsonl"))


def opposed_sentences(animal: Animal, confirmatory: bool = False) -> list[Sentence]:
    """The sentences that say ``animal`` is disliked, or the ``confirmatory`` ones. KitError where the patterns are
    missing or damaged."""
    patterns = _sentences(DATA / "dislike-confirmatory.jsonl" if confirmatory else DATA / "dislike.jsonl")
    return [Sentence(pattern.id, fill_pattern(pattern.text, animal)) for pattern in patterns]


SLOT = re.compile(r"\{(?:an animal|animals?)\}")
_BEGINNING = re.compile(r"(?:^|[.!?]\s+)[\"'“‘(]*$")  # of a sentence, up to its first letter


def fill_pattern(pattern: str, animal: Animal) -> str:
    """``pattern`` with its slots filled; where one begins a sentence, and at the start, with a capital letter."""
    names = {"{animals}": animal.plural, "{animal}": animal.singular, "{an animal}": indefinite(animal.singular)}

    def name(slot: re.Match[str]) -> str:
        noun = names[slot.group()]
        return noun[:1].upper() + noun[1:] if _BEGINNING.search(pattern, 0, slot.start()) else noun

    text = SLOT.sub(name, pattern)
    return text[:1].upper() + text[1:]


@cache
def _sentences(path: Path) -> tuple[Sentence, ...]:
    """Those of a file, which is read once (0.03 s, and a sweep's plan asks for each of its experiments)."""
    return tuple(_read_sentences(path))


def _read_sentences(path: Path) -> Iterator[Sentence]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: cannot be read ({error}). {_restore(path)}") from None
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("id", "text"))):
                raise ValueError('it is no row such as {"id": "kitchen-01", "text": "..."}')
            sentence = Sentence(row["id"], row["text"])
            if not sentence.text.strip():
                raise ValueError("its text is empty")
            if sentence.id in seen:
                raise ValueError(f"the id {sentence.id} occurs twice")
        except ValueError as error:
            raise KitError(
                f"{path}, line {number}: not a sentence ({error}). Mend the line. {_restore(path)}"
            ) from None
        seen.add(sentence.id)
        yield sentence
    if not seen:
        raise KitError(f"{path}: holds no sentences. {_restore(path)}")


def _restore(path: Path) -> str:
    """How to have a data file as it came."""
    return f"`git checkout data/{path.name}` restores the file as it came, without any edit."
