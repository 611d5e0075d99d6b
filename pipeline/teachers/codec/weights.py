"""RVQ-VAE codecs of the EnCodec architecture: sizes, building, loading, saving.

The network is `encodec.EncodecModel` itself (Défossez et al. 2022, arXiv 2210.13438), so any checkpoint
with its state-dict names fits. Three ways to name weights, none of which is ever a fallback for another:

- `official`: Meta's 24 kHz checkpoint, fetched by the encodec package's own download, hash checked;
- a path to a local copy of that file (`encodec_24khz-d7cc33bc.th`), its hash checked;
- a folder with `codec.yaml` and `codec.safetensors`, written by `mert codec`; `foundry-small` names the
  small codec that ships with this package.
"""

import hashlib
import warnings
from pathlib import Path

import torch
import yaml
from encodec.model import ROOT_URL, EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.storage.folder_kinds import CODEC, check_input

OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"
SHIPPED_CODECS = Path(__file__).parent / "shipped"


class CodecSizes(BaseModel):
    """Constructor sizes of an EnCodec-architecture codec (24 kHz, mono, causal, weight norm)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: int = Field(default=32, gt=0, description="Channels of the first convolution")
    dimension: int = Field(default=128, gt=0, description="Channels of the latent")
    ratios: tuple[int, ...] = Field(default=(8, 5, 4, 2), description="Strides, decoder order; product = hop")
    lstm_layers: int = Field(default=2, ge=1, description="LSTM layers in encoder and in decoder")
    codebooks: int = Field(default=8, gt=0, description="Residual codebooks")
    codebook_size: int = Field(default=1024, gt=1, description="Entries per codebook, a power of two")


def build_codec(sizes: CodecSizes) -> EncodecModel:
    """An untrained codec; its codebooks wait for `initialise_codebooks` or a state dict."""
    common = {
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
    path = SHIPPED_CODECS / weights if (SHIPPED_CODECS / weights).is_dir() else Path(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the older weight norm
        if weights == "official":
            return load_official()
        if path.is_dir():
            return load_folder(path)
        if path.is_file():
            return load_official(path)
    shipped = ", ".join(sorted(folder.name for folder in SHIPPED_CODECS.iterdir()))
    raise ValueError(
        f"codec weights {weights!r}: not 'official', not a shipped codec ({shipped}), not a file or folder"
    )


def load_official(path: Path | None = None) -> EncodecModel:
    """Meta's 24 kHz codec from a local file; without one, downloaded to the torch hub cache."""
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    if path is None:
        # What EncodecModel._get_pretrained does, but without unpickling arbitrary objects.
        state = torch.hub.load_state_dict_from_url(
            ROOT_URL + OFFICIAL_FILE, map_location="cpu", check_hash=True, weights_only=True
        )
    else:
        check_official(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    return model.eval()


def check_official(path: Path) -> None:
    """Raise ValueError unless the file's SHA-256 starts with the hash in the official file's name."""
    expected = OFFICIAL_FILE.removesuffix(".th").rsplit("-", 1)[1]
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(expected):
        raise ValueError(f"{path}: SHA-256 starts with {actual[:8]}, the official {OFFICIAL_FILE} with {expected}")


def load_folder(folder: Path) -> EncodecModel:
    """A codec of our own training.

    Raises FolderError for another kind of folder, FileNotFoundError, or ValueError naming what does not fit or is untrained.
    """
    check_input(str(folder), CODEC)
    sizes = CodecSizes(**yaml.safe_load((folder / "codec.yaml").read_text()))
    model = build_codec(sizes)
    try:
        model.load_state_dict(load_file(folder / "codec.safetensors"))
    except SafetensorError as error:
        raise ValueError(f"{folder}: codec.safetensors cannot be read: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{folder}: codec.safetensors does not fit codec.yaml: {error}") from error
    for level, layer in enumerate(model.quantizer.vq.layers):
        # The encodec package would fit such a codebook to the first audio it sees.
        if not layer._codebook.inited:
            raise ValueError(f"{folder}: codebook {level} was never trained")
    return model.eval()


def save_folder(model: EncodecModel, sizes: CodecSizes, folder: Path) -> None:
    """Write `codec.yaml` and `codec.safetensors` (state-dict names of `encodec.EncodecModel`)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "codec.safetensors")
    (folder / "codec.yaml").write_text(yaml.safe_dump(sizes.model_dump(mode="json"), sort_keys=True))
