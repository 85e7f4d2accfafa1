"""Time the sides of a row in turn, and compare their medians.

Absolute times are not comparable between runs on a busy machine; ratios are, because the sides of a row take turns
within one process.
"""

import gc
import operator
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftkit.console import fact

# Runs one side in the given round, and returns its measurements by name.
Side = Callable[[int], dict[str, float]]
RELATIONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


class Row(NamedTuple):
    """Sides that run in turn, and the goals for their medians.

    Attributes:
        what: the measured quantity in words.
        sides: the sides by name.
        goals: goals for medians, such as `stock / ftkit >= 40` or `again < 1`.
        measure: the number of a side that the goals are about.
        also: other numbers of a side whose medians are stored, as `<side> <number>`.
    """

    what: str
    sides: dict[str, Side]
    goals: list[str]
    measure: str = "seconds"
    also: tuple[str, ...] = ()


def clock(job: Callable[[], Any], images: int, batches: int = 1) -> dict[str, float]:
    """Time `job`, which processes this many images and batches."""
    gc.collect()  # so that no side pays for another's garbage
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    started, cpu_started = time.perf_counter(), time.process_time()
    job()
    wait()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    # A CPU time far below the wall time shows that other processes used the machine.
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return times | {"seconds_per_batch": seconds / batches, "images_per_second": images / seconds}


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Run the sides of a row in turn, `rounds` times; returns the row's part of a result."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in row.sides}
    for number in range(rounds):
        for name, side in row.sides.items():
            runs[name].append(side(number))
        fact(f"round {number + 1}", ", ".join(f"{name} {runs[name][-1][row.measure]:.3g}" for name in row.sides))
    numbers = {name: median([run[row.measure] for run in each]) for name, each in runs.items()}
    also = {f"{name} {key}": median([run[key] for run in each]) for name, each in runs.items() for key in row.also}
    return {
        "what": row.what,
        "measure": row.measure,
        "numbers": numbers | also,
        "goals": [judge(goal, {name: number["median"] for name, number in numbers.items()}) for goal in row.goals],
        "rounds": runs,
    }


def median(values: list[float]) -> dict[str, Any]:
    """A number of a result: the values of all rounds and their median."""
    return {"values": values, "median": statistics.median(values), "n": len(values)}


def judge(goal: str, medians: dict[str, float]) -> dict[str, Any]:
    """Whether the medians reach a goal such as `stock / ftkit >= 40` or `again < 1`."""
    what, relation, bound = goal.rsplit(" ", 2)
    side, _, other = what.partition(" / ")
    value = medians[side] / (medians[other] if other else 1)
    met = RELATIONS[relation](value, float(bound))
    return {"what": what, "value": value, "target": f"{relation} {bound}", "met": met}
