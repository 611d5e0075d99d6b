"""README.md and the guides say what is there: the map, files, links, commands with their settings, tests."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.line import JOBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = sorted(
    path.relative_to(ROOT).as_posix()
    for places in ("*.md", "docs/*.md", "pipeline/**/README.md", "model/**/README.md", "jobs/**/README.md")
    for path in ROOT.glob(places)
)
# A line of a code block that runs a command: by itself, under torchrun, or as a Ray job.
COMMAND = re.compile(r"^(?:\w+ .*?(?:--no-python|--) )?(?:mert |\w+ .*?-m mert_foundry\.jobs\.)(\w+) (.*?)(?:  +#.*)?$")


def blocks(guide: str) -> str:
    """The fenced blocks without a language, which are for a shell."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / guide).read_text(), flags=re.MULTILINE | re.DOTALL)
    return "".join(content for language, content in found if not language)


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150


def test_the_map_has_the_sentence_of_every_folder() -> None:
    listed = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", README, flags=re.MULTILINE))
    there = {}
    for side in ("pipeline", "model", "jobs"):
        for path in (ROOT / side).rglob("__init__.py"):
            there[path.parent.relative_to(ROOT).as_posix()] = ast.get_docstring(ast.parse(path.read_text()))
    assert listed == there


def test_every_command_is_explained_and_exists() -> None:
    named = set(re.findall(r"^mert (\w+) ", blocks("README.md"), flags=re.MULTILINE))
    assert named == set(JOBS)


@pytest.mark.parametrize("guide", GUIDES)
def test_files_and_links_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    for name in set(re.findall(r"configs/\w+\.yaml", text)):
        assert (ROOT / name).is_file(), name
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or ((ROOT / guide).parent / link).exists(), link
    for name in re.findall(r"`((?:pipeline|model|jobs|tests|docs)/[\w/]+\.\w+)`", text):
        # What a reader is told to write is not there yet.
        assert (ROOT / name).is_file() or name == "pipeline/teachers/loudness.py", name


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_have_settings_that_exist(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in blocks(guide).splitlines():
        if match := COMMAND.match(line):
            command, arguments = match[1], shlex.split(match[2].replace("$PWD/", ""))
            assert command in JOBS, line
            module = importlib.import_module(f"mert_foundry.jobs.{command}")
            if command == "plan":  # which reads two config files
                module.load(arguments)
            elif config := getattr(module, "CONFIG", None):
                load_config(config, arguments)


def test_the_tests_of_options_exist() -> None:
    """The last column of the tables in model/README.md: files, and parts of the names of tests in them."""
    checked = 0
    guide = (ROOT / "model" / "README.md").read_text()
    for row in re.findall(r"^\|.*\| ([^|]*`test_\w+\.py`[^|]*) \|$", guide, flags=re.MULTILINE):
        for name, rest in re.findall(r"`(test_\w+\.py)`(?:: ([^`;]+))?", row):
            tests = re.findall(r"^def test_(\w+)", (ROOT / "tests" / name).read_text(), flags=re.MULTILINE)
            for part in re.findall(r"\w+_\w+", rest):
                assert any(part in test for test in tests), f"{name}: {part}"
                checked += 1
    assert checked > 10
