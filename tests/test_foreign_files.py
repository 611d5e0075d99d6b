"""Files that real collections hold, kind by kind, and how they sound: by samples, against another
reader or the source.
"""

import os
import struct
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from audio_files import noise, tone, write_audio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.audio.audio_file import AudioHeader
from mert_foundry.pipeline.audio.decode import check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import MediaFile
from mert_foundry.pipeline.audio.mpeg_frames import read_header, read_mpeg_parts
from mert_foundry.pipeline.audio.ogg_pages import check_ogg_pages
from mert_foundry.pipeline.audio.tags import audio_range

RATE = 44_100
FOREIGN = Path(__file__).parent / "data" / "foreign"
ID3V1 = b"TAG" + b"Song".ljust(124, b"\0") + b"\xff"
ID3V2 = b"ID3\3\0\0\0\0\0\x11" + b"TIT2" + struct.pack(">IH", 7, 0) + b"\0A song"


def ape_tag(content: bytes, has_header: bool = True) -> bytes:
    item = struct.pack("<II", len(content), 2) + b"Cover Art (Front)\0" + content
    parts = [
        b"APETAGEX" + struct.pack("<IIII", 2000, 32 + len(item), 1, flags) + bytes(8)
        for flags in (0xA0000000, 0x80000000 if has_header else 0)
    ]
    return (parts[0] if has_header else b"") + item + parts[1]


def decode(path: Path) -> tuple[AudioHeader, np.ndarray]:
    """Header, and float32 `[channels, T]`; the length is checked as the manifest does."""
    with open_audio(path) as audio:
        samples = np.concatenate(list(audio.blocks()), axis=1)
    check_length(audio.header, samples.shape[1], 0.2)
    return audio.header, samples


def refusal(path: Path) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path)
    return caught.value


def encode(path: Path, audio: np.ndarray, rate: int, *streams: str, container: str | None = None) -> Path:
    """Mux the same audio, int16 or float32 `[T, channels]`, once for each codec named; `video` stands for moving
    pictures.
    """
    audio = audio if audio.dtype == np.int16 else as_int16(audio)
    with av.open(str(path), "w", format=container) as file:
        for codec in streams:
            if codec == "video":
                stream = file.add_stream("mpeg4", rate=25)
                stream.width = stream.height = 64
            else:
                stream = file.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[audio.shape[1]])
                stream.format = next(
                    (form for form in stream.codec.audio_formats if form.name[:3] == "s16"), stream.format
                )
        for stream, codec in zip(file.streams, streams, strict=True):
            if codec == "video":
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            else:
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(audio.reshape(1, -1)), format="s16", layout=stream.layout.name
                )
                frame.sample_rate, frame.pts = rate, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                file.mux(packet)
    return path


def write(path: Path, audio: np.ndarray, rate: int) -> Path:
    """Write int16 `[T, channels]` in the usual codec of the name's extension."""
    codec = {"m4a": "aac", "wv": "wavpack", "tta": "tta", "oga": "flac"}.get(path.suffix[1:])
    return encode(path, audio, rate, codec) if codec else write_audio(path, audio, rate)


def as_int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def as_decoded(audio: np.ndarray) -> np.ndarray:
    """int16 `[T, channels]` as `decode` should give it."""
    return (audio / np.float32(32768)).astype(np.float32).T


@pytest.fixture
def stereo() -> np.ndarray:
    """Three seconds, int16 `[T, 2]`."""
    return as_int16(noise(3, RATE, channels=2))


# WAV, AIFF, AU, CAF, W64


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_big_endian_wav_is_what_libsndfile_reads(tmp_path: Path, stereo: np.ndarray, subtype: str):
    path = tmp_path / "a.wav"
    soundfile.write(path, stereo, RATE, subtype=subtype, format="WAV", endian="BIG")
    assert path.read_bytes()[:4] == b"RIFX"
    header, audio = decode(path)
    assert (header.sample_rate, header.channels, header.num_samples) == (RATE, 2, len(stereo))
    np.testing.assert_array_equal(audio, soundfile.read(path, dtype="float32")[0].T)


def test_compressed_samples_in_big_endian_wav_are_refused(tmp_path: Path):
    path = write_audio(tmp_path / "a.wav", noise(1), subtype="IMA_ADPCM")
    content = bytearray(path.read_bytes())
    content[:4], content[4:8], content[16:20] = b"RIFX", content[7:3:-1], content[19:15:-1]
    content[20:22] = content[21:19:-1]
    path.write_bytes(content)
    assert refusal(path).reason == "unreadable"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(
        [
            form
            for form in product(
                ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"],
                ["PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
                ["FILE", "LITTLE", "BIG"],
            )
            if soundfile.check_format(*form)
        ]
    ),
    channels=st.integers(1, 9),
    length=st.integers(1, 3000),
)
def test_whatever_libsndfile_writes_is_read_to_the_sample(
    tmp_path: Path, form: tuple[str, str, str], channels: int, length: int
):
    path = tmp_path / "a"
    audio = np.random.default_rng(length).uniform(-1, 1, (length, channels))
    soundfile.write(path, audio, 32_000, format=form[0], subtype=form[1], endian=form[2])
    header, decoded = decode(path)
    assert (header.sample_rate, header.channels, header.num_samples) == (32_000, channels, length)
    np.testing.assert_array_equal(decoded, soundfile.read(path, dtype="float32", always_2d=True)[0].T)


PLACEHOLDERS = [0, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDA, 0x80000000, 0x80000024, 0xFFFFFFFF, 0xFFFFFF00, 0xFFFFFFDB]


def wav_size(content: bytearray, size: int) -> None:
    place = content.index(b"data")
    struct.pack_into("<I", content, place + 4, size)
    struct.pack_into("<I", content, 4, (size + 36) & 0xFFFFFFFF)


def aiff_size(content: bytearray, size: int) -> None:
    struct.pack_into(">I", content, content.index(b"SSND") + 4, size)
    struct.pack_into(">I", content, content.index(b"COMM") + 10, 0 if size == 0 else size // 4)


def au_size(content: bytearray, size: int) -> None:
    struct.pack_into(">I", content, 8, size)


def w64_size(content: bytearray, size: int) -> None:
    struct.pack_into("<Q", content, content.index(b"data") + 16, size and size + 24)


@pytest.mark.parametrize("size", PLACEHOLDERS)
@pytest.mark.parametrize(
    ("name", "patch"), [("a.wav", wav_size), ("a.aiff", aiff_size), ("a.au", au_size), ("a.w64", w64_size)]
)
def test_a_size_that_was_left_open_is_read_to_the_end(
    tmp_path: Path, stereo: np.ndarray, name: str, patch: Callable[[bytearray, int], None], size: int
):
    path = write_audio(tmp_path / name, stereo, RATE)
    whole, content = path.read_bytes(), bytearray(path.read_bytes())
    patch(content, size)
    path.write_bytes(content)
    header, audio = decode(path)
    assert header.num_samples is None
    np.testing.assert_array_equal(audio, as_decoded(stereo))
    path.write_bytes(content[:-1])  # not a whole number of samples
    assert refusal(path).reason == "truncated"
    path.write_bytes(whole[:-4])  # a size that is known
    assert refusal(path).reason == "truncated"


@pytest.mark.parametrize("size", [(1 << 64) - 1, 0x7FFFFFFFFFFFFFFF])
def test_caf_of_open_length(tmp_path: Path, stereo: np.ndarray, size: int):
    path = write_audio(tmp_path / "a.caf", stereo, RATE)
    content = bytearray(path.read_bytes())
    struct.pack_into(">Q", content, content.index(b"data") + 4, size)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path)[1], as_decoded(stereo))


def test_rf64_whose_sizes_were_never_filled_in(tmp_path: Path, stereo: np.ndarray):
    path = write_audio(tmp_path / "a.rf64", stereo, RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    content[20:44] = bytes(24)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path)[1], as_decoded(stereo))


@pytest.mark.parametrize(
    "behind", [b"\xff" * 12, np.random.default_rng(0).bytes(5000), ID3V1, ape_tag(bytes(90_000)), ID3V1 + ape_tag(b"x")]
)
@pytest.mark.parametrize(
    "name",
    ["a.wav", "a.aiff", "a.au", "a.w64", "a.caf", "a.flac", "a.wv", "a.tta", "a.ogg", "a.opus", "a.m4a", "a.mp3"],
)
def test_what_stands_behind_the_audio_is_let_be(tmp_path: Path, stereo: np.ndarray, name: str, behind: bytes):
    path = write(tmp_path / name, stereo, 48_000)
    before = decode(path)[1]
    with open(path, "ab") as file:
        file.write(behind)
    np.testing.assert_array_equal(decode(path)[1], before)


def test_audio_that_the_header_does_not_count_is_no_junk(tmp_path: Path, stereo: np.ndarray):
    """A recording beyond 4 GiB, or a header of an earlier, shorter state."""
    for name, patch in {"a.wav": wav_size, "a.au": au_size, "a.w64": w64_size}.items():
        path = write_audio(tmp_path / name, stereo, RATE)
        content = bytearray(path.read_bytes())
        outer = content[4:8]
        patch(content, 4 * 1000)
        if name == "a.wav":
            content[4:8] = outer
        path.write_bytes(content)
        error = refusal(path)
        assert error.reason == "length_mismatch" and "1000" in error.detail and str(len(stereo)) in error.detail


def test_a_compressed_stream_in_the_guise_of_pcm_is_not_taken_for_noise(tmp_path: Path):
    """AC-3 in IEC 61937 bursts, as recorded from an S/PDIF cable, in a WAV file of 16 bits."""
    source = noise(3, 48_000, channels=2)
    encode(tmp_path / "a.spdif", source, 48_000, "ac3", container="spdif")
    bursts = np.frombuffer((tmp_path / "a.spdif").read_bytes(), "<i2").reshape(-1, 2)
    soundfile.write(tmp_path / "a.wav", bursts, 48_000)
    header, audio = decode(tmp_path / "a.wav")
    assert header.format == "wav/ac3"
    assert np.std(audio) == pytest.approx(np.std(source), rel=0.1)


# Lossless in other containers


@pytest.mark.parametrize("length", [1, 100, 4095, 4096, 4097, 8192, 44_100, 99_999])
def test_alac_in_caf_loses_no_sample(tmp_path: Path, length: int):
    audio = np.random.default_rng(length).uniform(-1, 1, (length, 2))
    soundfile.write(tmp_path / "ours.caf", audio, RATE, subtype="ALAC_16", format="CAF")
    reference = soundfile.read(tmp_path / "ours.caf", dtype="float32")[0]
    header, decoded = decode(tmp_path / "ours.caf")
    assert header.num_samples == length
    np.testing.assert_array_equal(decoded, reference.T)
    encode(tmp_path / "theirs.caf", as_int16(reference), RATE, "alac", container="caf")
    np.testing.assert_array_equal(decode(tmp_path / "theirs.caf")[1], reference.T)


@pytest.mark.parametrize(("codec", "name"), [
    ("alac", "a.m4a"), ("alac", "a.mka"), ("flac", "a.mka"), ("flac", "a.oga"), ("wavpack", "a.wv"), ("tta", "a.tta"),
    ("pcm_s16le", "a.avi"), ("pcm_s16be", "a.mov"), ("pcm_s16le", "a.mka"),
])  # fmt: skip
def test_lossless_codecs_are_exact_and_have_no_tolerance(tmp_path: Path, stereo: np.ndarray, codec: str, name: str):
    path = encode(tmp_path / name, stereo, RATE, codec)
    header, audio = decode(path)
    assert header.slack == 0
    np.testing.assert_array_equal(audio, as_decoded(stereo))
    if header.num_samples is not None:
        with pytest.raises(DecodeError):
            check_length(header, audio.shape[1] - 1, 0.2)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    assert refusal(path).reason in ("truncated", "unreadable")


@pytest.mark.parametrize(("form", "name"), [("VOC", "a.voc"), ("NIST", "a.sph"), ("SVX", "a.8svx")])
def test_old_containers(tmp_path: Path, form: str, name: str):
    audio = as_int16(noise(2, 22_050))
    soundfile.write(tmp_path / name, audio, 22_050, subtype="PCM_16", format=form)
    header, decoded = decode(tmp_path / name)
    assert header.sample_rate == 22_050
    np.testing.assert_array_equal(decoded, as_decoded(audio[:, None]))


def test_dsd(tmp_path: Path):
    """A sine in one bit, by a first-order modulator, in DSDIFF and in DSF."""
    rate, frequency = 2_822_400, 1000
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(rate // 2) / rate)
    bits = np.diff(np.floor(np.cumsum((1 + wave) / 2)), prepend=0).astype(np.uint8)
    msb, lsb = np.packbits(bits), np.packbits(bits, bitorder="little")

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack(">Q", len(content)) + content + b"\0" * (len(content) % 2)

    sound = b"SND " + chunk(b"FS  ", struct.pack(">I", rate)) + chunk(b"CHNL", struct.pack(">H", 1) + b"C   ")
    sound += chunk(b"CMPR", b"DSD \x0enot compressed\0")
    (tmp_path / "a.dff").write_bytes(
        chunk(
            b"FRM8",
            b"DSD " + chunk(b"FVER", bytes([1, 5, 0, 0])) + chunk(b"PROP", sound) + chunk(b"DSD ", msb.tobytes()),
        )
    )
    blocks = lsb.tobytes().ljust(-(-len(lsb) // 4096) * 4096, b"\0")
    form = struct.pack("<IIIIIIQII", 1, 0, 1, 1, rate, 1, len(bits), 4096, 0)
    content = (
        b"fmt " + struct.pack("<Q", 12 + len(form)) + form + b"data" + struct.pack("<Q", 12 + len(blocks)) + blocks
    )
    (tmp_path / "a.dsf").write_bytes(b"DSD " + struct.pack("<QQQ", 28, 28 + len(content), 0) + content)
    for name in ("a.dff", "a.dsf"):
        header, audio = decode(tmp_path / name)
        assert header.sample_rate == rate // 8
        middle = audio[0, 20_000:150_000]
        time = np.arange(len(middle)) / header.sample_rate
        level = 2 * abs(np.mean(middle * np.exp(-2j * np.pi * frequency * time)))
        assert level == pytest.approx(0.5, rel=0.1)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert refusal(tmp_path / name).reason == "truncated"


# Ogg


def pages(content: bytes) -> Iterator[bytearray]:
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        yield bytearray(content[:size])
        content = content[size:]


def sealed(page: bytearray) -> bytes:
    """A page with its checksum made right, bit by bit as RFC 3533 has it."""
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 0x80000000 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return bytes(page)


def patched_opus(path: Path, offset: int, value: bytes) -> None:
    first, *rest = pages(path.read_bytes())
    place = first.index(b"OpusHead") + offset
    first[place : place + len(value)] = value
    path.write_bytes(sealed(first) + b"".join(rest))


def libopus(path: Path) -> np.ndarray:
    """libsndfile's reading in one go, float32 `[channels, T]`: libopus too, but in its own container reader."""
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


@pytest.mark.parametrize("stated", [0, 8000, 16_000, 44_100, 96_000, 0xFFFFFFFF])
def test_opus_is_48_khz_whatever_its_header_states(tmp_path: Path, stereo: np.ndarray, stated: int):
    path = write_audio(tmp_path / "a.opus", stereo, 48_000)
    reference = libopus(path)
    patched_opus(path, 12, struct.pack("<I", stated))
    header, audio = decode(path)
    assert header.sample_rate == 48_000
    np.testing.assert_allclose(audio, reference, atol=1e-6)


@pytest.mark.parametrize("gain", [256, -2560, 1000])
def test_output_gain_of_opus(tmp_path: Path, stereo: np.ndarray, gain: int):
    path = write_audio(tmp_path / "a.opus", stereo, 48_000)
    plain = decode(path)[1]
    patched_opus(path, 16, struct.pack("<h", gain))
    np.testing.assert_allclose(decode(path)[1], plain * 10 ** (gain / 256 / 20), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("skipped", [0, 100, 312, 1000, 20_000])
def test_pre_skip_of_opus(tmp_path: Path, stereo: np.ndarray, skipped: int):
    path = write_audio(tmp_path / "a.opus", stereo, 48_000)
    patched_opus(path, 10, struct.pack("<H", skipped))
    np.testing.assert_allclose(decode(path)[1], libopus(path), atol=1e-6)


@pytest.mark.parametrize("name", ["a.opus", "a.ogg"])
@pytest.mark.parametrize("shift", [100_000, 3])
def test_a_stream_that_was_captured_late_begins_with_its_first_sample(
    tmp_path: Path, stereo: np.ndarray, name: str, shift: int
):
    path = write_audio(tmp_path / name, stereo, 48_000)
    reference = decode(path)[1]
    moved = []
    for page in pages(path.read_bytes()):
        position = struct.unpack("<q", page[6:14])[0]
        if position > 0:
            page[6:14] = struct.pack("<q", position + shift)
        moved.append(sealed(page))
    path.write_bytes(b"".join(moved))
    np.testing.assert_allclose(decode(path)[1], reference, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 7, 8])
def test_channel_mappings_of_opus(tmp_path: Path, channels: int):
    """A tone of its own in each channel: the mix and its loudness depend on all of them."""
    source = np.stack([tone(300 * (number + 1), 2, 48_000) / channels for number in range(channels)], axis=1)
    path = tmp_path / "a.opus"
    soundfile.write(path, source, 48_000, format="OGG", subtype="OPUS")
    header, audio = decode(path)
    assert header.channels == channels
    np.testing.assert_allclose(np.sort(np.std(audio, axis=1)), np.sort(np.std(libopus(path), axis=1)), rtol=1e-4)
    np.testing.assert_allclose(audio.mean(axis=0), libopus(path).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["a.opus", "a.ogg"])
def test_blocks_do_not_depend_on_their_size(
    tmp_path: Path, stereo: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
):
    """soundfile seeks after every read, and libsndfile may then go on a few samples late."""
    path = write_audio(tmp_path / name, stereo, 48_000)
    whole = decode(path)[1]
    for frames in (100, 4801, 48_000):
        monkeypatch.setattr("mert_foundry.pipeline.audio.media_file.BLOCK_FRAMES", frames)
        monkeypatch.setattr("mert_foundry.pipeline.audio.sound_file.BLOCK_FRAMES", frames)
        np.testing.assert_array_equal(decode(path)[1], whole)
    np.testing.assert_allclose(whole, libopus(path), atol=1e-6)


@pytest.mark.parametrize("container", ["matroska", "webm", "mp4"])
def test_opus_in_other_containers_is_decoded_by_libopus(tmp_path: Path, stereo: np.ndarray, container: str):
    reference = decode(encode(tmp_path / "a.opus", stereo, 48_000, "libopus", container="ogg"))[1]
    header, audio = decode(encode(tmp_path / "a", stereo, 48_000, "libopus", container=container))
    length = min(audio.shape[1], reference.shape[1])
    assert header.sample_rate == 48_000 and abs(audio.shape[1] - reference.shape[1]) <= 960
    np.testing.assert_allclose(audio[:, :length], reference[:, :length], atol=1e-6)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.oga"])
def test_ogg_with_junk_between_its_pages_is_repaired(tmp_path: Path, stereo: np.ndarray, name: str):
    path = write(tmp_path / name, stereo, 48_000)
    header, whole = decode(path)
    assert header.notes == ()
    parts = [bytes(page) for page in pages(path.read_bytes())]
    path.write_bytes(b"".join(parts[:3]) + b"OggS junk \xff" * 99 + b"".join(parts[3:]))
    header, audio = decode(path)
    assert header.notes == ("repaired",)
    np.testing.assert_array_equal(audio, whole)
    path.write_bytes(b"".join(parts[:3]) + b"junk" + b"".join(parts[4:]))  # a page is missing, too
    assert refusal(path).reason == "unreadable"


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
def test_ogg_without_a_last_page_is_repaired(tmp_path: Path, stereo: np.ndarray, name: str):
    path = write_audio(tmp_path / name, stereo, 48_000)
    whole = decode(path)[1]
    parts = [bytes(page) for page in pages(path.read_bytes())]
    path.write_bytes(b"".join(parts[:-1]))
    header, audio = decode(path)
    assert header.notes == ("repaired",) and 0 < audio.shape[1] < whole.shape[1]
    np.testing.assert_allclose(audio, whole[:, : audio.shape[1]], atol=1e-6)


def test_flac_in_ogg_with_a_flipped_bit_is_told(tmp_path: Path, stereo: np.ndarray):
    path = encode(tmp_path / "a.oga", stereo, RATE, "flac")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refusal(path).reason == "unreadable"


def test_pages_are_found_over_the_seams_of_what_is_read(
    tmp_path: Path, stereo: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    path = write_audio(tmp_path / "a.ogg", stereo, 48_000)
    parts = [bytes(page) for page in pages(path.read_bytes())]
    for junk in range(1, 40):
        path.write_bytes(b"".join(parts[:3]) + b"O" * junk + b"".join(parts[3:]))
        monkeypatch.setattr("mert_foundry.pipeline.audio.ogg_pages.BUFFER_BYTES", 16)
        found = check_ogg_pages(path, 0)
        assert found.is_repaired and found.streams == ["vorbis"]


# MP3


def test_joined_mp3s_are_both_read(tmp_path: Path):
    first, second = (write_audio(tmp_path / f"{seed}.mp3", noise(3, RATE, seed), RATE) for seed in (1, 2))
    alone = [decode(path)[1] for path in (first, second)]
    for between in (b"", ID3V1 + ID3V2, ape_tag(bytes(3000))):
        (tmp_path / "joined.mp3").write_bytes(first.read_bytes() + between + second.read_bytes())
        header, audio = decode(tmp_path / "joined.mp3")
        assert header.notes == ("joined",)
        np.testing.assert_array_equal(audio, np.concatenate(alone, axis=1))


def test_joined_mp3s_of_two_rates_are_refused(tmp_path: Path):
    parts = [write_audio(tmp_path / f"{rate}.mp3", noise(3, rate), rate).read_bytes() for rate in (44_100, 22_050)]
    (tmp_path / "a.mp3").write_bytes(b"".join(parts))
    error = refusal(tmp_path / "a.mp3")
    assert error.reason == "unreadable" and "44100" in error.detail and "22050" in error.detail


@pytest.mark.parametrize(
    "tags",
    [
        ape_tag(np.random.default_rng(0).bytes(120_000)),
        ape_tag(b"x", has_header=False),
        ID3V1,
        b"LYRICSBEGINla la laLYRICSEND" + ID3V1,
    ],
)
def test_tags_of_an_mp3_do_not_change_what_it_claims(tmp_path: Path, tags: bytes):
    path = write_audio(tmp_path / "a.mp3", noise(4, RATE), RATE)
    plain = decode(path)
    path.write_bytes(ID3V2 + path.read_bytes() + tags)
    header, audio = decode(path)
    assert header.num_samples == plain[0].num_samples == audio.shape[1] == 4 * RATE
    np.testing.assert_array_equal(audio, plain[1])


def test_an_mp3_that_lacks_frames_that_it_counts(tmp_path: Path):
    path = write_audio(tmp_path / "a.mp3", noise(4, RATE), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + ape_tag(bytes(50_000)))
    assert refusal(path).reason == "truncated"


# Tags


@pytest.mark.parametrize(
    ("before", "behind"), [(b"", ID3V1), (ID3V2, b""), (b"", ape_tag(bytes(9000))), (ID3V2, ape_tag(b"x") + ID3V1)]
)
@pytest.mark.parametrize("name", ["a.wv", "a.tta", "tone.mpc", "a.wav", "a.aiff", "a.caf", "a.flac", "a.ogg", "a.mp3"])
def test_tagged_files_sound_as_untagged_ones(
    tmp_path: Path, stereo: np.ndarray, name: str, before: bytes, behind: bytes
):
    plain = FOREIGN / name if name == "tone.mpc" else write(tmp_path / f"plain-{name}", stereo, RATE)
    (tmp_path / name).write_bytes(before + plain.read_bytes() + behind)
    np.testing.assert_array_equal(decode(tmp_path / name)[1], decode(plain)[1])


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_wav_behind_a_tag_is_checked_as_any_other(tmp_path: Path, stereo: np.ndarray, endian: str):
    soundfile.write(tmp_path / "a.wav", stereo, RATE, format="WAV", endian=endian)
    content = ID3V2 + (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav")[1], as_decoded(stereo))
    (tmp_path / "a.wav").write_bytes(content[:-4000])
    assert refusal(tmp_path / "a.wav").reason == "truncated"


@pytest.mark.parametrize(
    "head",
    [b"NIST_1A\n", b"NIST_1A\nxxxx\n", b"NIST_1A\n   1024\nsample_rate -i many\n", b"NIST_1A\n   1024\nend_head\n"],
)
def test_a_sphere_header_without_its_numbers(tmp_path: Path, head: bytes):
    (tmp_path / "a.sph").write_bytes(head + bytes(2000))
    error = refusal(tmp_path / "a.sph")
    assert error.reason == "unreadable" and "SPHERE" in error.detail


def test_musepack():
    header, audio = decode(FOREIGN / "tone.mpc")
    spectrum = np.abs(np.fft.rfft(audio[0, :RATE]))
    assert (header.sample_rate, header.channels, np.argmax(spectrum)) == (RATE, 1, 440)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(min_size=1, max_size=300).filter(lambda content: content[:3] not in (b"ID3", b"APE")),
    before=st.lists(st.sampled_from([ID3V2, ape_tag(b"y")]), max_size=2),
    behind=st.lists(
        st.sampled_from([ID3V1, ape_tag(b"z"), ape_tag(b"w", False), b"LYRICSBEGINlaLYRICSEND"]), max_size=3
    ),
)
def test_tags_are_taken_off_in_any_order(tmp_path: Path, content: bytes, before: list[bytes], behind: list[bytes]):
    content = content + b"\1"
    path = tmp_path / "a"
    path.write_bytes(b"".join(before) + content + b"".join(behind))
    start, stop = audio_range(path)
    assert path.read_bytes()[start:stop] == content


# Several streams, priming, rates


@pytest.mark.parametrize(("streams", "name", "expected"), [
    (["aac", "aac"], "a.m4a", "audio 1 of 2"), (["aac", "video"], "a.mp4", "audio 1 of 1, beside 1 video"),
    (["flac"], "a.mka", ""),
    (["flac", "flac", "video"], "a.mkv", "audio 1 of 2, beside 1 video"),
])  # fmt: skip
def test_which_of_several_streams_was_taken_is_stated(
    tmp_path: Path, stereo: np.ndarray, streams: list[str], name: str, expected: str
):
    assert decode(encode(tmp_path / name, stereo, RATE, *streams))[0].stream == expected


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100])
def test_priming_samples_are_no_lie(tmp_path: Path, rate: int):
    header, audio = decode(encode(tmp_path / "a.m4a", noise(4, rate)[:, None], rate, "aac"))
    assert header.slack is None and abs(audio.shape[1] - 4 * rate) <= 2048


@pytest.mark.parametrize("name", ["a.ts", "a.avi", "a.mkv"])
def test_containers_of_films(tmp_path: Path, stereo: np.ndarray, name: str):
    header, audio = decode(encode(tmp_path / name, stereo, RATE, "mp2"))
    assert header.sample_rate == RATE and abs(audio.shape[1] - len(stereo)) <= 2304


def test_a_file_that_no_library_here_reads_says_so(tmp_path: Path):
    (tmp_path / "a.mp3").write_bytes(b".RMF" + bytes(500))
    error = refusal(tmp_path / "a.mp3")
    assert error.reason == "unreadable" and "no container that is read here" in error.detail


def test_a_read_error_is_not_taken_for_the_end(tmp_path: Path, stereo: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """As of a disk that fails in the middle: libsndfile would see the end of the file, and the length may be open."""
    path = write_audio(tmp_path / "a.wav", stereo, RATE)
    content = bytearray(path.read_bytes())
    wav_size(content, 0xFFFFFFFF)
    path.write_bytes(content)
    read = os.pread

    def failing(descriptor: int, count: int, place: int) -> bytes:
        if place > 100_000:
            raise OSError(5, "Input/output error")
        return read(descriptor, count, place)

    monkeypatch.setattr("mert_foundry.pipeline.audio.byte_ranges.os.pread", failing)
    with pytest.raises(OSError, match="Input/output error"):
        decode(path)
    flac = write_audio(tmp_path / "a.flac", stereo, RATE)
    with pytest.raises(OSError, match="Input/output error"):
        decode(flac)


def test_a_media_file_that_was_refused_is_closed(tmp_path: Path):
    encode(tmp_path / "a.mp4", np.zeros((0, 1), np.float32), RATE, "video")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DecodeError):
            MediaFile(tmp_path / "a.mp4", [(0, (tmp_path / "a.mp4").stat().st_size)])
    assert len(os.listdir("/proc/self/fd")) == before


# What a review found


def test_voc_of_several_blocks_is_refused(tmp_path: Path):
    """libsndfile takes the head of each further block for samples."""
    block = b"\2" + (4000).to_bytes(3, "little") + bytes(range(250)) * 16
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x010A, 0x1129)
    first = b"\1" + (4002).to_bytes(3, "little") + bytes([156, 0]) + bytes(range(250)) * 16
    (tmp_path / "a.voc").write_bytes(head + first + block + b"\0")
    error = refusal(tmp_path / "a.voc")
    assert error.reason == "unreadable" and "2 blocks" in error.detail


@pytest.mark.parametrize("tag", [
    b"APETAGEX" + struct.pack("<IIII", 2000, 20_000, 1, 0) + bytes(8),
    b"APETAGEX" + struct.pack("<IIII", 2000, 20_000, 1, 0x80000000) + bytes(8),
    b"040000LYRICS200", b"3DI\4\0\0\0\1\7f",
])  # fmt: skip
def test_a_tag_with_a_wrong_size_takes_no_music_along(tmp_path: Path, stereo: np.ndarray, tag: bytes):
    path = write(tmp_path / "a.mp3", stereo, RATE)
    plain = decode(path)[1]
    path.write_bytes(path.read_bytes() + tag)
    np.testing.assert_array_equal(decode(path)[1], plain)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
def test_an_empty_last_page_states_no_position(tmp_path: Path, stereo: np.ndarray, name: str):
    """RFC 3533, section 6: -1 where no packet ends on the page."""
    path = write(tmp_path / name, stereo, 48_000)
    plain = decode(path)[1]
    *parts, last = pages(path.read_bytes())
    last[5] &= ~4
    empty = bytearray(last[:26]) + b"\0"
    empty[5], empty[6:14] = 4, b"\xff" * 8
    empty[18:22] = struct.pack("<I", struct.unpack("<I", last[18:22])[0] + 1)
    path.write_bytes(b"".join(map(bytes, parts)) + sealed(last) + sealed(empty))
    audio = decode(path)[1]
    length = min(audio.shape[1], plain.shape[1])
    assert abs(audio.shape[1] - plain.shape[1]) <= 960
    np.testing.assert_allclose(audio[:, :length], plain[:, :length], atol=1e-6)


def test_joined_mp3s_without_counts_and_with_tags_between(tmp_path: Path):
    parts = []
    for seed in (1, 2):
        content = write_audio(tmp_path / f"{seed}.mp3", noise(3, RATE, seed), RATE).read_bytes()
        first = read_mpeg_parts(tmp_path / f"{seed}.mp3", 0, len(content))[0].start
        parts.append(
            content[first + read_header(content[first : first + 4]).size :]
        )  # without the frame that holds the count
    (tmp_path / "a.mp3").write_bytes(parts[0] + ID3V1 + parts[1] + ID3V1)
    header, audio = decode(tmp_path / "a.mp3")
    assert header.notes == ("joined",) and audio.shape[1] >= 6 * RATE


@pytest.mark.parametrize("rate", [1, 999])
def test_a_rate_that_only_damage_states_is_refused(tmp_path: Path, rate: int):
    path = write_audio(tmp_path / "a.wav", noise(1), 8000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    assert refusal(path).reason == "unreadable"


def test_a_header_before_zeros_is_told_at_once(tmp_path: Path):
    """A file that was laid out and never written; five sparse gigabytes of it."""
    for name, head in {"a.wav": b"RIFF\xff\xff\xff\x7fWAVE", "a.aiff": b"FORM\x7f\xff\xff\xffAIFF"}.items():
        with open(tmp_path / name, "wb") as file:
            file.write(head)
            file.truncate(5 << 30)
        assert refusal(tmp_path / name).reason == "unreadable"


@pytest.mark.parametrize(
    "name",
    ["a.wav", "a.aiff", "a.au", "a.w64", "a.caf", "a.flac", "a.ogg", "a.opus", "a.m4a", "a.mp3", "a.wv", "a.tta"],
)
@pytest.mark.parametrize("first_fault", [0, 20, 3000])
def test_a_file_that_cannot_be_read_is_the_storages_fault(
    tmp_path: Path, stereo: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, first_fault: int
):
    path = write(tmp_path / name, stereo, 48_000)
    read = os.pread

    def failing(descriptor: int, count: int, place: int) -> bytes:
        if place + count > first_fault:
            raise OSError(5, "Input/output error")
        return read(descriptor, count, place)

    monkeypatch.setattr("mert_foundry.pipeline.audio.byte_ranges.os.pread", failing)
    with pytest.raises(OSError, match="Input/output error"):
        decode(path)


def test_what_a_library_says_names_no_address(tmp_path: Path, stereo: np.ndarray):
    path = write(tmp_path / "a.ogg", stereo, 48_000)
    path.write_bytes(bytes(next(pages(path.read_bytes()))))
    assert "0x" not in refusal(path).detail
