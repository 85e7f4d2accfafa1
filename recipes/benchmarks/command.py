"""Run a command from the texts as a user does."""

import shlex
import subprocess
import sys
from pathlib import Path

from ftkit.errors import UserError


def run(command: str, log: Path, root: Path) -> None:
    """Run a line such as `accelerate launch …` or `python …` in `root`, with its output in `log`.

    Raises:
        UserError: the command failed; the message has the end of its output.
    """
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", "-m", "accelerate.commands.launch", *words[2:]]
    if words[0] != "python":
        raise UserError(f"{command}: expected a line that starts with `accelerate launch` or `python`")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run([sys.executable, *words[1:]], cwd=root, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        raise UserError(f"{command}: exit code {done.returncode}, see {log}:\n{last}")
