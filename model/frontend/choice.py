"""The front-ends to choose from by `kind`: audio [B, T] samples, or tokens [B, 1, T] -> features [B, F, C] frames.

Each config tells `input_name` (what of a batch it reads: audio, or tokens), `hop` (samples a frame), `width` (C),
`learned_width` (how many of them, the first ones, weights make), `sample_rate` (Hz it is made for, None: any) and
`padding_invariant` (whether zeros after a row leave its frames as they are); each module tells `num_frames(T)` and
`operations(T)`. Their frame i begins at sample i * hop.
"""

from collections.abc import Callable

from mert_foundry.model.frontend.convolution import ConvFrontend, FrontendConfig
from mert_foundry.model.frontend.convolution_cqt import ConvCqtFrontend, ConvCqtFrontendConfig
from mert_foundry.model.frontend.embedding import EmbeddingFrontend, EmbeddingFrontendConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontend, LogMelFrontendConfig

AnyFrontendConfig = FrontendConfig | ConvCqtFrontendConfig | LogMelFrontendConfig | EmbeddingFrontendConfig
AnyFrontend = ConvFrontend | ConvCqtFrontend | LogMelFrontend | EmbeddingFrontend

_FRONTENDS: dict[type, Callable[..., AnyFrontend]] = {
    FrontendConfig: ConvFrontend,
    ConvCqtFrontendConfig: ConvCqtFrontend,
    LogMelFrontendConfig: LogMelFrontend,
    EmbeddingFrontendConfig: EmbeddingFrontend,
}


def build_frontend(config: AnyFrontendConfig) -> AnyFrontend:
    """The front-end of a config."""
    return _FRONTENDS[type(config)](config)
