"""A model's directory, wherever it is: on this disk, or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from narrows.errors import NarrowsError

_FILES = ["*.json", "*.safetensors", "SHA256SUMS", "*.md", "encoding/*"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fetch(source: str | Path) -> Path:
    """The directory `source` if it exists; else the hub's model of this id, downloaded (or found in its cache).

    Only JSON, text and safetensors files are fetched. Raises NarrowsError when there is neither.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise NarrowsError(f"{path} is a file; name the directory that holds config.json.")
    if not _HUB_ID.fullmatch(str(source)):
        raise NarrowsError(f"{source} does not exist; name a directory, a hub id (owner/name) or 'embedded'.")
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise NarrowsError(
            f"{source} is no directory here and could not be fetched from the hub ({reason}); "
            "check the name and the connection."
        ) from None
