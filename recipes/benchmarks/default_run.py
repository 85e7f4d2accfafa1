"""The command that a new user types, from the shell to the prompt: imports, training, evaluation and report."""

import time

from benchmarks.command import run
from benchmarks.data import Bench
from benchmarks.record import REPO
from benchmarks.timing import Row

COMMAND = "accelerate launch recipes/finetune.py"


def row(bench: Bench) -> Row:
    """One side; the first round finds nothing in the caches of decoded images."""

    def launch(number: int) -> dict[str, float]:
        place = bench.folder / f"default-run-{number}"
        command = f"{COMMAND} --output_dir {place} --cache_dir {bench.folder / 'default-run-cache'}"
        started = time.perf_counter()
        run(command, place.with_suffix(".log"), REPO)
        return {"seconds": time.perf_counter() - started}

    return Row(f"`{COMMAND}` from the shell", {"launch": launch}, [])
