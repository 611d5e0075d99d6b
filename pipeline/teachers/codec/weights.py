"""RVQ-VAE codecs of the EnCodec architecture: sizes, building, loading, saving.

The network is `encodec.EncodecModel` itself (Défossez et al. 2022, arXiv 2210.13438), so any checkpoint
with its state-dict names fits. Three ways to name weights, none of which is ever a fallback for another:

- `official`: Meta's 24 kHz checkpoint, fetched by the encodec package's own download, hash checked;
- a path to a local copy of that file (`encodec_24khz-d7cc33bc.th`), its hash checked;
- a folder with `codec.yaml` and `codec.safetensors`, written by `mert codec`; `foundry-small` names the
  small codec that ships with this package.
"""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from encodec.model import ROOT_URL, EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.storage.folder_kinds import CODEC, check_input

OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"
SHIPPED_CODECS = Path(__file__).parent / "shipped"
SIZES, WEIGHTS = "codec.yaml", "codec.safetensors"
CODEBOOK = "quantizer.vq.layers.{}._codebook.{}"


class CodecSizes(BaseModel):
    """Constructor sizes of an EnCodec-architecture codec (24 kHz, mono, causal, weight norm)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: int = Field(default=32, gt=0, description="Channels of the first convolution")
    dimension: int = Field(default=128, gt=0, description="Channels of the latent")
    ratios: tuple[int, ...] = Field(default=(8, 5, 4, 2), description="Strides, decoder order; product = hop")
    lstm_layers: int = Field(default=2, ge=1, description="LSTM layers in encoder and in decoder")
    codebooks: int = Field(default=8, gt=0, description="Residual codebooks")
    codebook_size: int = Field(default=1024, gt=1, description="Entries per codebook, a power of two")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)


OFFICIAL_SIZES = CodecSizes(codebooks=32)


@dataclass(frozen=True)
class StoredCodec:
    """What decides the codes of a codec: its sizes, and encoder and codebooks by their state-dict names, on the CPU."""

    sizes: CodecSizes
    weights: Mapping[str, Tensor]


def build_codec(sizes: CodecSizes) -> EncodecModel:
    """An untrained codec; its codebooks wait for `initialise_codebooks` or a state dict."""
    common: dict[str, Any] = {
        "channels": 1,
        "dimension": sizes.dimension,
        "n_filters": sizes.filters,
        "ratios": list(sizes.ratios),
        "norm": "weight_norm",
        "causal": True,
        "lstm": sizes.lstm_layers,
    }
    quantizer = ResidualVectorQuantizer(
        dimension=sizes.dimension,
        n_q=sizes.codebooks,
        bins=sizes.codebook_size,
        kmeans_init=True,
        threshold_ema_dead_code=0,
    )
    return EncodecModel(
        SEANetEncoder(**common),
        SEANetDecoder(**common),
        quantizer,
        target_bandwidths=[],
        sample_rate=SAMPLE_RATE,
        channels=1,
        name="mert_foundry_codec",
    )


def load_codec(weights: str) -> EncodecModel:
    """A codec in evaluation mode from `official`, a shipped name, an official file or a codec folder.

    Raises:
        ValueError: nothing of that name, or the file's SHA-256 is not the one in its name.
    """
    path = _find(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the older weight norm
        return load_folder(path) if path and path.is_dir() else load_official(path)


def read_codec(weights: str) -> StoredCodec:
    """What `load_codec` would load, as far as it decides codes, without building the network.

    Raises as `load_codec`; of a codec folder, that the sizes fit is checked for the codebooks alone.
    """
    path = _find(weights)
    if path and path.is_dir():
        return _read_folder(path)
    state = _read_official(path)
    return StoredCodec(OFFICIAL_SIZES, {name: state[name] for name in _names_of_codes(state)})


def _names_of_codes(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("encoder.") or name.endswith("_codebook.embed")]


def _find(weights: str) -> Path | None:
    """The folder or file that `weights` names; None for `official`. Raises ValueError when there is none."""
    if (SHIPPED_CODECS / weights).is_dir():
        return SHIPPED_CODECS / weights
    if weights == "official":
        return None
    path = Path(weights)
    if path.is_dir() or path.is_file():
        return path
    shipped = ", ".join(sorted(folder.name for folder in SHIPPED_CODECS.iterdir()))
    raise ValueError(
        f"codec weights {weights!r}: not 'official', not a shipped codec ({shipped}), not a file or folder"
    )


def load_official(path: Path | None = None) -> EncodecModel:
    """Meta's 24 kHz codec from a local file; without one, downloaded to the torch hub cache."""
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    model.load_state_dict(_read_official(path))
    return model.eval()


def _read_official(path: Path | None) -> dict[str, Tensor]:
    if path is not None:
        check_official(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # What EncodecModel._get_pretrained does, but without unpickling arbitrary objects.
    return torch.hub.load_state_dict_from_url(
        ROOT_URL + OFFICIAL_FILE, map_location="cpu", check_hash=True, weights_only=True
    )


def check_official(path: Path) -> None:
    """Raise ValueError unless the file's SHA-256 starts with the hash in the official file's name."""
    expected = OFFICIAL_FILE.removesuffix(".th").rsplit("-", 1)[1]
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(expected):
        raise ValueError(f"{path}: SHA-256 starts with {actual[:8]}, the official {OFFICIAL_FILE} with {expected}")


def load_folder(folder: Path) -> EncodecModel:
    """A codec of our own training.

    Raises FolderError for another kind of folder, FileNotFoundError, or ValueError naming what does not fit or is
    untrained.
    """
    model = build_codec(_read_sizes(folder))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{folder}: {WEIGHTS} cannot be read: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{folder}: {WEIGHTS} does not fit {SIZES}: {error}") from error
    _check_trained(folder, model.state_dict())
    return model.eval()


def _read_folder(folder: Path) -> StoredCodec:
    sizes = _read_sizes(folder)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            # Of the decoder, the largest part of the file, nothing is read. A module would have the weights in float32.
            state = {name: file.get_tensor(name).float() for name in file.keys() if not name.startswith("decoder.")}
    except SafetensorError as error:
        raise ValueError(f"{folder}: {WEIGHTS} cannot be read: {error}") from error
    expected = (sizes.codebook_size, sizes.dimension)
    for level in range(sizes.codebooks):
        found = state.get(CODEBOOK.format(level, "embed"))
        if found is None or found.shape != expected:
            shape = None if found is None else tuple(found.shape)
            raise ValueError(f"{folder}: {WEIGHTS} does not fit {SIZES}: codebook {level} is {shape}, not {expected}")
    _check_trained(folder, state)
    return StoredCodec(sizes, {name: state[name] for name in _names_of_codes(state)})


def _read_sizes(folder: Path) -> CodecSizes:
    check_input(str(folder), CODEC)
    return parse_values(str(folder / SIZES), yaml.safe_load((folder / SIZES).read_text()), CodecSizes)


def _check_trained(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a codebook that the encodec package would fit to the first audio it sees."""
    for name in state:
        if name.endswith("_codebook.inited") and not state[name]:
            level = name.removeprefix(CODEBOOK.partition("{}")[0]).split(".")[0]
            raise ValueError(f"{folder}: codebook {level} was never trained")


def save_folder(model: EncodecModel, sizes: CodecSizes, folder: Path) -> None:
    """Write `codec.yaml` and `codec.safetensors` (state-dict names of `encodec.EncodecModel`)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / SIZES).write_text(yaml.safe_dump(sizes.model_dump(mode="json"), sort_keys=True))
