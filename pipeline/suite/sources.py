"""What the suite is made of: packages of Debian and PyPI, where they lie, and which ones they are."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mert_foundry.pipeline.storage.documents import Document, file_sha256, json_bytes, parse_model
from mert_foundry.pipeline.storage.files import publish_bytes

# Debian 12, main: the licence of what the suite takes from the package (its copyright file has the whole text).
DEBIAN = {
    "fluid-soundfont-gm": "MIT",
    "musescore-general-soundfont": "MIT",
    "timgm6mb-soundfont": "GPL-2",
    "opl3-soundfont": "CC BY-SA 4.0",
    "mma": "GPL-2+",
    "freedoom": "BSD-3-Clause",
    "openttd-openmsx": "GPL-2",
    "hydrogen-data": "GPL-2+",
    "hydrogen-drumkits": "by kit: CC0, CC BY 3.0, CC BY-SA 3.0, GPL; four state none",
    "sonic-pi-samples": "CC0, five CC BY-SA 4.0, four MIT",
    "wesnoth-1.16-music": "by track: GPL-2+, CC BY-SA 4.0",
    "ufoai-music": "by track: GPL-2+, CC BY-SA 3.0",
    "planetblupi-music-ogg": "GPL-3+",
    "singularity-music": "by track: CC BY-SA 3.0, GPL-2+",
    "hyperrogue-music": "by track: CC BY 3.0, CC BY-SA 3.0",
    "fillets-ng-data": "GPL-2+",
    "pushover-data": "GPL-3+",
    "fretsonfire-songs-sectoid": "MIT",
    "fretsonfire-songs-muldjord": "CC BY-SA 3.0",
}
# Installed beside this package, by the extra `suite`.
PYPI = {
    "music21": "BSD-3-Clause; by score: free, or for non-commercial use",
    "tinysoundfont": "MIT",
}
STAMP = "package.json"


class SourceError(ValueError):
    """A package is missing, and how to get it."""


class SourcePackage(Document):
    """One package as it was used."""

    version: str = Field(description="Version of the package")
    sha256: str = Field(description="Of the .deb file, or of the installed package's list of files with their hashes")
    licence: str = Field(description="Licence of what the suite takes from it")


@dataclass(frozen=True)
class Sources:
    """The folder that holds each Debian package unpacked, in a folder of its name; .deb files may lie
    in `packages/`.
    """

    folder: Path

    def path(self, package: str, *names: str) -> Path:
        """A file or folder of an unpacked package. Raises SourceError when the package is missing."""
        path = self.folder / package
        if not (path / STAMP).is_file():
            raise SourceError(missing(package, self.folder))
        return path.joinpath(*names)

    def fetch(self, packages: Iterable[str], say: Callable[[str], None]) -> None:
        """Download and unpack what is not there yet.

        Raises SourceError naming the first package that cannot be downloaded or unpacked.
        """
        for package in packages:
            if package in PYPI:
                check_installed(package)
            elif not (self.folder / package / STAMP).is_file():
                say(f"unpacking {package} into {self.folder}")
                self._unpack(package, self._deb(package))

    def describe(self, packages: Iterable[str]) -> dict[str, SourcePackage]:
        """Version, hash and licence of each package."""
        return {package: self._describe(package) for package in sorted(packages)}

    def _describe(self, package: str) -> SourcePackage:
        if package in PYPI:
            return check_installed(package)
        stamp = self.path(package, STAMP)
        return parse_model(str(stamp), stamp.read_bytes(), SourcePackage)

    def _deb(self, package: str) -> Path:
        """The .deb file of a package, from `packages/` or from the archive."""
        folder = self.folder / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        if not (found := sorted(folder.glob(f"{package}_*.deb"))):
            if not shutil.which("apt-get"):
                raise SourceError(missing(package, self.folder))
            done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
            found = sorted(folder.glob(f"{package}_*.deb"))
            if done.returncode or not found:
                reason = (done.stderr.strip() or done.stdout.strip() or "no file came").splitlines()[-1]
                raise SourceError(f"{missing(package, self.folder)}; apt-get says: {reason}")
        return found[-1]

    def _unpack(self, package: str, deb: Path) -> None:
        if not shutil.which("dpkg"):
            raise SourceError(f"{deb} cannot be unpacked: the program dpkg is missing")
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=self.folder) as temporary:
            unpacked = Path(temporary) / package
            done = subprocess.run(["dpkg", "-x", str(deb), str(unpacked)], capture_output=True, text=True)
            if done.returncode:
                raise SourceError(f"{deb} cannot be unpacked: {done.stderr.strip()}")
            shutil.rmtree(self.folder / package, ignore_errors=True)
            unpacked.rename(self.folder / package)
        if package == "mma":  # whose index names the folder, so a moved one must be unpacked again
            index_grooves(self.folder / package)
        version = deb.name.split("_")[1].replace("%3a", ":")
        stamp = SourcePackage(version=version, sha256=file_sha256(deb), licence=DEBIAN[package])
        publish_bytes(str(self.folder / package / STAMP), json_bytes(stamp.model_dump()))


def missing(package: str, folder: Path) -> str:
    """One line: what is missing and how to get it."""
    if package == "tinysoundfont":  # its dependency pyaudio, for live sound alone, has no wheel and needs a compiler
        return "the package tinysoundfont is missing: pip install --no-deps tinysoundfont==0.3.7"
    if package in PYPI:
        return f"the package {package} is missing: pip install '.[suite]'"
    return (
        f"the Debian package {package} is missing: run `apt-get download {package}` (Debian 12, no root needed)"
        f" and move the .deb file into {folder / 'packages'}"
    )


def check_installed(package: str) -> SourcePackage:
    """What is installed of a PyPI package. Raises SourceError when it is not there."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise SourceError(missing(package, Path())) from None
    record = next(file for file in found.files or [] if file.name == "RECORD")
    hashes = sorted(f"{file} {file.hash.value}" for file in found.files or [] if file.hash and file.suffix != ".pyc")
    with tempfile.NamedTemporaryFile() as listing:
        Path(listing.name).write_text("\n".join(line for line in hashes if record.parent.name not in line))
        digest = file_sha256(Path(listing.name))
    return SourcePackage(version=found.version, sha256=digest, licence=PYPI[package])


def score_corpus() -> Path:
    """The folder of scores within the installed music21, found without importing it."""
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(missing("music21", Path()))
    return Path(spec.submodule_search_locations[0]) / "corpus"


def index_grooves(package: Path) -> None:
    """Let MMA write its index of grooves, as its Debian package does when it is installed."""
    (package / "usr/share/mma/MMA/plugins").mkdir(exist_ok=True)
    (package / "usr/share/mma/plugins").mkdir(exist_ok=True)
    run_mma(package, "-G")


def run_mma(package: Path, *arguments: str) -> None:
    """Run the unpacked MMA, away from any settings of the user. Raises SourceError with its complaint."""
    environment = {"PYTHONPATH": str(package / "usr/share/mma"), "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(package / "usr/bin/mma"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=package)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise SourceError(f"mma {' '.join(arguments)} failed: {' '.join(complaint)}")
