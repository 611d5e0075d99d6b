"""Whether output could be written to a place, asked before long work is done for it."""

import os
import tempfile
from pathlib import Path

from jobs.config import UsageError


def check_writable(path: Path) -> None:
    """Raise UsageError when no file could be made at `path`; folders on the way may be missing. Leaves nothing."""
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))  # Path.exists may raise
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{path}: nothing can be written in {folder}: {error.strerror}") from error
