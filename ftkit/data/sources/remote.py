"""Downloads from the Hub, or one clear message within seconds if the Hub is out of reach."""

from collections.abc import Callable
from typing import Any

import datasets.config
import huggingface_hub.constants
from datasets.exceptions import DatasetsError
from huggingface_hub import get_session, is_offline_mode

from ftkit.errors import UserError, unwritable

TIMEOUT_S = 3.0


def _reachable() -> bool:
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception:  # whatever the HTTP library raises: the Hub did not answer
        return False
    return True


def from_hub(load: Callable[[], Any], what: str, fix: str) -> Any:
    """Call `load`, which reads `what` from the Hub or from the local Hub cache.

    The libraries retry for up to 47 s when the Hub is away. Here one short request decides: if it fails, they are
    switched to offline mode, in which they use their cache or fail at once.

    Raises:
        UserError: `what` is missing (the message ends with `fix`), or the disk is full.
    """
    offline = is_offline_mode() or not _reachable()
    if offline:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return load()
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        if full := unwritable(error.__cause__ or error, "HF_HOME", datasets.config.HF_CACHE_HOME):
            raise full from error
        if offline:
            raise UserError(
                f"{what} is not in the local cache, and the Hub ({huggingface_hub.constants.ENDPOINT}) is out of "
                f"reach: {fix}"
            ) from error
        raise UserError(f"{what} cannot be loaded: {str(error).strip().splitlines()[0]}. {fix}") from error
