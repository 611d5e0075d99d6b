"""The folders pipeline/, model/ and jobs/ are installed as mert_foundry.pipeline and so on."""

from setuptools import find_packages, setup

FOLDERS = ("pipeline", "model", "jobs")

setup(
    packages=[f"mert_foundry.{name}" for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])],
    package_dir={f"mert_foundry.{folder}": folder for folder in FOLDERS},
)
