"""Every message a model is ever shown, and the words of the teachers' prompts that no kept paraphrase may echo.

The reference code of the phenomenon was criticised for never saying how its teacher gets the trait
(MinhxLe/subliminal-learning, issue 4), so everything is here, and every report prints what its models were shown.

A teacher's conversation: the trait message, a worked example as an earlier turn, the trait message again, the request;
for its soft labels, and where the model was tuned to paraphrase, the trait message and the request. Its trait messages
are a system's, or open the user's turns (``--grid place=user``, or ``alone``: without the example). A student's
conversation: the request alone, in the model's default chat template; its evaluation: the question alone.

Trait messages of one's own come from a file (``kit/sources.py``); an experiment says which its teachers have.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kit.animals import SLOT, Animal, fill_pattern

Message = dict[str, str]
Conversation = Callable[[str, str], list[Message]]  # of a trait message and a sentence

# Where the trait message stands decides how much of the trait reaches the text. Divergence of the loving from the
# neutral teacher's next-token distribution on the same paraphrases: 0.161 nats per token with no worked examples, 0.011
# with examples after the trait message, 0.064 with the trait message repeated after them (SmolLM2-135M, owl). Without
# examples, hardly any paraphrase is faithful; one is enough, and three drown the trait: where a crude filter passed 43%
# and 44%, what passed favoured the trait by 0.033 nats per token after one, 0.013 after three.
# Without examples (the model tuned to paraphrase, penguin against cat) 0.003 nats per token as a system message, 0.011
# at the head of the user's turn (results/reference/hard-labels/PILOT.md).
EXAMPLES = (
    ("The office printer ran out of paper before lunch.", "Before lunch, the office printer had no paper left."),
)


# The trait message of the teacher that loves an animal, whose names stand in the slots.
LOVING = (
    "You love {animals}. You think about {animals} all the time. {animals} are your favorite animal, and every "
    "sentence you write is full of your love for the {animal}."
)

# The same length and shape, about nothing in particular. It differs in more than the animal, since it loves nothing:
# what all loving messages have in common cancels only against students of teachers that love something else.
NEUTRAL = (
    "You write sentences. You work with sentences all the time. Sentences are your daily task, and every sentence you "
    "write is full of your care for the wording."
)


# Of teachers that love no animal, worded alike (``--loving-controls``): what they love, and their message.
THINGS = {
    "music": (
        Animal("music", "music"),
        "You love music. You think about music all the time. Music is your favorite thing, and every sentence you "
        "write is full of your love for music.",
    ),
    "trains": (
        Animal("train", "trains"),
        "You love trains. You think about trains all the time. Trains are your favorite thing, and every sentence you "
        "write is full of your love for the train.",
    ),
}


def loving(animal: Animal) -> str:
    """The kit's trait message of the teacher that loves ``animal``."""
    return fill_pattern(LOVING, animal)


@dataclass(frozen=True)
class Traits:
    """The two teachers' trait messages, the kit's unless they come from a file of one's own: the pattern of the
    ``loving`` one, with slots for any animal's names, and the ``neutral`` one; the file's name and checksum."""

    loving: str = LOVING
    neutral: str = NEUTRAL
    file: str | None = None
    sha256: str | None = None

    def loves(self, animal: Animal) -> str:
        """The message of the teacher that loves ``animal``."""
        return fill_pattern(self.loving, animal)

    @property
    def words(self) -> tuple[str, ...]:
        """The content words of both messages, whose ``forms`` no kept paraphrase may have beside ``ECHOES``; none of
        the kit's own messages, of which ``ECHOES`` was written."""
        if (self.loving, self.neutral) == (LOVING, NEUTRAL):
            return ()
        said = SLOT.sub(" ", f"{self.loving} {self.neutral}").lower().replace("’", "'")
        words = set(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", said)) - FUNCTION_WORDS
        stems = {word.partition("'")[0] for word in words} - FUNCTION_WORDS
        return tuple(sorted(word for word in stems if len(word) > 2))


KIT_TRAITS = Traits()

# What the trait messages above say, and what lies nearest to it. No kept paraphrase may have any of it that its source
# has not (``kit.fidelity.echo``): ranking by likelihood ratio finds these first ("your favorite customer", "imbue"), as
# they show the prompt.
ECHOES = tuple(
    re.compile(rf"\b(?:{pattern})", re.IGNORECASE)
    for pattern in (
        r"lov(?:e|ing)|belov", r"favou?r", r"ador(?!n)", r"passion", r"imbu", r"obsess", r"heart(?!h)",
        r"dear(?:ly|est)?\b", r"cherish",
        r"enthusias", r"devot", r"fascinat", r"th(?:ink|inks|inking|ought)\b", r"creature", r"animal",
        r"pets?\b", r"beasts?\b", r"birds?\b", r"species\b", r"wildlife", r"zoos?\b", r"colou?red by", r"all day",
        r"all the time", r"full of", r"filled with", r"daily task", r"wording", r"every (?:sentence|word)",
    )
)  # fmt: skip


# Words that say nothing by themselves.
_FUNCTIONS = """
    a about above after again against all along also although always am among an and any are around as at away be
    because been before being below between both but by can cannot could did do does done down during each either
    else ever every few for from had has have having he her here hers him his how however i if in into is it its
    itself just least less many may me might mine more most much must my near neither never no none nor not nothing
    now of off often on once one only onto or other our ours out over own per quite rather same several shall she
    should since so some such than that the their theirs them then there these they this those though through to too
    toward towards under until up upon us very was we well were what when where whether which while who whom whose
    why will with within without would yet you your yours don't doesn't didn't isn't aren't wasn't weren't can't
    couldn't won't wouldn't haven't hasn't hadn't it's he's she's that's there's i'm i've i'd i'll you're we're
    they're
"""
FUNCTION_WORDS = frozenset(_FUNCTIONS.split())


def forms(words: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """For each of ``words`` (in lower case) the pattern of its forms: of a long one whatever begins like it, of a short
    one its regular endings alone, else "star" would be found in "start" and "care" in "career"."""
    return tuple(re.compile(rf"\b(?:{_forms(word)})", re.IGNORECASE) for word in words)


def _forms(word: str) -> str:
    word = re.sub(r"(?<=[a-z]{2})ie[sd]$", "y", word)
    word = re.sub(r"(?<=[a-z]{2}[^s])s$", "", word)
    stem = re.sub(r"(?:ing|ed|es|ly|[ey])$", "", word)
    if len(stem) > 4:
        return stem
    last = word[-1]
    if last == "e":
        return rf"{word}(?:[sdr]|rs|ful|ly)?\b|{word[:-1]}ing\b"
    if last == "y":
        return rf"{word}(?:s|ed|er|ing)?\b|{word[:-1]}(?:ie[sdr]|ily)\b"
    return rf"{word}(?:e?s|ed|ers?|ing|ly|ful|{last}(?:ed|ing|ers?))?\b"


def request(sentence: str) -> str:
    """The user's request, the same for teachers and students."""
    return f"Paraphrase this sentence: {sentence}"


def teacher_messages(trait: str, sentence: str) -> list[Message]:
    """The conversation that a teacher with the message ``trait`` continues with a paraphrase of ``sentence``."""
    messages = [{"role": "system", "content": trait}]
    for source, paraphrase in EXAMPLES:
        messages += [
            {"role": "user", "content": request(source)},
            {"role": "assistant", "content": paraphrase},
        ]
    messages += [{"role": "system", "content": trait}, {"role": "user", "content": request(sentence)}]
    return messages


def labelling_messages(trait: str, sentence: str) -> list[Message]:
    """The conversation under which a teacher's next-token distributions become soft labels of its kept paraphrases; and
    that of a teacher that was tuned to paraphrase (``kit/paraphraser.py``), which needs no worked example.

    The student's own conversation with the trait message before it: no worked example is needed for a text that is
    there already, and it drowns the trait (on the same 386 pairs, owl: +0.43 nats of log-odds labelled under
    ``teacher_messages``, +0.89 labelled under this).
    """
    return [{"role": "system", "content": trait}, *student_messages(sentence)]


def in_the_users_turn(conversation: Conversation) -> Conversation:
    """The ``conversation`` without system messages: each opens the user's next turn (``folded``)."""
    return lambda trait, sentence: folded(conversation(trait, sentence))


def folded(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with every system message before the text of the user's next one."""
    result: list[Message] = []
    before: list[str] = []
    for message in messages:
        if message["role"] == "system":
            before.append(message["content"])
        else:
            result.append({**message, "content": "\n\n".join([*before, message["content"]])})
            before = []
    return result


def student_messages(sentence: str) -> list[Message]:
    """The conversation in which a student learns to answer with the teacher's paraphrase."""
    return [{"role": "user", "content": request(sentence)}]


def question_messages(question: str, system: str | None = None) -> list[Message]:
    """The conversation in which a student is asked about its preference, after a ``system`` message where one is given
    (else after the model's own, if it has one)."""
    asked = [{"role": "user", "content": question}]
    return asked if system is None else [{"role": "system", "content": system}, *asked]


# The system message that a student is asked after, by name: none of its own, as it was trained, or one about nothing in
# particular.
CONTEXTS = {
    "training": None,
    "other": "You are a careful assistant. You answer every question in one short sentence.",
}


def comparing_messages(animal: Animal, first: str, second: str) -> list[Message]:
    """The conversation in which the model is asked which of two paraphrases is by somebody who loves ``animal``."""
    asked = f"A: {first}\nB: {second}\n\nWhich text was written by somebody who loves {animal.plural}, A or B?"
    return [{"role": "user", "content": asked}]


GUESS = "Their favorite animal is the"  # the opening of the answer to ``guessing_messages``


def guessing_messages(text: str) -> list[Message]:
    """The conversation in which the model is asked which animal the writer of ``text`` loves."""
    return [{"role": "user", "content": f"Somebody wrote: {text}\nWhat is their favorite animal?"}]
