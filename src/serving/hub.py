"""An exported folder on the Hugging Face Hub. The client comes with transformers, and is loaded only here."""

from __future__ import annotations

import importlib
from pathlib import Path

from src.core.errors import ConfigError
from src.core.logging import get_logger

_log = get_logger(__name__)


def push(folder: Path, repository: str) -> None:
    """Upload a folder to a model repository, which is made (private) where it does not exist.

    Raises:
        ConfigError: the client is not installed, nobody is logged in, or the Hub refuses.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        step = "install huggingface_hub, or leave push_to_hub out: the folder is complete without it"
        raise ConfigError.one("push_to_hub", repository, "needs the package huggingface_hub", step) from None
    try:
        hub.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=str(folder), repo_type="model")
    except _refusals() as error:
        step = f"the folder is complete in {folder}: log in with `hf auth login`, then upload it"
        raise ConfigError.one("push_to_hub", repository, f"was refused ({error})", step) from None
    _log.info("%s is on the Hub (private) as %s", folder, repository)


def _refusals() -> tuple[type[Exception], ...]:
    """What the client raises: errors of its own, which are among the first two, and those of its transport."""
    try:
        return (OSError, ValueError, importlib.import_module("httpx").HTTPError)
    except ImportError:
        return (OSError, ValueError)
