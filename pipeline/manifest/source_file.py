"""An audio file below a root, and whose fault it is when it cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.storage import files


@contextmanager
def source_file(root: str, path: str, name: str = "", may_be_missing: bool = False) -> Iterator[Path]:
    """A local path with the content of the file `path` below `root`, a folder or fsspec URL.

    Args:
        name: begins the message of an OSError, before the file.
        may_be_missing: whether a file that is not there is a fault of its own.

    Raises, also for what happens while it is in use:
        DecodeError: `unreadable` for a fault of the file's own: another run cannot reach it either (a link to itself,
            too long a name).
        OSError: the file cannot be reached, naming it, or there is no room for what is made of it.
    """
    try:
        with files.local_copy(root, path) as local:
            yield local
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            raise DecodeError("unreadable", f"{path}: no such file") from error
        if error.errno in files.FAULTS_OF_A_FILE:
            raise DecodeError("unreadable", f"{path}: {error.strerror}") from error
        message = f"{name}{files.join(root, path)}: {error.strerror or error}"
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error
