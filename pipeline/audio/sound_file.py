"""Audio files through libsndfile."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from mert_foundry.pipeline.audio.audio_file import NO_AUDIO, AudioFile, AudioHeader, Ranges
from mert_foundry.pipeline.audio.byte_ranges import ByteRanges
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.pcm_layout import PcmLayout

BLOCK_FRAMES = 1 << 18
# libsndfile's names of samples.
SUBTYPES = {
    "pcm_s8": "PCM_S8", "pcm_u8": "PCM_U8", "pcm_s16": "PCM_16", "pcm_s24": "PCM_24", "pcm_s32": "PCM_32",
    "pcm_f32": "FLOAT",
    "pcm_f64": "DOUBLE", "pcm_alaw": "ALAW", "pcm_mulaw": "ULAW",
}  # fmt: skip


class OneWay(soundfile.SoundFile):
    """Reads from start to end without soundfile's seek after each read, on which some formats fail."""

    def seekable(self) -> bool:
        return False


class SoundFile(AudioFile):
    """A file of one stream through libsndfile."""

    def __init__(
        self, path: Path, ranges: Ranges, slack: int | None = 0, claimed: int | None = None, notes: tuple[str, ...] = ()
    ):
        self._open(ByteRanges(path, ranges))
        self.header = AudioHeader(
            self._file.samplerate, self._file.channels, self._file.frames if claimed is None else claimed,
            f"{self._file.format}/{self._file.subtype}".lower(), slack, notes=notes,
        )  # fmt: skip

    def close(self) -> None:
        self._file.close()
        self._bytes.close()

    def blocks(self) -> Iterator[np.ndarray]:
        is_empty = True
        while True:
            try:
                block = self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise DecodeError("unreadable", _reason(error)) from error
            self._bytes.check()
            if not len(block):
                break
            is_empty = False
            yield block.T
        if is_empty:
            raise DecodeError("unreadable", NO_AUDIO)

    def _open(self, content: ByteRanges, **form) -> None:
        self._bytes = content
        try:
            self._file = OneWay(content, "r", **form)
        except soundfile.SoundFileError as error:
            content.close()
            content.check()
            raise DecodeError("unreadable", _reason(error)) from error


class PcmFile(SoundFile):
    """Plain PCM: libsndfile converts the samples of a layout, whose bytes count from `start` on."""

    def __init__(self, path: Path, start: int, layout: PcmLayout):
        form = layout.form
        self.header = AudioHeader(
            form.sample_rate, form.channels, layout.claimed, f"{layout.container}/{form.codec}", slack=0
        )
        self._open(
            ByteRanges(path, [(start + layout.start, start + layout.stop)]), format="RAW", samplerate=form.sample_rate,
            channels=form.channels, subtype=SUBTYPES[form.codec.removesuffix("le").removesuffix("be")],
            endian={"<": "LITTLE", ">": "BIG"}[form.byte_order],
        )  # fmt: skip


def _reason(error: soundfile.SoundFileError) -> str:
    """The message of libsndfile, without the address of the file object that soundfile adds."""
    return getattr(error, "error_string", None) or str(error)
