"""Named steps with a line, a progress bar and a duration each."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn

from pipeline.command_line import markup

_HEARTBEAT_S = 10.0
"""Seconds between two lines of a long step where no bar is shown."""


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
        label = f"{markup(name)} [dim]{markup(detail)}[/dim]" if detail else markup(name)
        watched = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not watched) as progress:
            task = progress.add_task(label, total=total)
            # In a log file, where a bar would leave empty lines, a long step prints its progress at times.
            with contextlib.nullcontext() if watched else self._heartbeat(label, progress.tasks[0], started):
                yield lambda: progress.advance(task)
        self.durations_s[name] = round(time.perf_counter() - started, 3)
        self.console.print(
            f"[green]✓[/green] {label} [dim]{self.durations_s[name]:.1f} s[/dim]", highlight=False, soft_wrap=True
        )

    @contextmanager
    def _heartbeat(self, label: str, task: Task, started: float) -> Iterator[None]:
        """Print a line every :data:`_HEARTBEAT_S` seconds until the step ends."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_HEARTBEAT_S):
                count = f"{task.completed:.0f} of {task.total:.0f}, " if task.total is not None else ""
                line = f"[dim]…[/dim] {label} [dim]{count}{time.perf_counter() - started:.0f} s[/dim]"
                self.console.print(line, highlight=False, soft_wrap=True)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def note(self, text: str) -> None:
        """Print a line between steps."""
        self.console.print(f"  {markup(text, layout=True)}", highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"[yellow]! {markup(text, layout=True)}[/yellow]", highlight=False, soft_wrap=True)
