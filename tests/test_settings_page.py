"""docs/settings.md has every setting of every command, as the code has them now."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mert_foundry.jobs.command.config import known_keys
from mert_foundry.jobs.command.line import JOBS
from mert_foundry.jobs.command.settings_page import settings_page

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
MODULES = {name: importlib.import_module(f"mert_foundry.jobs.{name}") for name in JOBS}
CONFIGS = {name: module.CONFIG for name, module in MODULES.items() if hasattr(module, "CONFIG")}


def test_the_page_is_fresh() -> None:
    stale = "docs/settings.md is stale: python -m mert_foundry.jobs.command.settings_page > docs/settings.md"
    assert PAGE.read_text() == settings_page(), stale


@pytest.mark.process
@pytest.mark.slow
def test_the_command_in_its_head_makes_the_page() -> None:
    (module,) = re.findall(r"`python -m (\S+) > docs/settings.md`", PAGE.read_text())
    made = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True, timeout=120)
    assert made.stdout == settings_page()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_section_has_every_key_of_its_command(name: str) -> None:
    section = settings_page().split(f"## mert {name}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", section, flags=re.MULTILINE)
    assert len(rows) == sum(line.startswith("| `") for line in section.splitlines())
    named = {part.split("(")[0] for key, _, _ in rows for part in key.split(".")}
    assert set(known_keys(CONFIGS[name])) <= named


def test_commands_without_settings_have_no_section() -> None:
    assert re.findall(r"^## mert (\w+)$", settings_page(), flags=re.MULTILINE) == list(CONFIGS)
