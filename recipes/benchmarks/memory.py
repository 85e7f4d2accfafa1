"""What a process that decodes CIFAR-10 and trains on it grows by, without those that decode for it."""

import multiprocessing
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.data import Bench, make_setup, read_images
from benchmarks.sides import ftkit
from benchmarks.timing import Row

STEPS, TO_SPARE = 20, 0.6  # GB, beside the pixels and the model


def row(bench: Bench) -> Row:
    """Measured in a process of its own, whose memory holds nothing else."""
    measured: list[dict[str, float]] = []

    def grown(number: int) -> dict[str, float]:
        fresh = multiprocessing.get_context("spawn")
        with TemporaryDirectory(dir=bench.folder) as folder, ProcessPoolExecutor(1, fresh) as pool:
            measured.append(pool.submit(grow, bench.args, Path(folder)).result())
        return measured[-1]

    sides = {"ftkit": grown, "allowed": lambda number: {"gigabytes": measured[-1]["allowed"]}}
    what = f"CIFAR-10 with its test part, convnet, {STEPS} steps: what the process grows by"
    return Row(what, sides, ["ftkit / allowed <= 1"], "gigabytes")


def grow(args: Namespace, folder: Path) -> dict[str, float]:
    """Decode and train in this process; returns how far its memory grew, in GB."""
    before = resident("VmRSS")
    bench = Bench(args, folder, ExitStack())
    setup = make_setup(
        bench, "cifar10", 128, read_images(bench, "cifar10", test=True), model="convnet", max_steps=STEPS
    )
    trainer = ftkit(setup)
    trainer.train()
    peak = resident("VmHWM")
    tensors = setup.tensors.images, *trainer.model.state_dict().values()
    allowed = sum(tensor.nbytes for tensor in tensors) / 1e9 + TO_SPARE
    return {
        "gigabytes": peak - before,
        "allowed": allowed,
        "before": before,
        "peak": peak,
        "images": len(setup.images),
    }


def resident(key: str) -> float:
    """The memory that this process holds (`VmRSS`), or the most that it held (`VmHWM`), in GB.

    Not `getrusage`: on Linux a process inherits its `ru_maxrss` from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{key}:"))
