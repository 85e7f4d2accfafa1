"""recipes/finetune.py, in which each process records the weights and buffers that it evaluates and predicts with.

The last argument is a folder for one file per process, with a hash per evaluation.
"""

import hashlib
import os
import sys
from pathlib import Path

from support import load_recipe_script

from ftkit.errors import user_errors
from ftkit.training.loop.trainer import ImageTrainer

path = Path(sys.argv.pop()) / f"{os.environ['RANK']}.txt"
evaluation_loop = ImageTrainer.evaluation_loop


def watched(self, *args, **kwargs):
    digest = hashlib.sha256()
    for name, value in self.model.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().flatten().view(-1).numpy().tobytes())
    with path.open("a") as file:
        file.write(digest.hexdigest() + "\n")
    return evaluation_loop(self, *args, **kwargs)


ImageTrainer.evaluation_loop = watched
with user_errors():
    load_recipe_script("finetune").main(sys.argv[1:])
