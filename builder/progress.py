"""Named steps with a line, a progress bar and a duration each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Steps:
    """Shows the steps of a build as they run, and keeps how long each took.

    Attributes:
        console: where the lines go.
        durations_s: seconds per finished step, by name.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.durations_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, detail: str = "", total: int | None = None) -> Iterator[Callable[[], None]]:
        """Run one step.

        Args:
            name: what is done, such as ``calibrate``.
            detail: what it is done to.
            total: number of items, for a bar; without it a spinner turns.

        Yields:
            A function to call once per finished item.
        """
        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if total is not None:
            columns[2:2] = [BarColumn(), MofNCompleteColumn()]
        started = time.perf_counter()
        label = f"{escape(name)} [dim]{escape(detail)}[/dim]" if detail else escape(name)
        # Where nobody watches (a log file), a bar would only leave empty lines.
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)
        self.durations_s[name] = round(time.perf_counter() - started, 3)
        self.console.print(
            f"[green]✓[/green] {label} [dim]{self.durations_s[name]:.1f} s[/dim]", highlight=False, soft_wrap=True
        )

    def note(self, text: str) -> None:
        """Print a line between steps."""
        self.console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"[yellow]! {escape(text)}[/yellow]", highlight=False, soft_wrap=True)
