"""Decoding against other decoders, exact formats, and files that are damaged, mislabelled or lie."""

import hashlib
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
from audio_files import CLIPS, noise, tone, write_audio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.audio.audio_file import AudioHeader
from mert_foundry.pipeline.audio.blocks import to_int16
from mert_foundry.pipeline.audio.decode import AudioDigest, check_length, open_audio
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.media_file import MediaFile

TOLERANCE = 0.2
CHECKED_CLIPS = [  # formats whose checksums must reveal any change
    "wesnoth-1.16-music/transience.flac",
    "hyperrogue-music/laboratory.ogg",
    "hyperrogue-music/hunting.opus",
]
OTHER_CLIPS = ["wesnoth-1.16-music/loyalists.m4a", "hyperrogue-music/desert.mp3"]


def decode(path: Path) -> tuple[AudioHeader, np.ndarray]:
    """The whole of a file as the manifest takes it: header, and float32 `[channels, T]`."""
    with open_audio(path) as audio:
        digest = AudioDigest(audio.header)
        blocks = list(digest.follow(audio.blocks()))
    check_length(audio.header, digest.num_samples, TOLERANCE)
    return audio.header, np.concatenate(blocks, axis=1)


def refusal(path: Path) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_refusal_passes_between_processes():
    passed = pickle.loads(pickle.dumps(DecodeError("truncated", "2 of 3 bytes")))
    assert (passed.reason, passed.detail, str(passed)) == ("truncated", "2 of 3 bytes", "truncated: 2 of 3 bytes")


def av_reference(path: Path) -> np.ndarray:
    """ffmpeg's decoding, float32 `[channels, T]`, gathered without this project's code."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        converter = av.AudioResampler(format="fltp")
        frames = [part.to_ndarray() for frame in container.decode(stream) for part in converter.resample(frame)]
    return np.concatenate(frames, axis=1)


@pytest.mark.parametrize("clip", CLIPS)
def test_clips_agree_with_another_decoder(clips: Path, clip: str):
    header, audio = decode(clips / clip)
    extension = clip.rsplit(".", 1)[1]
    if extension in ("ogg", "opus", "m4a"):  # ours are read by libsndfile, so ask ffmpeg
        reference = av_reference(clips / clip)
    else:
        reference = soundfile.read(clips / clip, dtype="float32", always_2d=True)[0].T
    assert audio.dtype == np.float32 and audio.shape[0] == header.channels == len(reference)
    length = min(audio.shape[1], reference.shape[1])
    assert abs(audio.shape[1] - reference.shape[1]) <= (960 if extension == "opus" else 0)
    difference = audio[:, :length] - reference[:, :length]
    if extension in ("opus", "mp3"):  # decoders may round in their own ways
        assert np.std(difference) < 0.01 * np.std(reference)
    else:
        assert np.abs(difference).max() <= (1e-5 if extension == "ogg" else 0)
    assert header.num_samples is not None and abs(header.num_samples - audio.shape[1]) <= 1024


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.opus", "a.m4a", "a.flac", "a.ac3"])
def test_codec_delay_is_trimmed(tmp_path: Path, name: str):
    rate = 48_000
    source = np.concatenate([0 * tone(1, 0.5, rate), noise(0.25, rate), 0 * tone(1, 1.25, rate)])
    _, audio = decode(write_audio(tmp_path / name, source, rate))
    length = min(audio.shape[1], len(source))
    spectrum = np.fft.rfft(audio[0, :length], 2 * length) * np.fft.rfft(source[:length], 2 * length).conj()
    correlation = np.fft.irfft(spectrum)
    lag = (np.argmax(correlation) + length) % (2 * length) - length
    # AC-3 has no way to say how long its delay is.
    assert lag == (256 if name == "a.ac3" else 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(
        [
            "wav PCM_U8",
            "wav PCM_16",
            "wav PCM_24",
            "wav PCM_32",
            "wav FLOAT",
            "wav DOUBLE",
            "aiff PCM_S8",
            "aiff PCM_16",
            "aiff PCM_24",
            "flac PCM_S8",
            "flac PCM_16",
            "flac PCM_24",
            "w64 PCM_16",
            "rf64 PCM_24",
            "au PCM_16",
            "caf PCM_16",
        ]
    ),
    rate=st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 88_200, 96_000, 192_000]),
    channels=st.integers(1, 6),
    seconds=st.floats(0.001, 0.3),
    seed=st.integers(0, 99),
)
def test_uncompressed_and_lossless_audio_is_exact(
    tmp_path: Path, form: str, rate: int, channels: int, seconds: float, seed: int
):
    extension, subtype = form.split()
    length = max(1, round(seconds * rate))
    if form == "aiff PCM_S8":
        length += length % 2  # libsndfile counts the padding of an odd chunk when it writes
    audio = np.random.default_rng(seed).uniform(-1, 1, (length, channels))
    path = write_audio(tmp_path / f"a.{extension}", audio, rate, subtype)
    header, decoded = decode(path)
    assert (header.sample_rate, header.channels, header.num_samples) == (rate, channels, len(audio))
    np.testing.assert_array_equal(decoded, soundfile.read(path, dtype="float32", always_2d=True)[0].T)


@pytest.mark.parametrize("channels", [7, 8, 9, 24, 64])
def test_many_channels(tmp_path: Path, channels: int):
    path = write_audio(tmp_path / "a.wav", noise(0.1, channels=channels))
    header, decoded = decode(path)
    assert header.channels == channels
    np.testing.assert_array_equal(decoded, soundfile.read(path, dtype="float32")[0].T)


def test_more_channels_than_can_be_read_are_refused(tmp_path: Path):
    error = refusal(write_audio(tmp_path / "a.wav", noise(0.1, channels=65)))
    assert error.reason == "unreadable" and "65 channels" in error.detail


@pytest.mark.parametrize("clip", CHECKED_CLIPS + OTHER_CLIPS + ["a.wav", "a.aiff", "a.w64"])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_a_truncated_file_is_told(tmp_path: Path, clips: Path, clip: str, kept: float):
    whole = clips / clip if "/" in clip else write_audio(tmp_path / clip, noise(10))
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{clip.rsplit('.', 1)[1]}"
    cut.write_bytes(content[: int(kept * len(content))])
    error = refusal(cut)
    assert error.reason == "truncated"
    assert len([word for word in error.detail.split() if word.rstrip(",").isdigit()]) >= 2, error.detail


@pytest.mark.parametrize("clip", CHECKED_CLIPS)
def test_a_file_that_lacks_only_its_last_bytes_is_told(tmp_path: Path, clips: Path, clip: str):
    cut = tmp_path / "cut"
    cut.write_bytes((clips / clip).read_bytes()[:-20])
    assert refusal(cut).reason == "truncated"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), clip=st.sampled_from(CHECKED_CLIPS))
def test_one_flipped_bit_never_passes_as_the_same_file(tmp_path: Path, clips: Path, clip: str, place: float, bit: int):
    """Every byte of Ogg is under a checksum; in FLAC all that changes the audio is."""
    content = bytearray((clips / clip).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    try:
        _, audio = decode(damaged)
    except DecodeError as error:
        assert error.reason in ("unreadable", "truncated", "length_mismatch", "not_audio")
    else:
        assert clip.endswith("flac")
        np.testing.assert_array_equal(audio, decode(clips / clip)[1])


@pytest.mark.parametrize("clip", CHECKED_CLIPS)
def test_damage_in_the_middle_names_its_place(tmp_path: Path, clips: Path, clip: str):
    content = bytearray((clips / clip).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "damaged").write_bytes(content)
    error = refusal(tmp_path / "damaged")
    assert error.reason == "unreadable" and any(character.isdigit() for character in error.detail)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clip=st.sampled_from(CHECKED_CLIPS + OTHER_CLIPS + ["a.wav", "a.aiff", "a.w64", "a.caf", "a.au", "a.rf64"]),
    start=st.one_of(st.integers(0, 200), st.integers(0, 100_000)),
    patch=st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"])),
    removed=st.sampled_from([0, 0, 1, 40, 5000]),
)
def test_any_damage_ends_as_audio_or_as_a_reason(
    tmp_path: Path, clips: Path, clip: str, start: int, patch: bytes, removed: int
):
    whole = clips / clip if "/" in clip else tmp_path / f"whole-{clip}"
    if not whole.exists():
        write_audio(whole, noise(1))
    content = whole.read_bytes()
    start %= len(content)
    damaged = tmp_path / f"damaged.{clip.rsplit('.', 1)[1]}"
    damaged.write_bytes(content[:start] + patch + content[start + len(patch) + removed :])
    try:
        header, audio = decode(damaged)
        assert np.isfinite(audio).all() and len(audio) == header.channels
    except DecodeError as error:
        assert error.reason in ("unreadable", "truncated", "length_mismatch", "not_audio")


def test_a_missing_piece_of_an_mp3_is_told(tmp_path: Path, clips: Path):
    content = (clips / "asc-music/frontiers.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[:50_000] + content[60_000:])
    assert refusal(tmp_path / "a.mp3").reason in ("unreadable", "truncated")


def test_a_wav_header_that_claims_more_than_there_is(tmp_path: Path):
    path = write_audio(tmp_path / "a.wav", noise(5))
    patch_data_size(path, 2 * 200_000)
    error = refusal(path)
    assert error.reason == "truncated" and "200000" in error.detail and "120000" in error.detail


def test_a_wav_header_that_claims_less_than_there_is(tmp_path: Path):
    """A recording beyond 4 GiB leaves a size that has overflowed."""
    path = write_audio(tmp_path / "a.wav", noise(5))
    patch_data_size(path, 2 * 50_000)
    error = refusal(path)
    assert error.reason == "length_mismatch" and "50000" in error.detail and "120000" in error.detail


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0])
def test_a_streamed_wav_whose_size_was_left_open_is_read_to_its_end(tmp_path: Path, size: int):
    path = write_audio(tmp_path / "a.wav", noise(5))
    reference = soundfile.read(path, dtype="float32")[0]
    patch_data_size(path, size)
    header, audio = decode(path)
    assert header.num_samples is None
    np.testing.assert_array_equal(audio[0], reference)


@pytest.mark.parametrize("odd", [b"LIST\4\0\0\0INFO", b"id3 \2\0\0\0ab", b"\0\0\0\0\0\0"])
def test_chunks_and_padding_after_the_audio_are_fine(tmp_path: Path, odd: bytes):
    path = write_audio(tmp_path / "a.wav", noise(4))
    with open(path, "ab") as file:
        file.write(odd)
    assert decode(path)[1].shape == (1, 96_000)


@pytest.mark.parametrize(
    ("claimed", "reason"), [(300_000, "truncated"), (220_501, "truncated"), (220_499, "length_mismatch")]
)
def test_a_flac_header_that_lies(tmp_path: Path, clips: Path, claimed: int, reason: str):
    content = bytearray((clips / "wesnoth-1.16-music/transience.flac").read_bytes())
    patch_flac_length(content, claimed)
    (tmp_path / "a.flac").write_bytes(content)
    error = refusal(tmp_path / "a.flac")
    assert error.reason == reason and str(claimed) in error.detail and "220500" in error.detail


def test_a_streamed_flac_without_a_length(tmp_path: Path, clips: Path):
    whole = clips / "wesnoth-1.16-music/transience.flac"
    content = bytearray(whole.read_bytes())
    patch_flac_length(content, 0)
    (tmp_path / "a.flac").write_bytes(content)
    header, audio = decode(tmp_path / "a.flac")
    assert header.num_samples is None
    np.testing.assert_array_equal(audio, decode(whole)[1])
    content[len(content) // 2] ^= 1
    (tmp_path / "a.flac").write_bytes(content)
    assert refusal(tmp_path / "a.flac").reason == "unreadable"


def test_chained_ogg_streams_are_refused_rather_than_cut_after_the_first(tmp_path: Path, clips: Path):
    first, second = (
        (clips / clip).read_bytes() for clip in ("hyperrogue-music/laboratory.ogg", "hyperrogue-music/caribbean.ogg")
    )
    (tmp_path / "a.ogg").write_bytes(first + second)
    error = refusal(tmp_path / "a.ogg")
    assert error.reason == "unreadable" and "second stream" in error.detail


def test_a_lost_ogg_page_is_told(tmp_path: Path, clips: Path):
    content = (clips / "hyperrogue-music/laboratory.ogg").read_bytes()
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    (tmp_path / "a.ogg").write_bytes(b"".join(pages[:5] + pages[6:]))
    error = refusal(tmp_path / "a.ogg")
    assert error.reason == "unreadable" and "page 6" in error.detail and "page 4" in error.detail


@pytest.mark.parametrize(
    "clip", ["hyperrogue-music/laboratory.ogg", "wesnoth-1.16-music/transience.flac", "asc-music/frontiers.mp3"]
)
def test_tags_around_the_audio_change_nothing(tmp_path: Path, clips: Path, clip: str):
    picture = b"\0image/jpeg\0\3\0" + b"\xff\xd8\xff\xe0" + bytes(300) + b"\xff\xd9"
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    before = b"" if clip.endswith("ogg") else b"ID3\3\0\0" + size + frame
    tagged = tmp_path / Path(clip).name
    tagged.write_bytes(before + (clips / clip).read_bytes() + b"TAG" + b"title".ljust(125, b"\0"))
    np.testing.assert_array_equal(decode(tagged)[1], decode(clips / clip)[1])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.mp3", b"just some text\n" * 100, "unreadable"),
        ("a.txt", b"just some text\n" * 100, "not_audio"),
        ("a.mp3", b"\0", "unreadable"),
        ("a.flac", b"fLaC", "unreadable"),
        ("a.ogg", b"OggS\0\2" + bytes(22) + b"\1\x1e\1vorbis", "unreadable"),
        ("a.pdf", b"%PDF-1.4\n" + bytes(500), "not_audio"),
    ],
)
def test_files_that_are_no_audio(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).reason == reason


@pytest.mark.parametrize("name", ["cover.jpg", "cover.mp3"])
def test_a_picture_is_no_audio(tmp_path: Path, name: str):
    with av.open(str(tmp_path / "made.jpg"), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    (tmp_path / "made.jpg").rename(tmp_path / name)
    assert refusal(tmp_path / name).reason == ("unreadable" if name.endswith("mp3") else "not_audio")


def test_a_film_without_sound_is_no_audio(tmp_path: Path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert refusal(tmp_path / "a.mp4").reason == "not_audio"


@pytest.mark.parametrize("name", ["list.m3u", "list.mp3", "list.pls", "list.ffconcat", "list.wav", "list.m3u8"])
@pytest.mark.parametrize(
    "form",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "[playlist]\nFile1={}\n",
        "{}\n",
    ],
)
def test_a_playlist_does_not_lead_to_another_file(tmp_path: Path, name: str, form: str):
    other = write_audio(tmp_path / "other.wav", noise(4))
    (tmp_path / name).write_text(form.format(other))
    assert refusal(tmp_path / name).reason in ("not_audio", "unreadable")


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        ("asc-music/frontiers.mp3", "a.wav"),
        ("wesnoth-1.16-music/transience.flac", "a.mp3"),
        ("wesnoth-1.16-music/loyalists.m4a", "a"),
        ("hyperrogue-music/laboratory.ogg", "a.txt"),
        ("hyperrogue-music/hunting.opus", "a.flac"),
    ],
)
def test_a_wrong_extension_does_not_matter(tmp_path: Path, clips: Path, clip: str, name: str):
    (tmp_path / name).write_bytes((clips / clip).read_bytes())
    np.testing.assert_array_equal(decode(tmp_path / name)[1], decode(clips / clip)[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float):
    audio = noise(4)
    audio[1000] = value
    error = refusal(write_audio(tmp_path / "a.wav", audio, subtype="FLOAT"))
    assert error.reason == "unreadable" and "sample" in error.detail


@pytest.mark.parametrize("rate", [0, 1 << 25, 0xFFFFFFFF])
def test_a_rate_that_no_audio_has_is_refused(tmp_path: Path, rate: int):
    path = write_audio(tmp_path / "a.wav", noise(1))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    error = refusal(path)
    assert error.reason == "unreadable" and str(rate) in error.detail


def test_a_change_of_channels_on_the_way_is_refused(tmp_path: Path, clips: Path):
    mono, stereo = ((clips / clip).read_bytes() for clip in ("hyperrogue-music/desert.mp3", "asc-music/frontiers.mp3"))
    (tmp_path / "a.mp3").write_bytes(mono[:30_000] + stereo[1000:60_000])
    assert refusal(tmp_path / "a.mp3").reason == "unreadable"


def test_a_change_of_sample_format_on_the_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As of a decoder that begins another kind of stream: frames of floats after frames of integers."""
    path = write_audio(tmp_path / "a.flac", noise(1), 24_000)
    file = MediaFile(path, [(0, path.stat().st_size)])
    frames = [
        av.AudioFrame.from_ndarray(np.zeros((1, 100), dtype), format=name, layout="mono")
        for name, dtype in {"s16": np.int16, "flt": np.float32}.items()
    ]
    for frame in frames:
        frame.sample_rate = 24_000
    monkeypatch.setattr(file, "_packets", lambda: [None])
    monkeypatch.setattr(file, "decoder", SimpleNamespace(decode=lambda packet: frames))
    with file, pytest.raises(DecodeError) as caught:
        list(file.blocks())
    assert caught.value.reason == "unreadable" and "'s16')" in caught.value.detail and "'flt')" in caught.value.detail


@pytest.mark.parametrize("channels", [8, 32])
def test_a_speaker_for_every_channel(tmp_path: Path, channels: int):
    """A WAV file may name 32; ffmpeg's filters would not take so long a list of them."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([noise(0.1, seed=seed) for seed in range(channels)], axis=1), 24_000, format="WAVEX")
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", (1 << channels) - 1)
    path.write_bytes(content)
    assert decode(path)[1].shape == (channels, 2400)


@settings(max_examples=50, deadline=None)
@given(
    audio=st.integers(1, 3).flatmap(
        lambda channels: st.lists(
            st.lists(st.floats(-1.5, 1.5, width=32), min_size=channels, max_size=channels), min_size=1
        )
    ),
    cuts=st.lists(st.integers(0, 20)),
    rate=st.sampled_from([8000, 24_000]),
)
def test_digest_is_of_interleaved_16_bit_pcm_whatever_the_blocks(audio: list, cuts: list, rate: int):
    samples = np.array(audio, np.float32).T
    header = AudioHeader(rate, len(samples), None, "test")
    digest = AudioDigest(header)
    passed = list(digest.follow(np.split(samples, sorted(cut for cut in cuts if cut < samples.shape[1]), axis=1)))
    np.testing.assert_array_equal(np.concatenate(passed, axis=1), samples)
    integers = [min(32_767, max(-32_768, round(float(value) * 32_768))) for frame in samples.T for value in frame]
    naive = hashlib.sha256(
        f"{rate} {len(samples)}\n".encode() + struct.pack(f"<{len(integers)}h", *integers)
    ).hexdigest()
    assert digest.hexdigest() == naive
    assert digest.num_samples == samples.shape[1]
    assert to_int16(samples).T.ravel().tolist() == integers


@settings(deadline=None)
@given(
    claimed=st.integers(0, 100_000),
    decoded=st.integers(0, 100_000),
    tolerance=st.sampled_from([0.0, 0.2, 1.0]),
    slack=st.sampled_from([None, 0, 100]),
)
def test_length_check_names_the_side_that_is_longer(claimed: int, decoded: int, tolerance: float, slack: int | None):
    header = AudioHeader(24_000, 1, claimed, "wav/pcm_s16le", slack)
    allowed = (
        slack if slack is not None else max(tolerance * 24_000, 5186)
    )  # of a lossy format, whose encoders put some before
    if abs(claimed - decoded) <= allowed:
        check_length(header, decoded, tolerance)
        return
    with pytest.raises(DecodeError) as caught:
        check_length(header, decoded, tolerance)
    assert caught.value.reason == ("truncated" if decoded < claimed else "length_mismatch")
    assert str(claimed) in caught.value.detail and str(decoded) in caught.value.detail


def patch_data_size(path: Path, size: int) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(content)


def patch_flac_length(content: bytearray, num_samples: int) -> None:
    """Total samples are the last 36 bits before the MD5 in STREAMINFO (RFC 9639, section 8.2)."""
    value = int.from_bytes(content[18:26], "big")
    content[18:26] = ((value >> 36 << 36) | num_samples).to_bytes(8, "big")
