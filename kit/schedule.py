"""The steps of many experiments -> artifacts, shared ones once, in this process or on Ray.

Nothing about a sweep is kept but the artifacts themselves. So the driver may be killed at any moment: given the same
command again it finds what is done and goes on.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from kit import estimate
from kit.errors import KitError
from kit.experiment import Experiment
from kit.graph import Arm, all_steps, arms, shortfalls, taught_arms
from kit.models import cpu_threads
from kit.store import Step, Store

ROOT = Path(__file__).resolve().parent.parent
RETRIES = 3  # of a task whose worker died
# Of a step that computes with a model, where there are so many: a 135M model's matrix products gain little from more
# threads, and a sweep has other steps for the rest.
CPUS = 2
# What a stage does with a model: the row of ``estimate.table`` that says how much memory that takes.
WORK = {
    "paraphrases": "teaching",
    "labels": "teaching",
    "student": "training",
    "exact": "evaluation",
    "sampled": "evaluation",
}
LIGHT = estimate.GIB  # bytes of any other stage; the fidelity filters' sentence embeddings need the most

Conditions = dict[str, Arm]


class Workers(Protocol):
    """Who makes artifacts: ``name`` for people, and how many steps at a time (``room``)."""

    name: str
    room: int

    def start(self, step: Step, exp: Experiment) -> None:
        """Take a step whose inputs are made."""

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        """The steps that ended within so many seconds, each with what the user has to mend."""


class Here:
    """This process, one step after another."""

    name = "this process"
    room = 1

    def __init__(self, root: Path) -> None:
        self._store = Store(root, wait=True)
        self._next: list[Step] = []

    def start(self, step: Step, exp: Experiment) -> None:
        self._next.append(step)

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        step = self._next.pop()
        try:
            self._store.make(step)
        except KitError as error:
            return [(step, error)]
        return [(step, None)]


class Ray:
    """Ray's workers, on this machine or on a cluster whose nodes share the results folder."""

    room = 10_000  # Ray queues what its nodes have no room for

    def __init__(self, root: Path, address: str | None) -> None:
        import ray

        self._ray, self._root = ray, root
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._largest = {name: max(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        self.name = f"Ray{f' at {address}' if address else ''}, {cpus} CPUs" + ("" if address else " in this machine")
        self._running: dict[Any, Step] = {}
        self._make = ray.remote(max_retries=RETRIES)(_make)

    def start(self, step: Step, exp: Experiment) -> None:
        options = resources(step, exp, self._largest)
        self._running[self._make.options(name=step.label, **options).remote(self._root, step)] = step

    def wait(self, seconds: float) -> list[tuple[Step, KitError | None]]:
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> KitError | None:
        errors = self._ray.exceptions
        try:
            self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, KitError):
                return error.cause
            if isinstance(error.cause, OSError):  # a full disk is said as in one process
                raise error.cause from None
            raise
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            reason = str(error).splitlines()[0]
            return KitError(f"its worker died {1 + RETRIES} times ({reason}). Give it a machine with more memory.")
        return None


def _make(root: Path, step: Step) -> None:
    Store(root, wait=True).make(step)


def resources(step: Step, exp: Experiment, largest: dict[str, float]) -> dict[str, float]:
    """What a step asks Ray for: CPUs, GPUs and bytes of memory, none of them more than the ``largest`` node has."""
    from kit.decoder import offloads

    work = WORK.get(step.stage)
    if work is None:
        return {"num_cpus": min(1, largest["CPU"]), "memory": min(LIGHT, largest["memory"])}
    with_torch = work == "training" or (work == "teaching" and exp.teacher.engine == "torch")
    gpus = min(1, largest["GPU"]) if with_torch or offloads() else 0
    sizes = {name: size for name, size, _ in estimate.requirements(exp, estimate.find_device())}
    # With torch on a GPU the estimate is of the GPU's memory, most of which passed through main memory once.
    return {
        "num_cpus": min(CPUS, largest["CPU"]),
        "num_gpus": gpus,
        "memory": int(min(sizes[work], largest["memory"])),
    }


@contextmanager
def workers(root: Path, address: str | None) -> Iterator[Workers]:
    """Ray where it is installed, else this process; ``address`` of a running cluster, a local Ray without."""
    os.environ["TQDM_DISABLE"] = "1"  # the table takes the bars' place
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else a step too large for memory is tried for ever
    try:
        import ray
    except ImportError:
        if address:
            raise KitError(
                f"--ray-address {address}: Ray is not installed. Run `pip install -r requirements-sweep.txt`."
            ) from None
        print("Ray is not installed (requirements-sweep.txt): the steps run one after another in this process.")
        yield Here(root)
        return
    environment: dict[str, Any] = {"env_vars": {"TQDM_DISABLE": "1"}}
    if address:
        environment |= {"working_dir": str(ROOT), "excludes": ["/results", "/tests", "/.git"]}
    else:
        given = os.environ.get("PYTHONPATH")
        environment["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([given] if given else [])])
    try:
        ray.init(
            address=address or "local",  # never a cluster that happens to run on this machine
            num_cpus=None if address else cpu_threads(),
            runtime_env=environment,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except ConnectionError as error:
        raise KitError(
            f"--ray-address {address}: no cluster answers there ({error}). Start one; where it wants Ray's token, set "
            "RAY_AUTH_MODE=token."
        ) from None
    try:
        yield Ray(root.resolve(), address)
    finally:
        ray.shutdown()


class Plan:
    """What is left of many experiments. An experiment's students wait until its teachers are done and it is known which
    sentences some teacher lacks; until then the plan takes it that there are none."""

    def __init__(self, experiments: list[Experiment], goals: Callable[[Conditions], list[Step]], store: Store) -> None:
        self.store, self._goals = store, goals
        self.conditions = {exp: arms(exp, {}) for exp in experiments}
        self._unheard = {exp: [arm.kept for arm in taught_arms(exp).values()] for exp in experiments}
        self.done: set[str] = set()
        self.ready()
        self.reused = frozenset(self.done)

    def steps(self) -> dict[str, tuple[Step, Experiment]]:
        """Every step by its identity, inputs first, with the first experiment that needs it."""
        found: dict[str, tuple[Step, Experiment]] = {}
        for exp, conditions in self.conditions.items():
            for step in all_steps(self._goals(conditions)):
                found.setdefault(step.identity, (step, exp))
        return found

    def ready(self) -> list[tuple[Step, Experiment]]:
        """The steps that can be made now; whatever is made by now is ``done``."""
        while True:
            startable: dict[str, tuple[Step, Experiment]] = {}
            for exp, conditions in self.conditions.items():
                teaching = {step.identity for step in all_steps(self._unheard.get(exp, []))}
                for step in all_steps(self._goals(conditions)):
                    if step.identity in self.done or step.identity in startable:
                        continue
                    if all(needed.identity in self.done for needed in step.inputs.values()):
                        if self.store.find(step):
                            self.done.add(step.identity)
                        elif exp not in self._unheard or step.identity in teaching:
                            startable[step.identity] = step, exp
            newly = [exp for exp, kept in self._unheard.items() if all(step.identity in self.done for step in kept)]
            if not newly:
                return list(startable.values())
            for exp in newly:
                del self._unheard[exp]
                self.conditions[exp] = arms(exp, shortfalls(exp, self.store))


def finish(plan: Plan, by: Workers) -> None:
    """Make everything of the plan, whose conditions are then those that the students trained under.

    Raises KitError, after everything else is made, where steps cannot be made until the user mends something.
    """
    from kit.progress import Progress

    running: dict[str, float] = {}
    failed: dict[str, tuple[str, KitError]] = {}
    with Progress(plan, running, by.name) as progress:
        startable = plan.ready()
        while True:
            for step, exp in startable:
                if step.identity not in running and step.identity not in failed and len(running) < by.room:
                    by.start(step, exp)
                    running[step.identity] = time.monotonic()
            if not running:
                break
            ended = by.wait(seconds=1.0)
            for step, error in ended:
                del running[step.identity]
                if error is None:
                    progress.made(step)
                else:
                    failed[step.identity] = step.label, error
            if ended:
                startable = plan.ready()
    if failed:
        counts = Counter(str(error) for _, error in failed.values())
        listed = "\n  ".join(f"{label}: {error}" for label, error in failed.values())
        raise KitError(
            f"{len(failed)} steps could not be made ({len(counts)} reasons); all that does not depend on them is. "
            f"Mend this and give the same command again:\n  {listed}"
        )
