"""recipes/finetune.py with one mechanism after another, under a launcher; the outcome of each is written to a file.

    distributed_mechanisms.py <folder> <model> <mechanism>… [-- <option>…]

Under FSDP or DeepSpeed accelerate is told that CPUs are accelerators.
"""

import os
import sys
import traceback
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from mechanisms import run_pair

from ftkit.errors import UserError


def outcome(folder: Path, model: Path, name: str, options: list[str]) -> str:
    try:
        trainer = run_pair(folder / name, model, (name,), "--per_device_train_batch_size", 10, *options)
    except UserError as error:
        return f"refused: {error}"
    except Exception:
        return traceback.format_exc()
    return f"works: {sum(value.double().abs().sum().item() for value in trainer.original.state_dict().values())}"


def main(folder: str, model: str, *words: str) -> None:
    names, _, options = " ".join(words).partition(" -- ")
    for name in names.split():
        found = outcome(Path(folder), Path(model), name, options.split())
        Path(folder, f"{name}-{os.environ['RANK']}").write_text(found)


if __name__ == "__main__":
    if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may still need the interpreter
