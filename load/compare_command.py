"""``python -m load compare``: the fastest precision on this machine, at this load, and its cost in accuracy."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from client.transport import DEFAULT_URLS
from load.analysis import Analysis, analyze
from load.compare import Outcome, Schedule, loads_of, run_comparison
from load.conditions import Condition, Verdict
from load.machine import describe_machine
from load.options import UserOptions, add_user_arguments, numbers
from load.recommendation import recommend
from load.report import JSON_NAME, Report, write_report
from load.server import add_server_arguments, server_under_test
from pipeline import contract
from pipeline.command_line import names, say, whole
from serving.lifetime import interruptible

_DEFAULT_USERS = "1,2,4,8,16"


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare", help="compare precisions under load and write a report", description=__doc__
    )
    for option, allowed in (("--precisions", contract.PRECISIONS), ("--protocols", tuple(DEFAULT_URLS))):
        parser.add_argument(option, type=names(allowed), default=allowed, help=f"default: {','.join(allowed)}")
    parser.add_argument(
        "--users",
        help=f"closed loop: how many users at a time, load by load (default: {_DEFAULT_USERS}; none with --rate)",
    )
    parser.add_argument("--rate", default="", help="open loop: arrivals per second, load by load, such as 5,10,20")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds that are measured per step (default: 20)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds of load before them (default: 1)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="repetitions of all loads (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("out/load"), help="folder of the report (default: out/load)")
    parser.add_argument("--budget-ms", type=float, help="find the highest load that keeps p95 within it")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="such as 'int8.throughput < 1.2 * fp32.throughput'; exit with 1 if it holds. May be given again",
    )
    parser.add_argument(
        "--max-error-rate", type=float, default=0.0, help="share of failed requests to exit with 0 at (default: 0)"
    )
    add_server_arguments(parser)
    add_user_arguments(parser.add_argument_group("users"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare, write the report, and print the recommendation.

    Returns:
        0; 1 if a condition held, too many requests failed, or the server went away.

    Raises:
        ValueError: an option is out of range.
        LoadError: it cannot start.
    """
    schedule = schedule_of(options)
    conditions = [Condition.parse(text) for text in options.fail_if]
    machine = describe_machine()  # before the load, which raises the load average
    precisions = tuple(dict.fromkeys(("fp32", *schedule.precisions))) if _can_add_fp32(options) else schedule.precisions
    with interruptible(), server_under_test(options, schedule.protocols, precisions) as (endpoints, server):
        outcome = run_comparison(schedule, endpoints, lambda line: say(line, sys.stderr))
    analysis = analyze(outcome.results, outcome.versions, options.budget_ms)
    verdicts = tuple(condition.decide(analysis.lookup, schedule.protocols) for condition in conditions)
    report = Report(
        schedule,
        outcome,
        analysis,
        recommend(analysis),
        verdicts,
        machine,
        server,
        shlex.join(["python", "-m", "load", *sys.argv[1:]]),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    page = write_report(report, options.out)
    faults = failed_gates(analysis, outcome, verdicts, options.max_error_rate)
    say(report.recommendation.sentence)
    say(f"report: {page.resolve()} (numbers: {page.with_name(JSON_NAME).name})")
    for fault in faults:
        say(f"failed: {fault}", sys.stderr)
    return 1 if faults else 0


def failed_gates(
    analysis: Analysis, outcome: Outcome, verdicts: tuple[Verdict, ...], max_error_rate: float
) -> list[str]:
    """Why the command exits with 1; empty if it does not."""
    faults = [f"{verdict.text}: {verdict.detail}" for verdict in verdicts if verdict.holds]
    for series in analysis.series:
        rate = series.error_rate
        if rate is not None and rate > max_error_rate:
            faults.append(
                f"{series.failures} of {series.requests} requests to {series.precision} over {series.protocol} "
                f"({rate * 100:.2f} %; allowed: {max_error_rate * 100:g} %)"
            )
    if outcome.stopped:
        faults.append(f"the comparison ended early, at {outcome.stopped}")
    return faults


def schedule_of(options: argparse.Namespace) -> Schedule:
    """Read the schedule from the command line.

    Raises:
        ValueError: an option is out of range.
    """
    users = options.users if options.users is not None else ("" if options.rate else _DEFAULT_USERS)
    if not 0 < options.duration <= 3600 or not 0 <= options.warm_up <= 600:
        raise ValueError("--duration is above 0, up to 3600 s; --warm-up from 0 to 600 s")
    if options.budget_ms is not None and not options.budget_ms > 0:
        raise ValueError(f"--budget-ms is {options.budget_ms}; allowed: more than 0")
    if not 0 <= options.max_error_rate <= 1:
        raise ValueError(f"--max-error-rate is {options.max_error_rate}; allowed: 0 to 1")
    return Schedule(
        options.precisions,
        options.protocols,
        loads_of(numbers(users, int), numbers(options.rate, float)),
        options.rounds,
        options.duration,
        options.warm_up,
        UserOptions.of(options),
    )


def _can_add_fp32(options: argparse.Namespace) -> bool:
    """Whether a server that is started can serve fp32 too, which says what to expect."""
    from repository.store import SHIPPED_REPOSITORY, ModelRepository

    if options.url_grpc or options.url_http:
        return False
    return "fp32" in ModelRepository.existing(options.repository or SHIPPED_REPOSITORY).servable_precisions(
        options.profile
    )
