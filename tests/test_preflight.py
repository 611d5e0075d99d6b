"""A folder is held by one piece of work at a time."""

from pathlib import Path

import pytest

from mert_foundry.jobs.command.preflight import locked


def test_a_held_folder_is_refused_and_free_again_afterwards(tmp_path: Path):
    folder = tmp_path / "new" / "run"
    with locked(folder, "training"):
        with pytest.raises(ValueError, match=f"^{folder}: another process is labelling in this folder$"):
            with locked(folder, "labelling"):
                pass
    for _ in range(2):
        with pytest.raises(KeyError), locked(folder, "training"):
            raise KeyError("work fails")
