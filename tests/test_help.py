"""`mert COMMAND --help` teaches: an example, and every setting with its default and meaning."""

import importlib
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from mert_foundry.jobs.command.config import describe_keys, known_keys
from mert_foundry.jobs.command.line import JOBS, run

MODULES = {name: importlib.import_module(f"mert_foundry.jobs.{name}") for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_every_command_shows_an_example_and_all_its_keys(name: str, capsys: pytest.CaptureFixture):
    module = MODULES[name]
    assert run(module.main, ["--help"], module.__doc__, getattr(module, "CONFIG", None)) == 0
    text = capsys.readouterr().out
    assert f"    mert {name}" in text
    if config := getattr(module, "CONFIG", None):
        shown = {
            part.split("(")[0]
            for line in text.splitlines()
            for part in line.split(" ")[2:3]
            for part in part.split(".")
        }
        assert set(known_keys(config)) <= shown


@pytest.mark.parametrize("name", [name for name in JOBS if hasattr(MODULES[name], "CONFIG")])
def test_every_key_says_what_it_is(name: str):
    lines = describe_keys(MODULES[name].CONFIG).splitlines()
    for line, following in zip(lines[1:], lines[2:] + [""]):
        if not line.startswith("      "):
            assert following.startswith("      ") and len(following.split()) > 0, f"{line.strip()} has no description"


def test_the_form_of_every_kind_of_key():
    class Near(BaseModel):
        kind: Literal["near"] = Field(description="Near")
        distance: float = Field(default=1.5, description="How far, metres")

    class Far(BaseModel):
        kind: Literal["far"] = Field(default="far", description="Far")

    class Settings(BaseModel):
        out: str = Field(description="Folder")
        mode: Literal["fast", "slow"] = Field(default="fast", description="Manner")
        places: list[Near | Far] = Field(default=[], description="Places")
        inner: Near | None = Field(default=None, description="One more place")
        flag: bool = Field(default=False, description="Whether")

    shown = [line.strip() for line in describe_keys(Settings).splitlines()[1:]]
    assert shown[:8] == [
        "out   (required)", "Folder", "mode = fast", "Manner; fast | slow", "places = []", "Places",
        "places.N(near).kind   (required)", "Near",
    ]  # fmt: skip
    assert "places.N(near).distance = 1.5" in shown and "places.N(far).kind = far" in shown
    assert "inner(near).distance = 1.5" in shown and shown[-2:] == ["flag = false", "Whether"]
