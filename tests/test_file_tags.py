"""Tags of files become columns of the manifest, from which the text beside the audio is made."""

import csv
import struct
from pathlib import Path

import av
import msgspec
import pytest
from audio_files import noise, write_audio
from folders import make_manifest

from mert_foundry.pipeline.audio.file_tags import read_tags
from mert_foundry.pipeline.manifest.examine import result_version
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan
from mert_foundry.pipeline.manifest.scan_parts import ScanParts

NAMES = ["title", "artist", "genre", "lyrics"]
WRITTEN = {"title": "Žár", "artist": "A & B", "genre": "ska; dub"}


def write_tagged(path: Path, tags: dict[str, str]) -> Path:
    """The audio of a file with tags, copied by ffmpeg's muxers."""
    plain = write_audio(path.with_name(f"plain-{path.name}"), noise(1.5, rate=48_000), 48_000)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        target.metadata.update(tags)
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    plain.unlink()
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tagged")
    for name in ("a.mp3", "b.flac", "c.ogg", "d.m4a", "e.opus"):
        write_tagged(root / name, WRITTEN)
    write_audio(root / "plain.wav", noise(1.5))
    return root


@pytest.mark.parametrize("name", ["a.mp3", "b.flac", "c.ogg", "d.m4a", "e.opus"])
def test_tags_of_every_container_have_the_same_names(root: Path, name: str):
    assert read_tags(root / name, NAMES) == WRITTEN
    assert read_tags(root / name, ["title"]) == {"title": "Žár"} and read_tags(root / name, ["mood"]) == {}


def test_lyrics_in_any_language_and_old_tags_in_latin_1(tmp_path: Path):
    path = write_audio(tmp_path / "old.mp3", noise(1.5, rate=48_000), 48_000)
    audio = path.read_bytes()
    # ID3v1, at the end of the file: TAG, title and artist of 30 bytes in Latin-1, album, year, comment, genre.
    old = b"TAG" + "Café".encode("latin-1").ljust(30, b"\0") + b"B".ljust(30, b"\0") + bytes(30 + 4 + 30) + b"\xff"
    path.write_bytes(audio + old)
    assert read_tags(path, NAMES) == {"title": "Café", "artist": "B"}
    # ID3v2.3 (id3.org): an unsynchronised lyrics frame USLT: UTF-16, language, an empty description, the text.
    body = b"\x01cze" + "\ufeff\0".encode("utf-16-le") + "\ufeffVánek\nvál".encode("utf-16-le")
    frame = b"USLT" + struct.pack(">IH", len(body), 0) + body
    path.write_bytes(b"ID3\x03\0\0" + bytes([0, 0, len(frame) >> 7, len(frame) & 127]) + frame + audio)
    assert read_tags(path, NAMES) == {"lyrics": "Vánek\nvál"}


def test_no_tags_of_what_is_no_audio(tmp_path: Path):
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    assert read_tags(tmp_path / "list.m3u8", NAMES) == {}


def test_the_manifest_has_the_tags_that_are_asked_for_and_columns_of_the_list_before_them(root: Path, tmp_path: Path):
    make_manifest(root, tmp_path / "manifest", tags=["Title", "genre"], min_seconds=1.0, splits={})
    extras = {track.path: track.extra for track in load_manifest(str(tmp_path / "manifest")).tracks}
    tagged = {"title": "Žár", "genre": "ska; dub"}
    assert extras == {**dict.fromkeys(("a.mp3", "b.flac", "c.ogg", "d.m4a", "e.opus"), tagged), "plain.wav": None}
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "title", "mood", "genre"), ("a.mp3", "Mine", "calm", "")])
    listed = tmp_path / "listed"
    make_manifest(root, listed, tags=["title", "genre"], files=str(tmp_path / "list.csv"), min_seconds=1.0, splits={})
    [track] = load_manifest(str(listed)).tracks
    assert track.extra == {"title": "Mine", "mood": "calm", "genre": "ska; dub"}


def test_other_tags_decode_again_and_none_are_as_ever(root: Path, tmp_path: Path):
    def found(**settings: object) -> tuple[list, str]:
        config = ManifestConfig(root=str(root), out=str(tmp_path), min_seconds=1.0, splits={}, **settings)
        parts = ScanParts(config.out, result_version(config))
        return scan(config, parts=parts), parts.stale

    plain, _ = found()
    tagged, stale = found(tags=["title"])
    assert "tags" in stale
    again, stale = found(tags=["TITLE"])
    assert again == tagged and not stale
    assert [msgspec.structs.replace(row, extra=None) for row in tagged] == plain and tagged != plain
