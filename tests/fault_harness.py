"""A run of three stages, killed at any point and resumed by the same command.

    python tests/fault_harness.py          # some of the faults, about a minute
    python tests/fault_harness.py --long   # all of them

Prints how many faults were survived: model, metrics and log of every killed run equal those of an undisturbed one,
byte for byte (except the seconds). Each attempt is a forked process, so libraries load once.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from support import LEARNS, load_recipe_script, weights

from ftkit.errors import user_errors
from ftkit.signals import signals
from ftkit.training.loop.trainer import ImageTrainer

FINETUNE = load_recipe_script("finetune").main
STAGES = [
    {"train": "head", "num_train_epochs": 2},
    {"train": {"last": 1}, "num_train_epochs": 2},
    {"train": "all", "num_train_epochs": 2},
]
OPTIONS = [
    *LEARNS,
    "--model", "mlp", "--model_args", '{"hidden_sizes": [16, 16]}', "--max_train_samples", "160", "--dropout", "0.2",
    "--stages", json.dumps(STAGES), "--ema_decay", "0.9", "--mixup", "0.2", "--augment", "translate",
    "--early_stopping_patience", "5", "--logging_steps", "3", "--save_total_limit", "2", "--disable_tqdm", "true",
    "--num_train_epochs", "2",
]  # fmt: skip
STEPS = 30
_WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


class Fault(NamedTuple):
    """The signal `signum` at the `count`-th time that `where` (step, evaluation or file) happens."""

    where: str
    count: int
    signum: int

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name} at {self.where} {self.count}"


def happens(where: str, folder: Path, then: Callable[[int], None]) -> None:
    """Call `then` with 1, 2, 3, … whenever a step or a prediction starts, or something in `folder` is written."""
    count = 0

    def once_more() -> None:
        nonlocal count
        count += 1
        then(count)

    if where == "file":

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event in _WRITES or (event == "open" and "r" not in (arguments[1] or "r"))
            if writes and str(arguments[0]).startswith(str(folder)):
                once_more()

        sys.addaudithook(heard)
        return
    name = {"step": "training_step", "evaluation": "prediction_step"}[where]
    original = getattr(ImageTrainer, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        once_more()
        return original(*args, **kwargs)

    setattr(ImageTrainer, name, counted)


def attempt(folder: Path, prepare: Callable[[], None] = lambda: None, options: list[str] = OPTIONS) -> int:
    """Run the command in a forked process, output to `<folder>.log`; returns the exit code, or minus the signal."""
    shown, shows = os.pipe()  # not a file: the process may have a limit on file sizes
    child = os.fork()
    if child == 0:
        code = 1
        os.dup2(shows, 1)
        os.dup2(shows, 2)
        os.close(shows)
        try:
            with user_errors(), signals.handled():
                prepare()
                FINETUNE([*options, "--output_dir", str(folder)])
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(shows)
    with open(shown) as pipe, open(folder.with_suffix(".log"), "a") as log:
        log.write(pipe.read())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on how often a run was killed."""
    stages = sorted((folder / "stages").iterdir())
    states = [json.loads((stage / "trainer_state.json").read_text()) for stage in stages]
    logs = [
        [{key: log[key] for key in log if not key.endswith(("runtime", "per_second"))} for log in state["log_history"]]
        for state in states
    ]
    chosen = [(state["best_metric"], state["best_global_step"]) for state in states]
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    model = weights(folder)
    return {"model": model, "metrics": metrics, "chosen": chosen, "logs": logs}


def survives(fault: Fault, root: Path, expected: dict[str, Any]) -> str | None:
    """Kill a run by this fault and resume it; returns what is not as expected, or None."""
    folder = root / f"{fault.where}-{fault.count}-{fault.signum}"

    def strike() -> None:
        happens(
            fault.where, folder, lambda count: os.kill(os.getpid(), fault.signum) if count == fault.count else None
        )

    code = attempt(folder, strike)
    if code not in (0, -fault.signum, 128 + fault.signum):
        return f"ended with {code}: see {folder}.log"
    if not (folder / "run.json").exists() and (code := attempt(folder)):
        return f"could not resume, {code}: see {folder}.log"
    found = outcome(folder)
    wrong = [key for key in expected if found[key] != expected[key]]
    return f"{wrong[0]}: {found[wrong[0]]!s:.3000} instead of {expected[wrong[0]]!s:.3000}" if wrong else None


def count(where: str, root: Path) -> int:
    """How often `where` happens in an undisturbed run."""
    folder, counted = root / f"count-{where}", root / f"{where}.txt"
    attempt(folder, lambda: happens(where, folder, lambda number: counted.write_text(str(number))))
    return int(counted.read_text())


def faults(root: Path, long: bool) -> list[Fault]:
    """Every fault, or a few, evenly spread."""

    def spread(last: int, some: int) -> list[int]:
        return list(range(1, last + 1)) if long else sorted({1 + (last - 1) * i // (some - 1) for i in range(some)})

    return [
        *(Fault("step", n, signal.SIGKILL) for n in spread(STEPS, 3)),
        *(Fault("step", n, signal.SIGTERM) for n in spread(STEPS, 3)),
        *(Fault("step", n, signal.SIGUSR1) for n in spread(STEPS, 2)),
        *(Fault("evaluation", n, signal.SIGTERM) for n in spread(count("evaluation", root), 2)),
        *(Fault("file", n, signal.SIGKILL) for n in spread(count("file", root), 6)),
    ]


def main() -> int:
    """Try the faults; the exit code is 1 if a run did not survive one."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        assert attempt(root / "whole") == 0, (root / "whole.log").read_text()
        expected, lost = outcome(root / "whole"), []
        chosen = faults(root, "--long" in sys.argv)
        for fault in chosen:
            wrong = survives(fault, root, expected)
            if wrong:
                lost.append(f"{fault}: {wrong}")
                print(lost[-1], (root / f"{fault.where}-{fault.count}-{fault.signum}.log").read_text()[-1500:])
        print(f"{len(chosen) - len(lost)} of {len(chosen)} faults survived")
        return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
