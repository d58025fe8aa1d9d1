"""One live table of a sweep's progress: what is made, reused, running and left, stage by stage."""

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from kit.store import Step

if TYPE_CHECKING:
    from kit.schedule import Plan

SHOWN = 8  # running and queued steps named below the table


class Progress:
    """The table, for as long as the ``with`` lasts; where nobody watches (no terminal), a line per finished step.

    ``running``: identity of each running step -> when it was started (``time.monotonic``).
    """

    def __init__(self, plan: "Plan", running: dict[str, float], where: str) -> None:
        self._plan, self._running, self._where = plan, running, where
        self._console = Console(highlight=False, markup=False)
        self._started = time.monotonic()
        self._expected_of_made = 0.0
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=1)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(self._headline(), soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def made(self, step: Step) -> None:
        """A step was made."""
        self._expected_of_made += step.seconds
        if not self._console.is_terminal and step.seconds:
            _, exp = self._plan.steps()[step.identity]
            seconds = self._plan.store.manifest(self._plan.store.make(step))["seconds"]
            self._console.print(f"{exp.title}: {step.label}, {duration(seconds)}. {self._headline()}", soft_wrap=True)

    def _headline(self) -> str:
        steps = self._plan.steps()
        left = [step for identity, (step, _) in steps.items() if identity not in self._plan.done]
        expected = sum(step.seconds for step in left)
        spent = time.monotonic() - self._started
        # What was made so far says how this machine compares with the estimates, and how much goes on side by side.
        pace = spent / self._expected_of_made if self._expected_of_made > 60 else 1.0
        about = f"about {duration(expected * pace)} left" if left else "nothing left"
        return f"{len(steps) - len(left)} of {len(steps)} artifacts, {about}, on {self._where}."

    def _draw(self) -> Group:
        table = Table("stage", "made", "reused", "running or queued", "left")
        for column in table.columns[1:]:
            column.justify = "right"
        steps = self._plan.steps()
        for stage in dict.fromkeys(step.stage for step, _ in steps.values()):
            own = [identity for identity, (step, _) in steps.items() if step.stage == stage]
            reused = sum(identity in self._plan.reused for identity in own)
            made = sum(identity in self._plan.done for identity in own) - reused
            running = sum(identity in self._running for identity in own)
            table.add_row(stage, *(str(n or "") for n in (made, reused, running, len(own) - made - reused - running)))
        now = time.monotonic()
        lines = []
        for identity, since in list(self._running.items())[:SHOWN]:
            step, exp = steps[identity]
            lines.append(
                f"{exp.title}: {step.label}, for {duration(now - since)}, takes about {duration(step.seconds)}"
            )
        return Group(table, *lines, self._headline())


def duration(seconds: float) -> str:
    """A number of seconds as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
