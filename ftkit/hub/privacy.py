"""The check that a push reveals nothing of this machine: no folder, no name of a user or of the machine, no secret."""

import html
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import get_token

from ftkit.errors import UserError, listed
from ftkit.places import is_path

_SHOWN = 5  # findings in a message
_SECRET = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)  # of variables
_PLACES = ("data_dir", "image_dir", "model", "architecture", "output_dir", "cache_dir")  # keys that may be paths
_LEAST = 4  # characters: shorter names occur by chance; secrets have at least twice as many
_PATTERNS = {
    "a home folder": re.compile(r"(?<![\w.:/\\-])(?:[a-z]:)?[\\/]+(?:home|users)[\\/]+[^\\/\s\"'<>|]+", re.IGNORECASE),
    "a file's address": re.compile(r"(?<!\w)file:/+\w[^\s\"'<>]*", re.IGNORECASE),
    "a token of the Hub": re.compile(r"(?<!\w)hf_[A-Za-z0-9]{24,}"),
}
_PICTURES = re.compile(rb"base64,[A-Za-z0-9+/=]+")


def check_private(files: dict[str, Path | bytes], run: Path, config: dict[str, Any], public: list[str]) -> None:
    """Check that no file names a folder of the run or its user, the machine, or a secret of this process.

    Args:
        files: the files to push, by their path in the repository.
        run: the run's folder.
        config: the run's configuration.
        public: names that may occur even if the machine has the same one.

    Raises:
        UserError: a file does; the message says which, and what was found.
    """
    names = [(what, _pattern(name)) for what, name in _names(run, config) if name not in public]
    searched = [*_PATTERNS.items(), *names]
    found = []
    for file, content in files.items():
        for text in _texts(_content(content)):
            found += [(file, what, match[0]) for what, pattern in searched if (match := pattern.search(text))]
    if not found:
        return
    some = [f"{file} holds {what}{'' if 'secret' in what or 'token' in what else f', {text}'}" for file, what, text in
            dict.fromkeys(found)]  # fmt: skip
    raise UserError(
        f"{run} must not be pushed: its files reveal details of this machine:\n"
        + listed((f"  - {line}" for line in some), _SHOWN, between="\n")
        + f"\nremove it from the files in {run / 'model'}; `python recipes/report.py {run}` writes the files in "
        "evaluation/ again"
    )


def _names(run: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The private names: a description of each, and the text to look for."""
    places = {"the run's folder": str(run), "your home folder": str(Path.home()), "the working folder": os.getcwd()}
    named = {key: config.get(key) for key in _PLACES}
    places |= {key: text for key, text in named.items() if isinstance(text, str) and is_path(text)}
    for what, text in places.items():
        path = Path(os.path.abspath(os.path.expanduser(text)))
        for form in {str(path), os.path.realpath(path)}:
            if len(form) >= _LEAST:
                yield what, form
    host = socket.gethostname()
    for name in {host, host.partition(".")[0]} - {"localhost"}:
        if len(name) >= _LEAST:
            yield "the name of this machine", name
    secrets = {get_token()} | {value for name, value in os.environ.items() if _SECRET.search(name)}
    for secret in secrets:
        if secret and len(secret) >= 2 * _LEAST:
            yield "a secret of this process", secret


def _pattern(name: str) -> re.Pattern[str]:
    """Matches the whole name: not inside a word or another path, nor at the start of a longer name."""
    return re.compile(rf"(?<![\w.\-]){re.escape(name)}(?![\w\-])")


def _content(content: Path | bytes) -> bytes:
    """The bytes to search: of a weights file only the header, which holds names and metadata."""
    if isinstance(content, bytes):
        return content
    if content.suffix != ".safetensors":
        return content.read_bytes()
    with content.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")  # in a damaged file, any number
        return file.read(min(length, content.stat().st_size))


def _texts(content: bytes) -> Iterator[str]:
    """The text as it is stored, and as it is shown: without the escapes of HTML, JSON, Markdown and addresses."""
    text = _PICTURES.sub(b"", content).decode("utf-8", "replace")
    yield text
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), unquote(html.unescape(text)))
    yield re.sub(r"\\([\W_])", r"\1", text)
