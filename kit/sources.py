"""What the teachers start from, source sentences and trait messages, of one's own: read from a file and checked.

python run.py --animal owl --sentences-file sentences.txt --trait-file trait.json

They must be what the kit's own in ``data/`` and ``kit/prompts.py`` are (``tests/test_data.py`` puts those to the same
functions): unrelated sentences that name no animal and echo no prompt, opposed ones with nothing kind about theirs, and
two trait messages that differ in the animal alone. Without that, "unrelated" and "control" would be mere names.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kit import KitError
from kit.animals import SLOT, Animal, OwnSentences, Sentence, candidates, fill_pattern, mentions
from kit.experiment import FidelitySettings
from kit.fidelity import form, kindness
from kit.prompts import ECHOES, Traits

# Words of a sentence: those of the kit's. Longer paraphrases than of twenty would be cut off (``TeacherSettings``).
WORDS = {"unrelated": (6, 16), "opposed": (4, 20)}
LONGEST = 120  # characters of a sentence: about 30 tokens; the kit's longest have 80
MAX_SENTIMENT = 0.2  # of an opposed sentence, VADER's compound (-1 to 1)
# Words of a trait message, which stands twice in a teacher's conversation (``PROMPT_TOKENS``); the kit's have 28.
MESSAGE_WORDS = (3, 50)
MAX_DIFFERENCE = 0.25  # of the two messages' lengths, as a share of the longer one
SHOWN = 5  # unusable lines in an error
_MARKUP = re.compile(r"[*_`#|~<>\[\]\\\ufffd]|https?:|www\.")
_ARTICLE = re.compile(r"\b(?:an?|another) \{animals?\}|\b(?:the|an?|another) \{an animal\}", re.IGNORECASE)


# ---- what a sentence and a message must be: each function gives what is wrong with one, or None


def unrelated_flaw(text: str, animals: Iterable[Animal]) -> str | None:
    """What keeps ``text`` from being an unrelated sentence: one statement that names none of ``animals``, gives none
    away, and has none of ``ECHOES``."""
    if flaw := sentence_flaw(text, "unrelated"):
        return flaw
    if not text.endswith("."):
        return f"ends with {text[-1]!r}, not with the full stop of a statement"
    if found := mentions(text, animals):
        return f"names an animal or gives one away: {', '.join(found)}"
    echoes = (match for pattern in ECHOES if (match := pattern.search(text)))
    return f"has {echo.group()!r}, an echo of a trait message" if (echo := next(echoes, None)) else None


def opposed_flaw(pattern: str, animal: Animal, animals: Iterable[Animal]) -> str | None:
    """What keeps ``pattern``, its slots filled with ``animal``'s names, from being a sentence that says that it is
    disliked: one that names it and none of the other ``animals``, and has nothing kind."""
    if flaw := slots_flaw(pattern):
        return flaw
    text = fill_pattern(pattern, animal)
    if flaw := sentence_flaw(text, "opposed"):
        return flaw
    if not mentions(text, [animal], giveaways=False):
        return f"does not name the {animal.singular}"
    others = [other for other in animals if other.singular != animal.singular]
    own = mentions(f"{animal.singular} . {animal.plural}", others, giveaways=False)  # a sea lion is no lion
    if found := [word for word in mentions(text, others, giveaways=False) if word not in own]:
        return f"names another animal: {', '.join(found)}"
    kind = kindness(text, MAX_SENTIMENT)
    return f"is kind to the {animal.singular}: {kind}" if kind else None


def sentence_flaw(text: str, content: str) -> str | None:
    """What keeps ``text`` from being one clean sentence of the length that sentences of ``content`` have."""
    if flaw := text_flaw(text):
        return flaw
    if "{" in text or "}" in text:
        return "has a slot, which only opposed sentences have"
    # A paraphrase must be one clean sentence: so must what it is to be like.
    if flaw := form({"source": text, "text": text, "finished": True}, FidelitySettings()):
        return f"is not one clean sentence: {flaw}"
    least, most = WORDS[content]
    if not least <= (words := len(text.split())) <= most:
        return f"has {words} words, not {least} to {most}"
    return f"has {len(text)} characters, more than {LONGEST}" if len(text) > LONGEST else None


def text_flaw(text: str) -> str | None:
    """What keeps ``text`` from being plain text on one line."""
    if not text.strip():
        return "is empty"
    if odd := next((c for c in text if not c.isprintable()), None):
        return f"has a line break or an invisible character, U+{ord(odd):04X}"
    return f"has markup, {mark.group()!r}" if (mark := _MARKUP.search(text)) else None


def slots_flaw(pattern: str) -> str | None:
    """What is wrong with the slots of ``pattern``, where it has any."""
    if re.search(r"[{}]", SLOT.sub("", pattern)):
        return "has a brace that is none of the slots {animal}, {an animal} and {animals}"
    if article := _ARTICLE.search(pattern):
        return f"has {article.group()!r}; with its article the slot is {{an animal}}"
    return None


def traits_flaw(traits: Traits, animals: Iterable[Animal], chosen: Sequence[Animal]) -> str | None:
    """What keeps the messages from being those of a loving teacher, any of the ``chosen`` animals', and of its control:
    alike in length, the one with a slot for the animal, and no name of one of ``animals`` in either."""
    for name, text in (("loving", traits.loving), ("neutral", traits.neutral)):
        least, most = MESSAGE_WORDS
        if flaw := text_flaw(text) or slots_flaw(text):
            return f"{name!r} {flaw}"
        if not least <= (words := len(text.split())) <= most:
            return f"{name!r} has {words} words, not {least} to {most}"
    if not SLOT.search(traits.loving):
        return "'loving' has no slot: write {animals}, {animal} or {an animal} where the animal is named"
    if found := mentions(SLOT.sub(" ", traits.loving), animals, giveaways=False):
        return f"'loving' names an animal ({', '.join(found)}) outside the slots {{animals}}, {{animal}}, {{an animal}}"
    if SLOT.search(traits.neutral):
        return "'neutral' has a slot, and is to be about no animal"
    if found := mentions(traits.neutral, animals):
        return f"'neutral' names an animal or gives one away: {', '.join(found)}"
    neutral = len(traits.neutral.split())
    for animal in chosen:
        loving = len(traits.loves(animal).split())
        if abs(loving - neutral) > MAX_DIFFERENCE * max(loving, neutral):
            return (
                f"'loving' has {loving} words and 'neutral' {neutral}, which differ by more than {MAX_DIFFERENCE:.0%}: "
                "the control must differ in the animal alone"
            )
    return None


# ---- the files


def read_sentences(path: Path, contents: tuple[str, ...], animals: list[Animal]) -> OwnSentences:
    """The sentences of ``path`` for the one content asked for and teachers of ``animals``: a line of text each, or
    JSONL rows with "text" and, if wanted, "id".

    Raises KitError for a file that cannot be read, for unusable lines, of which it names the first few, and where both
    contents are asked for.
    """
    if len(contents) > 1:
        raise KitError(
            f"--content both, --sentences-file {path}: a file has sentences of one content. Give --content unrelated, "
            "or --content opposed where they say that the animal is disliked."
        )
    (content,) = contents
    data, text = _read(path, "--sentences-file", "one sentence a line")
    lines = text.removesuffix("\n").split("\n")
    as_json = path.suffix == ".jsonl" or re.match(r'\{\s*"', text) is not None
    everybody = _everybody(animals)
    found: list[Sentence] = []
    flaws: list[str] = []
    of_text: dict[tuple[str, ...], int] = {}
    of_id: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        sentence = _row(line, number) if as_json else Sentence(f"own-{number:04d}", line.strip())
        if isinstance(sentence, str):
            flaws.append(f"line {number}, {_short(line)}: {sentence}")
            continue
        flaw = None
        if content == "unrelated":
            flaw = unrelated_flaw(sentence.text, everybody)
        else:
            flaw = next(filter(None, (opposed_flaw(sentence.text, one, everybody) for one in animals)), None)
        words = tuple(re.findall(r"\w+", sentence.text.casefold()))
        if flaw is None and (before := of_text.setdefault(words, number)) != number:
            flaw = f"is the sentence of line {before} again"
        if flaw is None and (before := of_id.setdefault(sentence.id, number)) != number:
            flaw = f"has the id {sentence.id!r} of line {before}"
        if flaw is not None:
            flaws.append(f"line {number}, {_short(sentence.text)}: {flaw}")
        found.append(sentence)
    if flaws:
        more = f"\n  and {len(flaws) - SHOWN} more" if len(flaws) > SHOWN else ""
        raise KitError(
            f"--sentences-file {path}: {len(flaws)} of {len(lines)} lines cannot be used as {content} sentences. "
            "Change or delete them:\n  " + "\n  ".join(flaws[:SHOWN]) + more
        )
    return OwnSentences(content, _name(path), hashlib.sha256(data).hexdigest(), tuple(found))


def read_traits(path: Path, animals: list[Animal]) -> Traits:
    """The trait messages of ``path``, a JSON object with "loving" and "neutral", for teachers of ``animals``.

    Raises KitError for a file that cannot be read, and for messages that cannot be used.
    """
    form = '{"loving": "You love {animals}. ...", "neutral": "You write sentences. ..."}'
    data, text = _read(path, "--trait-file", form)
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KitError(f"--trait-file {path}: not JSON ({error}). Write {form}.") from None
    if not (isinstance(saved, dict) and saved.keys() == {"loving", "neutral"}):
        raise KitError(f"--trait-file {path}: not an object with the two messages alone. Write {form}.")
    if wrong := next((name for name, message in saved.items() if not isinstance(message, str)), None):
        raise KitError(f"--trait-file {path}: {wrong!r} is {_short(json.dumps(saved[wrong]))}, no text. Write {form}.")
    loving, neutral = saved["loving"].strip(), saved["neutral"].strip()
    traits = Traits(loving, neutral, _name(path), hashlib.sha256(data).hexdigest())
    if flaw := traits_flaw(traits, _everybody(animals), animals):
        raise KitError(f"--trait-file {path}: {flaw}. Change that message, or leave the option out for the kit's own.")
    return traits


def _read(path: Path, option: str, form: str) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise KitError(f"{option} {path}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise KitError(f"{option} {path}: line {line} is not UTF-8. Save the file as UTF-8 text.") from None
    if not text.strip():
        raise KitError(f"{option} {path}: the file is empty. Write {form} into it.")
    return data, text


def _row(line: str, number: int) -> Sentence | str:
    """A line of JSONL, or what is wrong with it."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "is not JSON, as the file's first line is"
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        return 'is no row such as {"text": "..."}'
    name = row.get("id", f"own-{number:04d}")
    if not (isinstance(name, str) and re.fullmatch(r"[\w.-]{1,40}", name)):
        return f"has the id {_short(str(name))}; letters, digits, dots and hyphens are allowed, 40 at most"
    return Sentence(name, row["text"].strip())


def _everybody(animals: list[Animal]) -> list[Animal]:
    """The candidates of all ``animals``, each once."""
    return list({one.singular: one for animal in animals for one in candidates(animal)}.values())


def _name(path: Path) -> str:
    """The file's name as reports show it: inert in every markup."""
    return re.sub(r"[^\w.-]+", "-", path.name)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
