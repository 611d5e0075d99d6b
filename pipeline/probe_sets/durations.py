"""The length of an audio file, by the reader that will decode it."""

from pathlib import Path

from mert_foundry.pipeline.audio.decode import decoder_faults, open_audio


def audio_seconds(path: Path) -> float:
    """Seconds of a file: what its header claims where it states a length, else by decoding it to the end.

    Raises:
        DecodeError: it is no audio, or damaged.
    """
    with open_audio(path) as file:
        samples = file.header.num_samples
        if samples is None:
            with decoder_faults():
                samples = sum(block.shape[1] for block in file.blocks())
        return samples / file.header.sample_rate
