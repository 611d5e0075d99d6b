"""Windows of real recordings at the suite's rate, from files and from files within a zip."""

import io
import zipfile
from dataclasses import dataclass
from math import gcd

import numpy as np
import soundfile
from scipy.signal import resample_poly

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.suite.sources import Sources


@dataclass(frozen=True)
class Recording:
    """A file of a package, or a member of a zip there."""

    package: str
    path: str
    member: str = ""

    def open(self, sources: Sources) -> soundfile.SoundFile:
        """The decoder. Raises ValueError naming the file when it is no audio."""
        path = sources.path(self.package, self.path)
        try:
            return soundfile.SoundFile(io.BytesIO(zipfile.ZipFile(path).read(self.member)) if self.member else path)
        except (soundfile.LibsndfileError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{path} {self.member}: cannot be read: {error}") from error

    def seconds(self, sources: Sources) -> float:
        """Its length."""
        with self.open(sources) as file:
            return file.frames / file.samplerate

    def read(self, sources: Sources, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """float32 mono `[T]` at 24 kHz; with `seconds`, exactly as long, padded with zeros after the end."""
        with self.open(sources) as file:
            file.seek(min(round(start * file.samplerate), file.frames))
            frames = -1 if seconds is None else int(np.ceil(seconds * file.samplerate))
            audio = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            common = gcd(file.samplerate, SAMPLE_RATE)
            resampled = resample_poly(audio, SAMPLE_RATE // common, file.samplerate // common).astype(np.float32)
        if seconds is None:
            return resampled
        length = round(seconds * SAMPLE_RATE)
        return np.pad(resampled[:length], (0, max(0, length - len(resampled))))


def find_recordings(sources: Sources, package: str, pattern: str) -> list[Recording]:
    """The files of a package that match a pattern, or the Ogg members of a zip that matches, in order."""
    root = sources.path(package)
    found: list[Recording] = []
    for path in sorted(root.glob(pattern)):
        relative = path.relative_to(root).as_posix()
        if zipfile.is_zipfile(path):
            members = sorted(name for name in zipfile.ZipFile(path).namelist() if name.endswith(".ogg"))
            found += [Recording(package, relative, member) for member in members]
        else:
            found.append(Recording(package, relative))
    if not found:
        raise ValueError(f"{root}: nothing there matches {pattern}; is it another version of the package?")
    return found
