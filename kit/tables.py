"""Tables and numbers as people read them: in the terminal, in Markdown, on a page."""

from typing import Any

from kit.stats import Interval

Table = tuple[list[str], list[list[str]]]  # heading, rows


def show_table(title: str, table: Table) -> None:
    """Print it in the terminal."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as RichTable

    heading, rows = table
    drawn = RichTable(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(heading):
        words = " ".join([name, *(row[i] for row in rows)]).split()
        drawn.add_column(name, justify="right" if i else "left", min_width=max(map(len, words)))  # none is cut short
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False, markup=False)
    # In a pipe, or a narrow window, its lines are broken rather than its columns left out.
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), drawn).minimum)
    console.print(drawn, soft_wrap=True)


def percent(rate: dict[str, Any]) -> str:
    """A rate (``kit.stats.Rate``) with its interval, in percent."""
    low, high = rate["ci95"]
    return f"{100 * rate['rate']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def points(value: float, interval: Interval) -> str:
    """A signed value with its interval."""
    return f"{value:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def p_value(p: float) -> str:
    """A p-value as it is written."""
    return f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.0e}"


def markdown_table(table: Table) -> str:
    """``table`` in Markdown, its cells inert."""
    heading, rows = table
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """``text`` as inert Markdown: a model wrote some of it."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|`*_[]":
        text = text.replace(mark, "\\" + mark)
    return text
