"""README.md says what is there: its map, its configs, its commands."""

import ast
import re
from pathlib import Path

from mert_foundry.jobs.command.line import JOBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_map_has_the_sentence_of_every_folder() -> None:
    listed = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", README, flags=re.MULTILINE))
    there = {}
    for side in ("pipeline", "model", "jobs"):
        for path in (ROOT / side).rglob("__init__.py"):
            there[path.parent.relative_to(ROOT).as_posix()] = ast.get_docstring(ast.parse(path.read_text()))
    assert listed == there


def test_every_command_is_explained_and_exists() -> None:
    named = set(re.findall(r"^mert (\w+) ", README, flags=re.MULTILINE))
    assert named == set(JOBS)


def test_files_named_in_commands_exist() -> None:
    for name in set(re.findall(r"configs/\w+\.yaml", README)):
        assert (ROOT / name).is_file(), name
