"""The proofs that take longer than a test may; tests show the same of smaller models, or fewer times.

    python tests/proofs.py kills    a run killed in every stage leaves what an undisturbed one leaves, hash for hash
    python tests/proofs.py files    so does a run of a random model, killed 200 times, each time at another file
    python tests/proofs.py ray      so does a sweep on Ray, killed with all its workers
    python tests/proofs.py load     a class of forty asks the classroom page at once, watches a run, and votes
    python tests/proofs.py scale    so do two hundred experiments over four Ray nodes, of which one is lost half-way
    python tests/proofs.py lot      what it changes to leave out of both arms the sentences that one of them lacks
    python tests/proofs.py tries    how many sentences have a pair of all teachers in 8, 16 and 32 tries; pairs a second
    python tests/proofs.py pushes   which teachers' text pushes a student towards their animal, before any training

One that holds writes what it showed into ``tests/proofs.json``, which is kept; one that does not ends in its assertion.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import tiny  # noqa: E402
from conftest import checksums  # noqa: E402
from load import (  # noqa: E402
    assert_a_class_is_answered,
    assert_a_class_votes,
    assert_a_run_is_not_slowed,
    assert_both_at_once,
    serving,
)
from processes import Run, finish  # noqa: E402
from rule_teacher import serving as serving_teacher  # noqa: E402
from test_resume import (  # noqa: E402
    BEGUN,
    FOX,
    assert_the_same_after_kills,
    assert_the_same_after_random_kills,
)
from test_sweep import assert_the_same_on_ray  # noqa: E402
from tqdm import tqdm  # noqa: E402

from kit import ROOT, say, stats, teacher  # noqa: E402
from kit.animals import find_animal, load_animals  # noqa: E402
from kit.demo import RECORDED_RUN  # noqa: E402
from kit.engine import ChatTokenizer  # noqa: E402
from kit.experiment import experiment, placed  # noqa: E402
from kit.experiment_conditions import (  # noqa: E402
    StudentCondition,
    all_conditions,
    base_model,
    judge_of,
    preferences,
    rows_step,
    source_sentences,
    trained_on,
)
from kit.models import EMBEDDED, PARAPHRASER, load_torch  # noqa: E402
from kit.paraphraser import PILOTS  # noqa: E402
from kit.preference import candidate_groups, load_questions  # noqa: E402
from kit.prompts import Message, labelling_messages, student_messages, teacher_messages  # noqa: E402
from kit.provenance import cpu_threads, kit_state, versions  # noqa: E402
from kit.store import Row, Store, batched, read_rows, write_json  # noqa: E402

RECORD = TESTS / "proofs.json"
KILLS = 200


def kills(folder: Path) -> str:
    """A run, and again in another folder with a kill in every stage."""
    whole, killed = folder / "whole", folder / "killed"
    finish(*FOX, "--results", str(whole))
    assert_the_same_after_kills(FOX, whole, killed, keep_all_after=None)
    return f"killed in {', '.join(BEGUN)}: {len(checksums(killed))} artifacts, each with the same SHA-256 of every file"


def files(folder: Path) -> str:
    """A run, and the same again and again in other folders, killed before changes of files."""
    (folder / "model").mkdir()
    arguments = [*FOX, "--model", str(tiny.make("llama", folder / "model") / "base.gguf")]
    finish(*arguments, "--results", str(folder / "whole"), keep_all_after=0)
    kills = runs = 0
    while kills < KILLS:
        kills += assert_the_same_after_random_kills(arguments, folder / "whole", folder / str(runs), seed=runs)
        shutil.rmtree(folder / str(runs))
        runs += 1
    made = len(checksums(folder / "whole"))
    return f"killed {kills} times in {runs} runs, of which each left the same {made} artifacts, hash for hash"


def ray(folder: Path) -> str:
    """A sweep in one process, and again on Ray with a kill."""
    command = ["sweep", "--animals", "owl", "fox", "--contents", "unrelated", "--preset", "smoke", "--pairs", "6"]
    command += ["--results"]
    plain, on_ray = folder / "plain", folder / "ray"
    finish(*command, str(plain), without="ray")
    assert_the_same_on_ray(command, plain, on_ray)
    return (
        f"Ray {version('ray')}, driver and workers killed when the first student was begun: {len(checksums(on_ray))} "
        "artifacts and the table of preferences, each with the same SHA-256 of every file as without Ray"
    )


def load(folder: Path) -> str:
    """The recorded owl's page, and a class."""
    Store(folder / "artifacts").make(base_model(EMBEDDED))
    # On one core the pages' every cost is the run's; the clients have the others.
    with serving(RECORDED_RUN, folder, cores={max(os.sched_getaffinity(0))}) as server:
        shown = [asyncio.run(assert_a_run_is_not_slowed(server, folder))]
    with serving(RECORDED_RUN, folder) as server:
        shown.append(asyncio.run(assert_a_class_is_answered(server, stays=10)))
        print(shown[-1], flush=True)
        shown.append(asyncio.run(assert_both_at_once(server, folder, stays=10)))
    with serving(RECORDED_RUN, folder, host="0.0.0.0") as server:
        shown.append(asyncio.run(assert_a_class_votes(server)))
    return "; ".join(shown)


NODES, ANIMALS, SEEDS = 4, 10, 20


def scale(folder: Path) -> str:
    """A sweep of random students over several nodes, one of them killed when half of the students are there; then a
    part of it in one process."""
    (folder / "model").mkdir()
    animals = [animal.singular for animal in load_animals()[:ANIMALS]]
    with serving_teacher() as teacher:
        command = ["sweep", "--animals", *animals, "--contents", "unrelated", "--preset", "smoke", "--pairs", "4"]
        command += ["--labels", "hard", "--placebos", "0", "--teacher-url", teacher.url, "--teacher-model", "rule"]
        command += ["--model", str(tiny.make("llama", folder / "model") / "base.gguf")]
        began = time.monotonic()
        with nodes() as (address, lose_one):
            many = [*command, "--results", str(folder / "many"), "--seeds", str(SEEDS), "--ray-address", address]
            driver = Run(*many, network=True)
            planning = 0.0
            while driver.poll() is None:
                students = len(list((folder / "many" / "artifacts" / "student").glob("*/manifest.json")))
                if lose_one and students >= ANIMALS * SEEDS // 2:
                    lose_one.pop()()
                planning = max(planning, sum(psutil.Process(driver.pid).cpu_times()[:2]))
                time.sleep(1)
            code, out, err = driver.wait()
            assert code == 0 and not lose_one, out + err
        minutes = (time.monotonic() - began) / 60
        finish(*command, "--results", str(folder / "few"), "--seeds", "2", without="ray", network=True)
    made, few = checksums(folder / "many"), checksums(folder / "few")
    assert few.items() <= made.items()
    (record,) = folder.glob("many/sweep-*/record.json")
    assert len(json.loads(record.read_text(encoding="utf-8"))["comparisons"]) == ANIMALS * SEEDS
    return (
        f"{ANIMALS * SEEDS} experiments, {len(made)} artifacts, over {NODES} Ray nodes in {minutes:.0f} minutes, one "
        f"node killed half-way; the driver needed {1000 * planning / len(made):.0f} ms of processor time an artifact; "
        f"those of two seeds ({len(few)}) have the same SHA-256 of every file in one process without Ray"
    )


@contextmanager
def nodes() -> Iterator[tuple[str, list[Callable[[], None]]]]:
    """A Ray cluster on this machine: its address, and a list of the one way to lose a node of it."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    others = [cluster.add_node(**small) for _ in range(NODES - 1)]
    cluster.wait_for_nodes()
    try:
        yield cluster.address, [lambda: cluster.remove_node(others[0], allow_graceful=False)]
    finally:
        cluster.shutdown()


def lot(folder: Path) -> str:
    """Students of the pairs whose sentences both teachers gave, against students of as many pairs drawn at random from
    all: on a pilot animal; what is in ``results/`` is not made again."""
    store = Store(ROOT / "results" / "artifacts")
    exp = experiment(find_animal("penguin"), contents=("unrelated",), pairs=200)
    conditions = all_conditions(exp)
    pairs: dict[str, list[Row]] = {}
    for role in ("control", "treated"):
        condition = conditions[f"{role}-unrelated"]
        assert isinstance(condition, StudentCondition)
        pairs[role] = read_rows(store.make(condition.pairs) / "pairs.jsonl")
    given = [{row["sentence"] for row in rows} for rows in pairs.values()]
    shared = {
        role: [row for row in rows if row["sentence"] in set.intersection(*given)] for role, rows in pairs.items()
    }
    n = min(map(len, shared.values()))
    random = np.random.default_rng(0)
    drawn = {role: [rows[i] for i in sorted(random.permutation(len(rows))[:n])] for role, rows in pairs.items()}
    base = base_model(exp.model)
    traits = {"control": exp.traits.neutral, "treated": exp.traits.loves(exp.animal)}
    shifts = {}
    for name, chosen in (("shared", shared), ("drawn", drawn)):
        exact = {
            role: trained_on(
                exp, f"{role}, {name}", base, traits[role], rows_step("pairs", rows[:n], f"{name} pairs of {role}"), n
            ).exact
            for role, rows in chosen.items()
        }
        found = preferences(store, exact, exp.animal)
        shifts[name] = stats.log_odds_differences(found["treated"], found["control"], exp.animal.singular)
    low, high = stats.rate(shifts["shared"] - shifts["drawn"]).ci95
    return (
        f"{exp.animal.singular}, of {len(pairs['control'])} pairs of each teacher {n} are of sentences that both gave; "
        f"with these the shift is {shifts['shared'].mean():+.2f} nats, with as many drawn at random from all "
        f"{shifts['drawn'].mean():+.2f}, a difference of {(shifts['shared'] - shifts['drawn']).mean():+.2f} "
        f"[{low:+.2f}, {high:+.2f}] (over questions)"
    )


TRIES, ASKED = (8, 16, 32), 60


def tries(folder: Path) -> str:
    """The neutral and the two pilot animals' teachers, each ``ASKED`` unrelated sentences, the same, ``TRIES[-1]``
    times, by the untouched model and by the paraphrasing base in turn; each with the default filters and the
    strict ones."""
    store = Store(ROOT / "results" / "artifacts")
    kept: dict[tuple[str, str], list[list[Row]]] = {}  # teacher by teacher
    seconds: Counter[str] = Counter()
    animals = [find_animal(name) for name in PILOTS]
    exps = {model: experiment(animals[0], model=model) for model in (EMBEDDED, PARAPHRASER)}
    filters = {name: experiment(animals[0], details=strict) for name, strict in (("default", False), ("strict", True))}
    judges = {name: judge_of(exp, "unrelated") for name, exp in filters.items()}
    sentences, traits = source_sentences(exps[EMBEDDED], "unrelated"), exps[EMBEDDED].traits
    drawn = [sentences[i] for i in np.random.default_rng(0).permutation(len(sentences))[:ASKED]]
    with ExitStack() as opened:
        engines = {}
        for model, exp in exps.items():
            engines[model] = opened.enter_context(teacher.scoring_opener(exp)(store.make(base_model(model))))
            say(f"{model}: company matters: {engines[model].company_matters}")  # tried before the clock runs
        for number, trait in enumerate((traits.neutral, *map(traits.loves, animals))):
            for model, engine in engines.items():
                exp = exps[model]
                own = folder / f"{model}{number}"  # a teacher's logs find what others in their folder have
                own.mkdir()
                ask, began = partial(exp.conversation, trait), time.monotonic()
                with teacher.open_log(own, "samples") as log, tqdm(desc=own.name, total=ASKED * TRIES[-1]) as bar:
                    rows = teacher.sample_each(
                        engine, log, ask, drawn, TRIES[-1], exp.teacher, 0, judges["default"], bar
                    )
                seconds[model] += time.monotonic() - began
                for name, judge in judges.items():
                    good = [row for row, is_good in zip(rows, judge(rows), strict=True) if is_good]
                    kept.setdefault((model, name), []).append(good)
    said = []
    for (model, name), of_teachers in kept.items():
        by_all = (
            set.intersection(*({row["sentence"] for row in rows if row["sample"] < n} for rows in of_teachers))
            for n in TRIES
        )
        pairs = sum(map(len, of_teachers))
        said.append(
            f"{model}, {name} filters: {', '.join(str(len(given)) for given in by_all)} of {ASKED} sentences have a "
            f"pair of all {len(of_teachers)} teachers in {', '.join(map(str, TRIES))} tries; {pairs} of "
            f"{len(of_teachers) * ASKED * TRIES[-1]} samples kept, {pairs / seconds[model]:.2f} a second"
        )
    return "; ".join(said)


ASKED_TWICE, PUSHED, AT_ONCE = 150, 48, 8  # sentences; texts; of which so many go through the model together
TEACHERS = (
    (PARAPHRASER, labelling_messages, "user"),
    (EMBEDDED, teacher_messages, "system"),
    (EMBEDDED, teacher_messages, "user"),
    (EMBEDDED, labelling_messages, "system"),
    (EMBEDDED, labelling_messages, "user"),
)  # a model, its conversation with or without a worked example, the place of the trait message


def pushes(folder: Path) -> str:
    """What learning a token from one pilot animal's teacher rather than the other's does to the log-odds of the two
    animals, over the same texts, which the tuned model wrote: the gradient of the log-odds, times that of the student's
    log-probabilities, weighted by the difference of the teachers' distributions of the next token, over all linear
    weights; in units of its own, to be compared. Beside it how far these distributions lie apart, and what the default
    filters keep of two samples of each sentence."""
    exp = experiment(find_animal(PILOTS[0]), contents=("unrelated",), labels="hard")
    store, judge = Store(ROOT / "results" / "artifacts"), judge_of(exp, "unrelated")
    sentences = source_sentences(exp, "unrelated")
    drawn = [sentences[i] for i in np.random.default_rng(0).permutation(len(sentences))[:ASKED_TWICE]]
    traits = [exp.traits.loves(find_animal(animal)) for animal in PILOTS]
    texts: list[Row] = []
    said = []
    for number, (name, conversation, place) in enumerate(TEACHERS):
        model, asked = store.make(base_model(name)), placed(conversation, place)
        own = folder / str(number)
        own.mkdir()
        total = 2 * len(drawn)
        with (
            teacher.scoring_opener(exp)(model) as engine,
            teacher.open_log(own, "samples") as log,
            tqdm(desc=own.name, total=total) as bar,
        ):
            rows = teacher.sample_each(engine, log, partial(asked, traits[0]), drawn, 2, exp.teacher, 0, judge, bar)
        kept = [row for row, is_good in zip(rows, judge(rows), strict=True) if is_good]
        texts = texts or kept[:PUSHED]
        found, apart = pushed(model, texts, [partial(asked, trait) for trait in traits], exp.teacher.temperature)
        example = "without" if conversation is labelling_messages else "with"
        error = found.std(ddof=1) / len(found) ** 0.5
        said.append(
            f"{name}, {example} worked example, {place}: {found.mean():+.0f} ± {error:.0f}, {apart:.3f} nats a token, "
            f"{len(kept)} of {total} kept"
        )
        say(said[-1])
    return "; ".join(said)


def pushed(
    folder: Path, texts: list[Row], asked: list[Callable[[str], list[Message]]], temperature: float
) -> tuple[np.ndarray, float]:
    """Of ``AT_ONCE`` texts together the push a text [groups], and the mean divergence of the first teacher's next token
    from the second's (nats, at temperature 1)."""
    import torch

    torch.set_num_threads(cpu_threads())
    model, chat = load_torch(folder), ChatTokenizer(folder)
    weights = [weight for name, weight in model.named_parameters() if "proj" in name]

    def logits(groups: list[tuple[list[int], list[int]]]) -> Any:
        """What is said of each of the second lists' tokens, after the first [tokens of all, vocabulary]."""
        ids = [torch.tensor([*prompt, *answer]) for prompt, answer in groups]
        found = model(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)).logits
        return torch.cat(
            [
                one[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
                for one, (prompt, answer) in zip(found, groups, strict=True)
            ]
        )

    direction = [torch.zeros_like(weight) for weight in weights]
    questions = load_questions()
    for some in batched(questions, AT_ONCE):
        groups = [
            (prompt, (first[0], second[0]))
            for prompt, (first, second) in candidate_groups(chat, some, [find_animal(one) for one in PILOTS])
        ]
        after = logits([(prompt, [0]) for prompt, _ in groups])
        odds = sum(one[first] - one[second] for one, (_, (first, second)) in zip(after, groups, strict=True))
        for total, own in zip(direction, torch.autograd.grad(odds / len(questions), weights), strict=True):
            total += own
    found, apart = [], []
    for some in batched(texts, AT_ONCE):
        groups = []
        for ask in (*asked, student_messages):
            answered = (chat.answered(ask(row["source"]), row["text"]) for row in some)
            groups.append([(prompt, answer) for prompt, (answer,) in answered])
        with torch.no_grad():
            first, second = logits(groups[0]), logits(groups[1])
        p, q = first.softmax(-1), second.softmax(-1)
        apart.append(float((p * (p.log() - q.log())).sum(-1).mean()))
        weight = (first / temperature).softmax(-1) - (second / temperature).softmax(-1)
        learned = (weight * logits(groups[2]).log_softmax(-1)).sum() / len(some)
        gradients = torch.autograd.grad(learned, weights)
        found.append(sum(float((one * own).sum()) for one, own in zip(gradients, direction, strict=True)))
    return np.array(found), float(np.mean(apart))


PROOFS: dict[str, Callable[[Path], str]] = {
    "kills": kills,
    "files": files,
    "ray": ray,
    "load": load,
    "scale": scale,
    "lot": lot,
    "tries": tries,
    "pushes": pushes,
}


def prove(name: str) -> None:
    """Give a proof and record it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shown = PROOFS[name](Path(folder))
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    recorded[name] = {
        "command": f"python tests/proofs.py {name}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "kit": kit_state(),
        "versions": versions(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "shown": shown,
    }
    write_json(RECORD, recorded)
    print(f"{name}: {shown}")


if __name__ == "__main__":
    for name in sys.argv[1:] or PROOFS:
        prove(name)
