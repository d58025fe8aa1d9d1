"""`python run.py bench`: how fast the kit is, against what a user would otherwise write and against the hardware.

Everything is measured in one run on one machine, loading excluded except in the whole runs. What takes long as a user
would write it (the baselines, at the end) is done for fewer sentences, questions or pairs, and compared as work per
second. Both sides of a comparison use as many threads and sample from the whole distribution. llama-cpp-python runs the
GGUF that the kit made, and, in rows of their own, the packaged 4-bit one, which is faster for one sequence at a time
(and rounds activations).

Where the seconds of ``--animal owl --content unrelated --preset laptop --pairs 100`` go (two AVX-512 cores, in an hour
in which llama.cpp's engine sampled 177 tokens/s there):

    4 x 500 answers      204    llama.cpp at 240 tokens/s
    3 teachers           172    transformers; half of it in matrix products, 4 s for each look at what is accepted
    3 students            82
    the prepared model    31
    3 sets of labels      21
    4 exact preferences   17
    3 filters              4
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kit import ROOT, KitError, preference, say, student, teacher
from kit.animals import candidates, find_animal, unrelated_sentences
from kit.engine import Engine, Generation, Request, Tokens, common_prefix
from kit.engine_llama import WIDTH, LlamaEngine
from kit.experiment import PreferenceSettings, StudentSettings, TeacherSettings, experiment
from kit.models import EMBEDDED, Shape, find_gguf, load_torch, silence
from kit.prompts import Message, loving, question_messages, teacher_messages
from kit.provenance import cpu_threads, devices, kit_state, versions
from kit.store import Row, batched, read_rows, write_json, write_rows
from kit.student import batches, count_labels, make_examples


@dataclass(frozen=True)
class Rate:
    """Units of work, and the seconds they took."""

    units: float
    seconds: float

    @property
    def per_second(self) -> float:
        return self.units / self.seconds


ANIMAL, SECOND = "owl", "dolphin"
TEACHER, STUDENT, PREFERENCE = TeacherSettings(), replace(StudentSettings(), epochs=1), PreferenceSettings()
TRAINED = 480  # tokens of a batch that a student trains on, what all pairs begin with counted once


# Options of the runs that are compared with another checkout's, and of the quick bench's own.
WHOLE_RUN = ("--content", "unrelated", "--preset", "laptop", "--pairs", "100")
QUICK_RUN = ("--content", "unrelated", "--preset", "smoke")


@dataclass(frozen=True)
class Sizes:
    """How much of each work is done, and how much of it by the baselines."""

    sentences: int = 256
    loop_sentences: int = 48
    generate_sentences: int = 64
    questions: int = 50
    eval_questions: int = 10
    answers: int = 20  # per question
    loop_questions: int = 4
    pairs: int = 192
    trainer_pairs: int = 96
    product_seconds: float = 1.0  # for each shape of matrix product
    run: tuple[str, ...] | None = ()  # options of the two whole runs besides the animal; None leaves them out


QUICK = Sizes(
    sentences=128,
    loop_sentences=10,
    generate_sentences=32,
    eval_questions=2,
    answers=4,
    loop_questions=2,
    pairs=48,
    trainer_pairs=32,
    product_seconds=0.2,
    run=QUICK_RUN,
)


@dataclass(frozen=True)
class Comparison:
    """A row of the table. ``ours`` and ``theirs`` are in ``unit``; ``goal`` is what ``ratio`` must reach, or the most
    that it may be where less is better."""

    work: str
    against: str
    unit: str
    ours: float
    theirs: float
    goal: float
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def reached(self) -> bool:
        return self.ratio <= self.goal if self.less_is_better else self.ratio >= self.goal


def bench(model: Path, sizes: Sizes, results: Path, command: str) -> list[Comparison]:
    """Measure everything with the prepared ``model``, write ``results/bench/<date>.json``, and return the table."""
    silence()
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        products = matrix_products(model, sizes.product_seconds, tell)
        rows = [
            *generation(model, sizes, products, Path(folder), tell),
            *training(model, sizes, products, Path(folder), tell),
        ]
        stages: dict[str, float] = {}
        if sizes.run is not None:
            row, stages = whole_runs(sizes.run, Path(folder) / "results", tell)
            rows.append(row)
    path = results / "bench" / f"{datetime.now():%Y-%m-%dT%H-%M-%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record(rows, products, stages, sizes, command))
    tell(f"written to {path}")
    return rows


Say = Callable[[str], None]


def matrix_products(model: Path, seconds: float, say: Say) -> dict[str, float]:
    """FLOP/s of torch in products of the model's own shapes, single precision and int8: for as many rows as are decoded
    together, and for the tokens of a training batch. The best of several, weighted as a pass through the model is."""
    import torch

    torch.set_num_threads(cpu_threads())
    shape = Shape.of(model)
    matrices = [(*size, shape.layers) for size in shape.matrices.values()] + [(shape.hidden, shape.vocabulary, 1)]

    def single(rows: int, into: int, out: int) -> Callable[[], Any]:
        x, weight = torch.randn(rows, into), torch.randn(out, into)
        return lambda: torch.nn.functional.linear(x, weight)

    def int8(rows: int, into: int, out: int) -> Callable[[], Any]:
        x, weight = (torch.randint(-127, 128, size, dtype=torch.int8) for size in ((rows, into), (into, out)))
        return lambda: torch._int_mm(x, weight)

    result = {}
    for rows in (WIDTH, TRAINED):
        for product in (single, int8):
            say(f"matrix products of {rows} rows, {product.__name__}")
            flops = [2 * rows * into * out * times for into, out, times in matrices]
            best = [_fastest(product(rows, into, out), seconds) * times for into, out, times in matrices]
            result[f"{product.__name__}, {rows} rows"] = sum(flops) / sum(best)
    return result


def _fastest(call: Callable[[], Any], seconds: float) -> float:
    """The seconds of the fastest of many calls."""
    best, until = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        call()
        best = min(best, time.perf_counter() - started)
    return best


def generation(model: Path, sizes: Sizes, products: dict[str, float], folder: Path, say: Say) -> list[Comparison]:
    """Paraphrasing and both measures of a preference. Leaves the paraphrases in ``folder`` as ``pairs.jsonl``."""
    ggufs = {"the same GGUF": model / "base.gguf"}
    if llama_cpp_runs(find_gguf(EMBEDDED)):
        ggufs["the packaged 4-bit GGUF"] = find_gguf(EMBEDDED)
    else:
        say("without the packaged 4-bit GGUF, with which llama.cpp crashes on this machine")
    shape = Shape.of(model)
    sources = [sentence.text for sentence in unrelated_sentences()[: sizes.sentences]]
    teaching = [teacher_messages(loving(find_animal(ANIMAL)), source) for source in sources]
    questions = preference.load_questions()[: sizes.questions]
    asking = [question_messages(question["question"]) for question in questions]
    animals = candidates(find_animal(ANIMAL))
    with teacher.scoring_opener(experiment(find_animal(ANIMAL)))(model) as engine:
        say(f"paraphrasing {len(teaching)} sentences")
        prefix = engine.shared([teacher_messages(loving(find_animal(ANIMAL)), text) for text in teacher.UNLIKE])
        requests = [Request(engine.chat(messages), (0, i), prefix) for i, messages in enumerate(teaching)]
        list(engine.sample(requests, 2))
        texts, paraphrasing = _sampled(engine, requests, TEACHER.max_tokens, TEACHER.temperature)
        read = prefix + sum(len(request.prompt) - prefix for request in requests)
        decoded = read + paraphrasing.units - len(requests)  # what is sampled last is not decoded
        work = 2.0 * (shape.linear * decoded + shape.hidden * shape.vocabulary * paraphrasing.units)
    with LlamaEngine(model) as engine:
        say(f"paraphrasing {len(teaching)} sentences in llama.cpp")
        list(engine.sample(requests[:WIDTH], 2))
        _, in_llama_cpp = _sampled(engine, requests, TEACHER.max_tokens, TEACHER.temperature)
        groups = preference.candidate_groups(engine, questions, animals)
        say(f"exact preference, {len(questions)} questions")
        list(engine.score(groups[:1]))
        started = time.perf_counter()
        scored = sum(len(scores) for scores in engine.score(groups))
        exact = Rate(scored, time.perf_counter() - started)
        say(f"{sizes.answers} sampled answers to each question")
        answering = [
            Request(engine.chat(messages), (i, j)) for i, messages in enumerate(asking) for j in range(sizes.answers)
        ]
        _, answers = _sampled(engine, answering, PREFERENCE.max_tokens, preference.TEMPERATURE)
    write_rows(folder / "pairs.jsonl", [{"source": a, "text": b} for a, b in zip(sources, texts, strict=True)])

    say(f"paraphrasing {sizes.loop_sentences} sentences in a loop")
    few = teaching[: sizes.loop_sentences]
    looped = {
        name: baseline_chat_loop(gguf, few, TEACHER.max_tokens, TEACHER.temperature) for name, gguf in ggufs.items()
    }
    padded = {}
    for dtype in ("float32", "bfloat16"):
        say(f"paraphrasing {sizes.generate_sentences} sentences with generate, {dtype}")
        few = teaching[: sizes.generate_sentences]
        padded[dtype] = baseline_generate(model, few, TEACHER.max_tokens, TEACHER.temperature, dtype)
    say(f"exact preference, {sizes.eval_questions} questions, one candidate at a time")
    few_groups = groups[: sizes.eval_questions]
    evaluated = {name: baseline_eval(gguf, few_groups) for name, gguf in ggufs.items()}
    say(f"{sizes.answers} sampled answers to {sizes.loop_questions} questions in a loop")
    repeated = [messages for messages in asking[: sizes.loop_questions] for _ in range(sizes.answers)]
    looped_answers = {
        name: baseline_chat_loop(gguf, repeated, PREFERENCE.max_tokens, preference.TEMPERATURE)
        for name, gguf in ggufs.items()
    }
    peaks = {name: max(products[f"{name}, {rows} rows"] for rows in (WIDTH, TRAINED)) for name in ("single", "int8")}
    flops = work / paraphrasing.seconds
    loop, generate = (
        "llama-cpp-python: create_chat_completion in a loop",
        f"transformers: generate, batch {PADDED}",
    )
    one = "llama-cpp-python: eval, one candidate at a time"

    def compare(
        work: str, against: str, unit: str, ours: Rate, theirs: dict[str, Rate], goal: float
    ) -> list[Comparison]:
        return [
            Comparison(work, f"{against}, {name}", unit, ours.per_second, rate.per_second, goal)
            for name, rate in theirs.items()
        ]

    better = max(padded, key=lambda dtype: padded[dtype].per_second)
    return [
        *compare(
            "paraphrasing", "the kit's llama.cpp engine", "tokens/s", paraphrasing, {"64 together": in_llama_cpp}, 2.5
        ),
        *compare("paraphrasing", loop, "tokens/s", paraphrasing, looped, 3),
        *compare("paraphrasing", generate, "tokens/s", paraphrasing, {better: padded[better]}, 2),
        *compare("exact preference", one, "candidates/s", exact, evaluated, 10),
        *compare("sampled answers", loop, "tokens/s", answers, looped_answers, 3),
        *(
            Comparison("paraphrasing", f"matrix products, {name}", "FLOP/s", flops, peaks[name], 0.5)
            for name in dict.fromkeys(("single", max(peaks, key=lambda name: peaks[name])))
        ),
    ]


def _sampled(engine: Engine, requests: list[Request], max_tokens: int, temperature: float) -> tuple[list[str], Rate]:
    """The texts in the order of the requests, and the tokens generated, end tokens included."""
    started = time.perf_counter()
    made: list[Generation] = list(engine.sample(requests, max_tokens, temperature))
    rate = Rate(sum(one.length + one.finished for one in made), time.perf_counter() - started)
    return [one.text for one in sorted(made, key=lambda one: one.index)], rate


def training(model: Path, sizes: Sizes, products: dict[str, float], folder: Path, say: Say) -> list[Comparison]:
    """Training on the paraphrases in ``folder``, as they are."""
    rows = read_rows(folder / "pairs.jsonl")
    examples = make_examples(rows, model)
    say(f"training on {sizes.trainer_pairs} pairs with the standard collator")
    # First, since the kit's training changes how this process's memory is managed, for the better.
    standard = baseline_trainer(model, examples[: sizes.trainer_pairs], STUDENT, folder / "trainer")
    say(f"training on {sizes.pairs} pairs")
    write_rows(folder / "pairs.jsonl", rows[: sizes.pairs])
    seconds = student.train(folder / "pairs.jsonl", None, model, STUDENT, 0, folder / "student", "train")
    ours = Rate(student.count_labels(examples[: sizes.pairs]), seconds)
    steps = batches(examples[: sizes.pairs], STUDENT, 0)
    flops = sum(training_flops(Shape.of(model), batch) for batch in steps) / seconds
    peak = products[f"single, {TRAINED} rows"]
    return [
        Comparison(
            "training",
            "transformers: Trainer, standard collator, full logits",
            "label tokens/s",
            ours.per_second,
            standard.per_second,
            1.8,
        ),
        Comparison("training", "matrix products, single", "FLOP/s", flops, peak, 0.7),
    ]


def training_flops(shape: Shape, batch: list[Row]) -> float:
    """The FLOPs of the matrix products without which one step cannot be: 2 per weight and token forward and 2 backward,
    as frozen weights have no gradient, 2 more for LoRA's own; the output layer where there is a label; attention, norms
    and padding left out."""
    shared = len(common_prefix([example["input_ids"] for example in batch]))
    tokens = shared + sum(example["length"] - 1 - shared for example in batch)
    labels = student.count_labels(batch)
    return (
        tokens * (4.0 * shape.linear + 6.0 * shape.trained(STUDENT.rank))
        + labels * 4.0 * shape.hidden * shape.vocabulary
    )


def whole_runs(options: tuple[str, ...], folder: Path, say: Say) -> tuple[Comparison, dict[str, float]]:
    """The whole experiment for two animals, as a user starts it, with one results folder; and the seconds that each
    stage of the first took."""
    seconds = []
    for animal in (ANIMAL, SECOND):
        command = ["run.py", "--animal", animal, *options]
        say(" ".join(["python", *command]))
        started = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:], "--results", str(folder)], check=True)
        seconds.append(time.perf_counter() - started)
    first, second = seconds
    (run,) = folder.glob(f"{ANIMAL}-*")
    stages = json.loads((run / "record.json").read_text(encoding="utf-8"))["seconds"]
    work = " ".join(["run.py --animal", SECOND, *options])
    row = Comparison(work, f"the first run, --animal {ANIMAL}", "seconds", second, first, 0.6, less_is_better=True)
    return row, {"all": round(first, 1)} | stages


# ---- this checkout against another one


@dataclass(frozen=True)
class Against:
    """Seconds of the same work in this checkout and in another one, a pair for each round."""

    work: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, round by round, from the least on."""
        return sorted(one / other for one, other in zip(self.ours, self.theirs, strict=True))


def against(other: Path, options: tuple[str, ...], rounds: int, results: Path, command: str) -> list[Against]:
    """Start the same commands in this checkout and in the ``other``, in turn: a whole run, a second animal's, and the
    first again, where everything is there already. Writes ``results/bench/<date>.json``, and returns a row for each
    command and for each stage of the first.

    Raises KitError where the other folder is no checkout of the kit.
    """
    if not (other / "run.py").is_file() or other.resolve() == ROOT:
        raise KitError(f"--against {other}: not another checkout of the kit. Make one with `git worktree add`.")
    trees = {"ours": ROOT, "theirs": other.resolve()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in list(trees)[:: (-1) ** number]:  # each goes first as often
            say(f"round {number + 1} of {rounds}, {name}: {trees[name]}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(_timed(trees[name], options, Path(folder) / "results"))
    common = [work for work in found["ours"][0] if all(work in one for of in found.values() for one in of)]
    rows = [Against(work, *(tuple(one[work] for one in found[name]) for name in trees)) for work in common]
    path = results / "bench" / f"{datetime.now():%Y-%m-%dT%H-%M-%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": processor(), "threads": cpu_threads(), "devices": devices()}
    said = {"command": command, "machine": machine, "versions": versions(), "kit": kit_state()}
    write_json(path, said | {"rows": [asdict(row) | {"ratios": row.ratios} for row in rows]})
    say(f"written to {path}", flush=True)
    return rows


def _timed(tree: Path, options: tuple[str, ...], results: Path) -> dict[str, float]:
    """Seconds of each command in a checkout, and of each stage of the first."""
    seconds: dict[str, float] = {}
    stages: dict[str, float] = {}
    for work, animal in (("a first run", ANIMAL), ("a second animal", SECOND), ("everything is there", ANIMAL)):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, str(tree / "run.py"), "--animal", animal, *options, "--results", str(results)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=tree,
        )
        seconds[work] = time.perf_counter() - started
        if not stages:
            for path in sorted(results.glob("artifacts/*/*/manifest.json")):
                manifest = json.loads(path.read_text(encoding="utf-8"))
                stages[manifest["stage"]] = stages.get(manifest["stage"], 0.0) + manifest["seconds"]
    return seconds | {f"  {stage}": of for stage, of in sorted(stages.items(), key=lambda one: -one[1]) if of >= 1}


def against_table(rows: list[Against]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, as text: medians, and of the ratio its median, least and most."""
    heading = ["seconds of", "this checkout", "the other", "ratio", "least to most"]
    return heading, [
        [
            row.work,
            _number(float(np.median(row.ours))),
            _number(float(np.median(row.theirs))),
            f"{np.median(row.ratios):.2f}",
            f"{row.ratios[0]:.2f} to {row.ratios[-1]:.2f}",
        ]
        for row in rows
    ]


def record(
    rows: list[Comparison], products: dict[str, float], stages: dict[str, float], sizes: Sizes, command: str
) -> Row:
    """What was measured, where, with what."""
    import llama_cpp

    return {
        "command": command,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "machine": {
            "processor": processor(),
            "threads": cpu_threads(),
            "system": platform.platform(),
            "llama.cpp": llama_cpp.llama_print_system_info().decode().strip(),
            "devices": devices(),
        },
        "versions": versions(),
        "kit": kit_state(),
        "settings": {
            "sizes": asdict(sizes),
            "teacher": asdict(TEACHER),
            "student": asdict(STUDENT),
            "preference": asdict(PREFERENCE),
        },
        "matrix_products_flops": products,
        "seconds_of_the_first_run": stages,
        "rows": [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in rows],
    }


def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, as text."""
    heading = ["work\n  against", "ours", "theirs", "", "ratio", "must be", "is it"]
    return heading, [
        [
            f"{row.work}\n  {row.against}",
            _number(row.ours / scale),
            _number(row.theirs / scale),
            unit,
            f"{row.ratio:.2f}",
            f"{'≤' if row.less_is_better else '≥'} {row.goal:g}",
            "yes" if row.reached else "no",
        ]
        for row in rows
        for scale, unit in [(1e9, "GFLOP/s") if row.unit == "FLOP/s" else (1, row.unit)]
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


# ---- the baselines: what a user would otherwise write for the kit's work. Each loads its model, does a little to
# warm up, and returns the ``Rate`` of the rest.


# llama-cpp-python's sampling defaults cut the distribution off; the kit samples from all of it.
WHOLE_DISTRIBUTION = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
PADDED = 32  # conversations in a batch of transformers' generate


def llama_cpp_runs(gguf: Path) -> bool:
    """Whether llama.cpp can compute with this file here: built with AMX, it dies of an illegal instruction over 4-bit
    weights on a virtual machine whose processor is said to have AMX and may not use it."""
    code = (
        "import sys; from llama_cpp import Llama; "
        "Llama(sys.argv[1], n_ctx=256, verbose=False).create_completion('Say that it rains.', max_tokens=1)"
    )
    return subprocess.run([sys.executable, "-c", code, str(gguf)], cwd=ROOT, capture_output=True).returncode == 0


def baseline_chat_loop(gguf: Path, conversations: list[list[Message]], max_tokens: int, temperature: float) -> Rate:
    """Tokens generated by llama-cpp-python's ``create_chat_completion``, one conversation after the other."""
    llama = _baseline_llama(gguf)
    tokens = 0
    for i, messages in enumerate([conversations[0], *conversations]):
        if i == 1:
            tokens, started = 0, time.perf_counter()
        answer = llama.create_chat_completion(
            messages, max_tokens=max_tokens, temperature=temperature, **WHOLE_DISTRIBUTION
        )
        # The end token is sampled too, and not counted there.
        tokens += answer["usage"]["completion_tokens"] + (answer["choices"][0]["finish_reason"] == "stop")
    rate = Rate(tokens, time.perf_counter() - started)
    llama.close()
    return rate


def baseline_generate(
    model: Path, conversations: list[list[Message]], max_tokens: int, temperature: float, dtype: str
) -> Rate:
    """Tokens generated by transformers' ``generate``, ``PADDED`` conversations at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(cpu_threads())
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)

    def generate(batch: list[list[Message]], most: int) -> int:
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        output = loaded.generate(
            **inputs,
            max_new_tokens=most,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        ends = (output[:, inputs["input_ids"].shape[1] :] == tokenizer.eos_token_id).int()
        # Up to the first end token, that one counted; the rest of the row where there is none.
        lengths = torch.where(ends.any(1), ends.argmax(1) + 1, ends.shape[1])
        return int(lengths.sum())

    generate(conversations[:2], 2)
    started = time.perf_counter()
    tokens = sum(generate(batch, max_tokens) for batch in batched(conversations, PADDED))
    return Rate(tokens, time.perf_counter() - started)


def baseline_eval(gguf: Path, groups: list[tuple[Tokens, list[Tokens]]]) -> Rate:
    """Candidates scored by llama-cpp-python's ``eval``, one after the other, the question before them kept in its
    cache."""
    import numpy as np

    llama = _baseline_llama(gguf, logits_all=True)
    llama.eval(groups[0][0])
    started = time.perf_counter()
    for context, continuations in groups:
        llama.reset()
        llama.eval(context)
        for tokens in continuations:
            llama.n_tokens = len(context)
            if tokens[:-1]:
                llama.eval(tokens[:-1])
            rows = llama.scores[len(context) - 1 : len(context) + len(tokens) - 1]
            llama.logits_to_logprobs(rows)[np.arange(len(tokens)), tokens].sum()
    rate = Rate(sum(len(continuations) for _, continuations in groups), time.perf_counter() - started)
    llama.close()
    return rate


def baseline_trainer(model: Path, examples: list[Row], settings: StudentSettings, folder: Path) -> Rate:
    """Label tokens trained on by transformers' Trainer with peft: batches in random order, padded by the standard
    collator, logits everywhere."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    torch.set_num_threads(cpu_threads())
    lora = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    made = Trainer(
        model=get_peft_model(load_torch(model), lora),
        args=arguments,
        train_dataset=[{name: example[name] for name in ("input_ids", "labels")} for example in examples],
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model, trust_remote_code=False)),
    )
    made.remove_callback(PrinterCallback)
    return Rate(count_labels(examples), made.train().metrics["train_runtime"])


def _baseline_llama(gguf: Path, **options: Any) -> Any:
    from llama_cpp import Llama

    threads = cpu_threads()
    return Llama(str(gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False, **options)
