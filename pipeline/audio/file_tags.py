"""Tags of a file: title, artist, lyrics and others, as its container states them, through ffmpeg's demuxers."""

from collections.abc import Collection, Mapping
from pathlib import Path

import av

from mert_foundry.pipeline.audio.media_file import DEMUXERS

LYRICS = "lyrics"


def read_tags(path: Path, names: Collection[str]) -> dict[str, str]:
    """Those of the tags `names` (lower case) that a local file has, as text; none of a file that ffmpeg cannot open.

    ffmpeg gives the tags of ID3, Vorbis comments, MP4, RIFF INFO and APEv2 the same names (title, artist, album, genre,
    comment, date, ...) and puts their language behind lyrics. Tags of the whole file count before those of its first
    audio stream, where Ogg has them.
    """
    try:
        with av.open(
            str(path),
            options={"format_whitelist": DEMUXERS},
            metadata_encoding="utf-8",
            metadata_errors="surrogateescape",
        ) as container:
            streams = container.streams.audio
            found = _texts(streams[0].metadata if streams else {}) | _texts(container.metadata)
    except (av.error.FFmpegError, ValueError):
        return {}
    return {name: found[name] for name in sorted(names) if found.get(name)}


def _texts(metadata: Mapping[str, str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for key, value in metadata.items():
        name = key.lower()
        texts.setdefault(LYRICS if name.startswith(f"{LYRICS}-") else name, _as_unicode(value).strip())
    return texts


def _as_unicode(value: str) -> str:
    """ffmpeg hands on the bytes of ID3v1 and RIFF INFO as they are: where they are no UTF-8, they are Latin-1, as ID3v1
    says.
    """
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
