"""The GPU tests are collected on a machine that has little more than torch, transformers and pytest."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

TESTS = Path(__file__).parent
# What the tests import somewhere, and is neither with torch and transformers on such a machine nor small enough to carry.
LACKING = [
    "aiobotocore", "boto3", "datasets", "duckdb", "flask", "moto", "numcodecs", "openvino", "playwright", "ray", "s3fs",
    "wids", "xarray", "xdist", "zarr",
]  # fmt: skip
CARRIED = ["zarr", "numcodecs"]  # where extraction is to be tested too
COLLECT = """
import sys
import pytest

lacking = sys.argv.pop(1).split()


class Without:
    '''A finder of modules that does not find some packages.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in lacking else self.finder.find_spec(name, *arguments)


sys.meta_path[:] = map(Without, sys.meta_path)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "lacking", [LACKING, [name for name in LACKING if name not in CARRIED]], ids=["bare", "zarr carried"]
)
def test_gpu_tests_are_collected_without_what_a_gpu_machine_lacks(lacking: list[str]):
    marked = {
        path.name
        for path in TESTS.glob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu$", path.read_text(), re.MULTILINE)
    }
    options = ["-p", "pytest_timeout", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", "-q", str(TESTS)]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, " ".join(lacking), *options],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # zarr and xdist are plugins too
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {Path(line.partition("::")[0]).name for line in done.stdout.splitlines() if "::" in line}
    assert len(marked) >= 5 and collected == marked - ({"test_extract.py"} if "zarr" in lacking else set()), done.stdout
