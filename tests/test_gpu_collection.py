"""The GPU tests are collected on a machine that has little more than torch, transformers and pytest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WHAT_NEEDS

pytestmark = pytest.mark.process

TESTS = Path(__file__).parent
# What the tests import somewhere, and is neither with torch and transformers on such a machine nor small enough to
# carry.
LACKING = [
    "aiobotocore", "boto3", "datasets", "duckdb", "flask", "moto", "numcodecs", "openvino", "playwright", "ray", "s3fs",
    "wids", "xarray", "xdist", "zarr",
]  # fmt: skip
CARRIED = ["zarr", "numcodecs"]  # where extraction is to be tested too
COLLECT = """
import json
import sys
import pytest

lacking = []


class Without:
    '''A finder of modules that does not find some packages.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in lacking else self.finder.find_spec(name, *arguments)


sys.meta_path[:] = map(Without, sys.meta_path)
for lacking, arguments in json.loads(sys.argv[1]):
    if code := pytest.main(arguments):
        sys.exit(code)
    print("next", flush=True)
"""
OPTIONS = ["-p", "pytest_timeout", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", "-q"]


@pytest.fixture(scope="module")
def collected() -> list[set[str]]:
    """Names of the files whose GPU tests pytest collects: of all where packages are lacking, then of those that ask for
    zarr.

    One process for both, since to import all files takes long. Other files do not ask for it, so they need no second
    look.
    """
    asking = [path for path in TESTS.glob("test_*.py") if path.name in WHAT_NEEDS["zarr"] or "zarr" in path.read_text()]
    with_zarr = [name for name in LACKING if name not in CARRIED]
    steps = [(LACKING, [*OPTIONS, str(TESTS)]), (with_zarr, [*OPTIONS, *map(str, asking)])]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, json.dumps(steps)],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # zarr and xdist are plugins too
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        {Path(line.partition("::")[0]).name for line in told.splitlines() if "::" in line}
        for told in done.stdout.split("next\n")[:-1]
    ]


def test_gpu_tests_are_collected_without_what_a_gpu_machine_lacks(collected: list[set[str]]):
    marked = {
        path.name
        for path in TESTS.glob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu$", path.read_text(), re.MULTILINE)
    }
    assert len(marked) >= 5 and collected[0] == marked - {"test_extract.py"}


def test_with_zarr_those_of_extraction_are_collected_too(collected: list[set[str]]):
    assert collected[1] == {"test_extract.py"}
