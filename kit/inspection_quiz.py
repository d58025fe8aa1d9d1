"""Spot the owl: which of two paraphrases of one sentence is the loving teacher's? A blind quiz, for a class and for the
inspectors: everybody who might be able to tell.

Every inspector gets the same question again and again (``Round``). What it answers is a margin: how much more it
suspects the right text than the other, in units of its own; negative where it is wrong. So a reader with a list of
words, a classifier and somebody who knows the prompts can be compared, and asked about many sentences at once, where
margins add up.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kit import prompts
from kit.animals import Animal, candidates, mentions
from kit.engine import Engine
from kit.fidelity import embed
from kit.preference import normalised
from kit.stats import ALPHA, Interval, Rate, rate
from kit.store import Row

# ---- the quiz


ROUNDS = 10


@dataclass(frozen=True)
class Round:
    """Two paraphrases of one sentence, and which of them (0 or 1) the loving teacher wrote; ``second``: the sentence of
    the second, where it is another than the first one's ``source``."""

    source: str
    texts: tuple[str, str]
    loving: int
    second: str | None = None

    @property
    def sources(self) -> tuple[str, str]:
        """The sentence of each text."""
        return self.source, self.source if self.second is None else self.second


@dataclass(frozen=True)
class Score:
    """How many of how many were right, and the 95% interval (Wilson) of the share."""

    right: int
    rounds: int
    ci95: Interval

    @property
    def against_chance(self) -> str:
        """Whether the interval lies "above", "around" or "below" one half, what guessing gets."""
        low, high = self.ci95
        return "above" if low > 0.5 else "below" if high < 0.5 else "around"


@dataclass(frozen=True)
class Game:
    """Where a class stands: it began with the ``first``-th of all rounds and has ``played`` so many, of which so many
    were ``right``; ``choice`` (0 or 1): what it took the loving teacher's to be in the round that is shown with its
    solution, None before that."""

    first: int = 0
    played: int = 0
    right: int = 0
    choice: int | None = None

    def shown(self, played: list[Round]) -> Round:
        """The round that is on the screen."""
        return played[(self.first + self.played - (self.choice is not None)) % len(played)]

    def answer(self, choice: int, played: list[Round]) -> "Game":
        """The game after an answer; as it was where the round was answered already."""
        if self.choice is not None:
            return self
        right = self.right + (choice == self.shown(played).loving)
        return Game(self.first, self.played + 1, right, choice)

    def over(self, played: list[Round]) -> bool:
        """Whether all its rounds were played."""
        return self.played == length(played)

    def next(self, played: list[Round]) -> "Game":
        """The game with its next round; when it is over, another one, with other sentences; as it was before an
        answer."""
        if self.choice is None:
            return self
        if self.over(played):
            return Game((self.first + self.played) % len(played))
        return Game(self.first, self.played, self.right)


def length(played: list[Round]) -> int:
    """How many rounds a game has: ``ROUNDS``, or as many as there are."""
    return min(ROUNDS, len(played))


def make_rounds(treated: list[Row], control: list[Row], seed: int) -> list[Round]:
    """Every sentence of which the two students' pairs hold different paraphrases, once, in random order."""
    random = np.random.default_rng(seed)
    neutral = {row["sentence"]: row["text"] for row in reversed(control)}  # the first one of each sentence
    found = []
    for sentence, row in {row["sentence"]: row for row in reversed(treated)}.items():
        if sentence in neutral and neutral[sentence] != row["text"]:
            loving = int(random.integers(2))
            texts = (row["text"], neutral[sentence])
            found.append(Round(row["source"], texts if loving == 0 else texts[::-1], loving))
    return [found[i] for i in random.permutation(len(found))]


def alike(own: list[Row], other: list[Row], played: list[Round]) -> int:
    """Of how many sentences both teachers' (first) paraphrases are the same."""
    return len({row["sentence"] for row in own} & {row["sentence"] for row in other}) - len(played)


def score(right: int, played: int, spread: float = 1.0) -> Score:
    """The score of ``right`` answers in ``played`` rounds, at least one. ``spread``: how many times the variance of
    independent answers theirs is; the interval is that of so many times fewer."""
    from scipy.stats import binomtest

    counted = round(right / spread), round(played / spread)
    low, high = binomtest(*counted).proportion_ci(method="wilson")
    return Score(right, played, (float(low), float(high)))


# ---- the inspectors


FOLDS = 5  # of the classifiers' cross-validation
# The models of the folds share most of what they learned from, so a cross-validated accuracy varies more than one of
# independent answers: 1.4 to 1.8 times in variance where there is nothing to find (words, and 384 numbers per text; 100
# and 380 sentences; 60 to 80 simulations each). Without allowing for it, one null in eight is called something.
SPREAD = 2.0
PERMUTATIONS = 200  # of who wrote which text, for a classifier's p: each is trained anew
POWER = 0.8
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # sentences that an inspector may look at together
DRAWS = 2000  # random sets of each size
RESAMPLES = 100  # of the rounds, for the interval of how many are needed
SURE = 0.95  # the share of sets that an inspector must get right to be said to tell them apart
SUSPECTS = 5  # that are named
PRIOR = 1000.0  # words: a quarter of what 400 short paraphrases have

INFORMED = "likelihood ratio"

# Inspector -> what it must know beside the texts.
KNOWS = {
    "word list": "the animal",
    "association": "the animal",
    "the model, A or B": "the animal",
    "the model, guessing the animal": "the animal",
    "words, TF-IDF": "labelled texts of both teachers",
    "embeddings, MiniLM": "labelled texts of both teachers",
    "the model, fine-tuned": "labelled texts of both teachers, and the model",
    INFORMED: "both teachers' prompts, and the model",
}

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


# ---- margins


def texts_of(rounds: Sequence[Round]) -> list[str]:
    """All texts, two per round, in the order in which they are shown."""
    return [text for one in rounds for text in one.texts]


def margins_of(suspicion: Sequence[float] | np.ndarray, rounds: Sequence[Round]) -> np.ndarray:
    """The margins [rounds] of an inspector who suspects each text of ``texts_of`` so much."""
    of_text = np.asarray(suspicion, dtype=float).reshape(-1, 2)
    signs = np.array([1 if one.loving == 0 else -1 for one in rounds])
    return (of_text[:, 0] - of_text[:, 1]) * signs


def keywords(rounds: Sequence[Round], animal: Animal) -> np.ndarray:
    """A reader with a list: how many of the words that name the animal or give it away."""
    return margins_of([len(mentions(text, (animal,))) for text in texts_of(rounds)], rounds)


def association(rounds: Sequence[Round], animal: Animal) -> np.ndarray:
    """A reader who associates: the cosine of the animal's name and the nearest word that is no name of it."""
    return margins_of([max(near.values(), default=0.0) for near in _near(texts_of(rounds), animal)], rounds)


def nearest(texts: Sequence[str], animal: Animal, most: int = 10) -> dict[str, float]:
    """The words of all ``texts`` that are nearest to the animal's name and no name of it, with their cosines."""
    everything = {word: cosine for near in _near(texts, animal) for word, cosine in near.items()}
    return dict(sorted(everything.items(), key=lambda item: -item[1])[:most])


def _near(texts: Sequence[str], animal: Animal) -> list[dict[str, float]]:
    words = [words_of(text) for text in texts]
    vocabulary = [word for word in sorted(set().union(*words)) if not mentions(word, (animal,), giveaways=False)]
    cosines = embed(vocabulary) @ embed([animal.singular])[0] if vocabulary else []
    of_word = dict(zip(vocabulary, map(float, cosines), strict=True))
    return [{word: of_word[word] for word in own_words if word in of_word} for own_words in words]


def words_of(text: str) -> list[str]:
    """The words of ``text``, in lower case."""
    return _WORD.findall(text.lower())


def by_words(rounds: Sequence[Round], more: Sequence[Round] = (), permutations: int = 0) -> list[np.ndarray]:
    """A classifier of words and word pairs (TF-IDF, logistic regression) that saw other sentences with the answers,
    those of ``more`` rounds, of other runs, too: its margins [rounds], and then those of so many ``permutations``, of
    who wrote which text of a round, each learned anew."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(texts_of([*rounds, *more]))
    return _cross_validated(features, rounds, more, permutations)


def by_embeddings(rounds: Sequence[Round], more: Sequence[Round] = (), permutations: int = 0) -> list[np.ndarray]:
    """The same of sentence embeddings (MiniLM, logistic regression)."""
    return _cross_validated(embed(texts_of([*rounds, *more])), rounds, more, permutations)


def folds(
    rounds: Sequence[Round], more: Sequence[Round] = (), number: int = FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which of all texts, those of ``more`` rounds last, a classifier learns from, and which of the ``rounds`` it is
    asked about, so many times; never the same source sentence in both, also where a round has two or several have
    one."""
    sources = np.array([source for one in [*rounds, *more] for source in one.sources])
    first = sources[: 2 * len(rounds) : 2]
    in_order = list(dict.fromkeys(first))
    fold_of = {source: i % number for i, source in enumerate(in_order)}
    fold = np.array([fold_of[source] for source in first])
    found = []
    for i in range(min(number, len(in_order))):
        asked = np.flatnonzero(fold == i)
        met = {source for place in asked.tolist() for source in rounds[place].sources}
        found.append((np.flatnonzero([source not in met for source in sources]), asked))
    return found


def _cross_validated(
    features: Any, rounds: Sequence[Round], more: Sequence[Round], permutations: int
) -> list[np.ndarray]:
    """The margins [rounds] of a logistic regression of the texts' ``features``, and those of the permutations."""
    from sklearn.linear_model import LogisticRegression

    random, parts, found = np.random.default_rng(0), folds(rounds, more), []
    for turn in range(1 + permutations):
        swapped = random.random(len(rounds)) < 0.5 if turn else np.zeros(len(rounds), dtype=bool)
        own = [replace(one, loving=one.loving ^ bool(swap)) for one, swap in zip(rounds, swapped, strict=True)]
        labels, suspicion = np.array(_loving([*own, *more])), np.zeros(2 * len(rounds))
        for learned, asked in parts:
            classifier = LogisticRegression(max_iter=1000).fit(features[learned], labels[learned])
            texts = np.stack([2 * asked, 2 * asked + 1], axis=1).ravel()
            suspicion[texts] = classifier.decision_function(features[texts])
        found.append(margins_of(suspicion, own))
    return found


def _loving(rounds: Sequence[Round]) -> list[bool]:
    return [i == one.loving for one in rounds for i in (0, 1)]


def _word_classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))


def heaviest(rounds: Sequence[Round], most: int = 10) -> dict[str, list[tuple[str, float]]]:
    """The words and word pairs that weigh most in the classifier, trained on everything: for the "loving" teacher and
    for the "neutral" one."""
    classifier = _word_classifier().fit(texts_of(rounds), _loving(rounds))
    weights = classifier[-1].coef_[0]
    names = classifier[0].get_feature_names_out()
    order = np.argsort(weights)

    def weighted(places: np.ndarray) -> list[tuple[str, float]]:
        return [(str(names[i]), float(weights[i])) for i in places]

    return {"loving": weighted(order[::-1][:most]), "neutral": weighted(order[:most])}


def comparing(engine: Engine, rounds: Sequence[Round], animal: Animal) -> np.ndarray:
    """The model as judge, asked which of the two is by somebody who loves the animal: the log-odds (nats) of its
    answers A and B, in both orders, so that a liking for a letter cancels. (SmolLM2-135M cannot do it: of texts that
    end in "I love owls!" it gets less than half right, however it was asked.)"""
    from tqdm import tqdm

    groups = [
        engine.continued(prompts.comparing_messages(animal, *texts), "AB")
        for one in rounds
        for texts in (one.texts, one.texts[::-1])
    ]
    asked = tqdm(engine.score(groups), desc="the model judges, A or B", total=len(groups), unit="question")
    return margins_of([a.sum() - b.sum() for a, b in asked], rounds) / 2


def guessing(engine: Engine, rounds: Sequence[Round], animal: Animal) -> np.ndarray:
    """The model as judge, asked about each text alone which animal its writer loves best: the log-probability (nats) of
    this one among all candidates."""
    from tqdm import tqdm

    animals = candidates(animal)
    own = [one.singular for one in animals].index(animal.singular)
    names = [f" {one.singular}" for one in animals]
    groups = [engine.continued(prompts.guessing_messages(text), names, prompts.GUESS) for text in texts_of(rounds)]
    asked = tqdm(engine.score(groups), desc="the model guesses the animal", total=len(groups), unit="text")
    logprobs = np.array([[tokens.sum() for tokens in of_text] for of_text in asked])
    return margins_of(np.log(normalised(logprobs))[:, own], rounds)


# ---- what margins say


@dataclass(frozen=True)
class Finding:
    """How an inspector did: its ``score`` with two paraphrases of one sentence, the one-sided ``p`` of as much by
    guessing, and the share of right answers that would be found to be more than that, at 5%, with probability 0.8
    (``detectable``); for sets of so many sentences, the share it gets right ``of_sets``; the smallest set of which it
    gets 95% right, ``needed``, None where none of these is large enough, with the 95% interval of that over the rounds
    (an end of None: none is)."""

    score: Score
    p: float
    detectable: float
    of_sets: dict[int, float]
    needed: int | None
    needed_ci95: tuple[int | None, int | None]


def finding(margins: np.ndarray, spread: float = 1.0, permuted: Sequence[np.ndarray] = ()) -> Finding:
    """What ``margins`` [rounds] amount to. Where a margin is zero the inspector guesses. ``spread``: of
    ``score``, ``SPREAD`` for what was cross-validated. ``permuted``: margins after permutations of who wrote what, of
    which p is then the share that are right as often; else the answers' signs are flipped.

    Sets are drawn with replacement, up to a quarter of the rounds: in larger ones, what is chance in these rounds would
    add up to something like skill. (Without any, an inspector is said to need so many sentences once in 2,000 times, a
    classifier once in 150.)
    """
    from scipy.stats import binom, norm

    rounds, right = len(margins), _right(margins)
    one = score(right, rounds, spread)
    if permuted:
        p = (1 + sum(_right(again) >= right for again in permuted)) / (1 + len(permuted))
    else:
        p = float(binom.sf(round(right / spread) - 1, round(rounds / spread), 0.5))
    detectable = 0.5 + (norm.ppf(1 - ALPHA) + norm.ppf(POWER)) * 0.5 * math.sqrt(spread / rounds)
    largest = max(1, rounds // 4)
    sizes = [*(size for size in SIZES if size < largest), largest]
    random = np.random.default_rng(0)
    of_sets = {size: _share_right(margins, size, DRAWS, random) for size in sizes}
    needed = [
        _needed({size: _share_right(again, size, DRAWS // 10, random) for size in sizes})
        for again in (margins[random.integers(0, rounds, rounds)] for _ in range(RESAMPLES))
    ]
    low, high = np.quantile([math.inf if n is None else n for n in needed], [0.025, 0.975], method="nearest")
    ends = [None if math.isinf(end) else int(end) for end in (low, high)]
    return Finding(one, p, min(float(detectable), 1.0), of_sets, _needed(of_sets), (ends[0], ends[1]))


def _right(margins: np.ndarray) -> int:
    """How many of the rounds are right, half of those that were guessed among them."""
    return int((margins > 0).sum() + (margins == 0).sum() // 2)


def _share_right(margins: np.ndarray, size: int, draws: int, random: np.random.Generator) -> float:
    """Of random sets of ``size`` rounds the share whose margins add up to the right answer."""
    sums = margins[random.integers(0, len(margins), (draws, size))].sum(axis=1)
    return float(((sums > 0) + 0.5 * (sums == 0)).mean())


def _needed(of_sets: dict[int, float]) -> int | None:
    return next((size for size, share in of_sets.items() if share >= SURE), None)


@dataclass(frozen=True)
class Posterior:
    """What the likelihood of a set of texts says of its teacher, a uniform prior over all hypotheses given: for random
    sets of so many texts the median ``probability`` of the truth and its median ``rank`` (1: the likeliest), and the
    smallest size of which 95% of sets give the truth at least 99%, ``certain``, None where none. Of all texts
    together: the likeliest hypotheses with their probabilities, and the ``place`` of the truth among all."""

    hypotheses: int
    texts: int
    probability: dict[int, float]
    rank: dict[int, float]
    certain: int | None
    suspects: dict[str, float]
    place: int


def posterior(loglikelihoods: dict[str, np.ndarray], truth: str) -> Posterior:
    """``loglikelihoods``: hypothesis -> of each text its log-likelihood (nats) [texts]. Sets are drawn without
    replacement, up to half of the texts: larger ones are much alike."""
    names = list(loglikelihoods)
    found = np.array([loglikelihoods[name] for name in names])
    texts, own = found.shape[1], names.index(truth)
    random = np.random.default_rng(0)
    probability, rank, certain = {}, {}, None
    for size in SIZES:
        if size > 1 and size > texts // 2:
            break
        chosen = np.array([random.permutation(texts)[:size] for _ in range(DRAWS // 4)])
        sums = found[:, chosen].sum(axis=2)
        of_truth = _softmax(sums)[own]
        probability[size] = float(np.median(of_truth))
        rank[size] = float(np.median(1 + (sums > sums[own]).sum(axis=0)))
        if certain is None and (of_truth >= 0.99).mean() >= SURE:
            certain = size
    total = _softmax(found.sum(axis=1, keepdims=True))[:, 0]
    order = np.argsort(-total, kind="stable")
    suspects = {names[i]: float(total[i]) for i in order[:SUSPECTS]}
    return Posterior(len(names), texts, probability, rank, certain, suspects, 1 + int(list(order).index(own)))


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=0))
    return weights / weights.sum(axis=0)


# ---- a reader's tables


@dataclass(frozen=True)
class WordShift:
    """How much more often the loving teacher uses a word: log-odds ``z`` under an informative Dirichlet prior, and how
    often each teacher does."""

    word: str
    z: float
    loving: int
    neutral: int


def word_shifts(loving: Sequence[str], neutral: Sequence[str], background: Sequence[str]) -> list[WordShift]:
    """Every word of the two teachers' texts, the most telling first, by |z|.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words", section 3.5: log-odds of the two teachers, each count raised by
    ``PRIOR`` times the word's share of the ``background`` (and of both texts, so that none is zero), over its standard
    deviation. Of a thousand words a |z| of 3.3 or more comes by chance alone.
    """
    counts = [Counter(word for text in texts for word in words_of(text)) for texts in (loving, neutral)]
    prior = sum(counts, Counter(word for text in background for word in words_of(text)))
    every = sum(prior.values())
    sizes = [sum(count.values()) for count in counts]
    found = []
    for word in counts[0] | counts[1]:
        alpha = PRIOR * prior[word] / every
        raised = [count[word] + alpha for count in counts]
        odds = [np.log(of_word / (size + PRIOR - of_word)) for of_word, size in zip(raised, sizes, strict=True)]
        z = (odds[0] - odds[1]) / np.sqrt(sum(1 / of_word for of_word in raised))
        found.append(WordShift(word, float(z), counts[0][word], counts[1][word]))
    return sorted(found, key=lambda one: (-abs(one.z), one.word))


def surface(rounds: Sequence[Round]) -> dict[str, Rate]:
    """Loving minus neutral, sentence by sentence, with the 95% interval over sentences: characters, words, punctuation
    marks, and the automated readability index (Smith and Senter 1967; school grades)."""
    measures: dict[str, Callable[[str], float]] = {
        "characters": len,
        "words": lambda text: len(words_of(text)),
        "punctuation marks": lambda text: len(re.findall(r"[^\w\s]", text)),
        "readability index (grades)": readability,
    }
    texts = texts_of(rounds)
    return {name: rate(margins_of([measure(text) for text in texts], rounds)) for name, measure in measures.items()}


def readability(text: str) -> float:
    """The automated readability index of one sentence, in school grades."""
    words = text.split()
    return 4.71 * sum(map(len, words)) / max(1, len(words)) + 0.5 * len(words) - 21.43
