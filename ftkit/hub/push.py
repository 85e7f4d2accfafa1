"""Push a run's model to the Hub: one commit after all uploads; can be repeated at any time."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from ftkit.errors import UserError
from ftkit.evaluation import plots
from ftkit.evaluation.predictions import read_predictions, write_metrics
from ftkit.evaluation.report import evaluation_folder, read_record
from ftkit.hub.card import read_config, write_card
from ftkit.hub.parity import check_parity
from ftkit.hub.privacy import check_private
from ftkit.tasks import Drawing

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ATTEMPTS = 5
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP codes of transient errors
_LONGEST_WAIT_S = 60.0
_REASONS = {
    401: "the token is not valid: log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: use one with write access to that namespace",
    404: "the repository or revision does not exist, or the token may not read it",
}


def check_login() -> str:
    """The user's name on the Hub.

    Raises:
        UserError: there is no token, the token is not valid, or the Hub is out of reach.
    """
    if get_token() is None:
        raise UserError("push_to_hub: no token found: log in with `hf auth login`, or set HF_TOKEN")
    return _persistently(lambda: HfApi().whoami()["name"], "asking the Hub who is logged in", attempts=2)


def push(run: Path, repo_id: str, private: bool | None = None, revision: str | None = None) -> str:
    """Check the model of a finished run, and push it with its card and report.

    A push can be repeated at any time: nothing is uploaded twice, and the Hub shows either the old commit or the new
    one. In the run's folder only the card and the metrics are rewritten.

    Args:
        run: the run's folder.
        repo_id: `<user>/<name>`, or a name in the user's own namespace.
        private: whether a new repository is private; the namespace's default if None.
        revision: a branch, created if missing; `main` if None.

    Returns:
        The address of the commit.

    Raises:
        UserError: the model differs from the evaluated one, a file names a folder or a secret of this machine, or the
            Hub refuses or is out of reach.
    """
    model, evaluation, record, config = run / "model", evaluation_folder(run), read_record(run), read_config(run)
    if not (model / "config.json").is_file():
        raise UserError(f"{run} holds no model: pass the folder of a finished run of recipes/finetune.py")
    if (model / "adapter_config.json").is_file() and not record.get("base_model"):
        raise UserError(
            f"{model} holds adapters of a model that is not on the Hub ({config['model']}): push that model first and "
            "train from its Hub name, or train with --merge_adapters true"
        )
    difference = check_parity(model, evaluation, record)
    logger.info("  %-12s without ftkit the logits are the same to %.1g", "checked", difference)
    task, metrics = read_predictions(evaluation).task, write_metrics(evaluation)
    write_card(run, repo_id)
    files = _files(run, evaluation, task.card_figure(metrics))
    check_private(files, run, config, [*repo_id.split("/"), record["model"], record["dataset"], *task.names])
    api = HfApi()
    url = _persistently(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"creating {repo_id}")
    write_card(run, url.repo_id)  # with the user's name before that of the repository
    if revision is not None:
        _persistently(lambda: api.create_branch(url.repo_id, branch=revision, exist_ok=True), f"branch {revision}")

    def commit() -> str:
        there = api.list_repo_files(url.repo_id, revision=revision)
        stale = [CommitOperationDelete(path) for path in there if _is_stale(path, files)]
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        message = (
            f"{record['model']} on {record['dataset']}, {task.score_metric.title} {record['test'][task.score]:.4f}"
        )
        return api.create_commit(url.repo_id, [*added, *stale], commit_message=message, revision=revision).commit_url

    return _persistently(commit, f"pushing to {url.repo_id}")


def _files(run: Path, evaluation: Path, figure: Drawing) -> dict[str, Path | bytes]:
    """The files to push, by their path in the repository."""
    files: dict[str, Any] = {path.name: path for path in sorted((run / "model").iterdir()) if path.is_file()}
    for name in ("metrics.json", "report.html", "report.md"):
        files[f"evaluation/{name}"] = evaluation / name
    files[f"evaluation/{figure.name}.png"] = plots.png(figure)
    return files


def _is_stale(path: str, files: dict[str, Any]) -> bool:
    """Whether a file at the top of the repository would be mistaken for part of the new model."""
    weights = path.endswith((".safetensors", ".safetensors.index.json", "adapter_config.json", ".bin"))
    return "/" not in path and path not in files and (weights or path.startswith(("modeling_", "configuration_")))


def _persistently(call: Callable[[], T], what: str, attempts: int = _ATTEMPTS) -> T:
    """The result of `call`, which is repeated after transient errors.

    Raises:
        UserError: the call is refused, or all attempts fail.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except (HfHubHTTPError, httpx.TransportError, RuntimeError, OSError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error  # uploads wrap their errors
            found = _reason(cause)
            if found is None or cause is None:
                raise
            reason, transient = found
            if not transient:
                raise UserError(f"{what}: {reason}") from error
            wait = _wait(cause, attempt)
        if attempt < attempts:
            logger.warning("%s: %s; trying again in %.0f s", what, reason, wait)
            time.sleep(wait)
    raise UserError(f"{what}: {reason}; {attempts} attempts failed: try again later")


def _reason(error: BaseException | None) -> tuple[str, bool] | None:
    """The reason of an error, and whether it is transient; None if the error has nothing to do with the Hub."""
    if isinstance(error, HfHubHTTPError):
        status, text = error.response.status_code, error.server_message or ""
        return _REASONS.get(status, f"the Hub answers {status} {text}".strip()), status in _TRANSIENT
    if isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled)):
        return str(error).splitlines()[0], False
    if isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)):
        return f"the connection to the Hub failed ({type(error).__name__}: {error})", True
    return None


def _wait(error: BaseException, attempt: int) -> float:
    """Seconds until the next attempt: those that the server asks for, or else doubled each time."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked) if asked.isdecimal() else 2.0 ** (attempt - 1), _LONGEST_WAIT_S)
