"""README.md says what is there: its tree, its configs, its commands."""

import re
from pathlib import Path

from jobs.command_line import JOBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree_modules() -> dict[str, set[str]]:
    """Module names listed under each package in the tree of the README."""
    listed: dict[str, set[str]] = {}
    folder = ""
    for line in README.split("## The tree")[1].split("```")[1].splitlines():
        if match := re.match(r"(\w+)/", line):
            folder = match[1]
        elif match := re.match(r"  (\w+\.py) ", line):
            listed.setdefault(folder, set()).add(match[1])
    return listed


def test_tree_lists_every_module() -> None:
    for package in ("pipeline", "model", "jobs"):
        there = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert tree_modules()[package] == there


def test_every_command_is_explained_and_exists() -> None:
    named = set(re.findall(r"^mert (\w+) ", README, flags=re.MULTILINE))
    assert named == set(JOBS)


def test_files_named_in_commands_exist() -> None:
    for name in set(re.findall(r"configs/\w+\.yaml", README)):
        assert (ROOT / name).is_file(), name
