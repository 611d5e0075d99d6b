"""The front-ends to choose from by `kind`: audio [B, T] samples -> features [B, F, C] frames.

Each config tells `hop` (samples a frame), `width` (C), `learned_width` (how many of them, the first ones, weights
make), `sample_rate` (Hz it is made for, None: any) and `padding_invariant` (whether zeros after a row leave its frames
as they are); each module tells `num_frames(num_samples)` and `operations(num_samples)`. Their frame i begins at sample i * hop.
"""

from collections.abc import Callable

from mert_foundry.model.frontend.convolution import ConvFrontend, FrontendConfig
from mert_foundry.model.frontend.convolution_cqt import ConvCqtFrontend, ConvCqtFrontendConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontend, LogMelFrontendConfig

AnyFrontendConfig = FrontendConfig | ConvCqtFrontendConfig | LogMelFrontendConfig
AnyFrontend = ConvFrontend | ConvCqtFrontend | LogMelFrontend

_FRONTENDS: dict[type, Callable[..., AnyFrontend]] = {
    FrontendConfig: ConvFrontend,
    ConvCqtFrontendConfig: ConvCqtFrontend,
    LogMelFrontendConfig: LogMelFrontend,
}


def build_frontend(config: AnyFrontendConfig) -> AnyFrontend:
    """The front-end of a config."""
    return _FRONTENDS[type(config)](config)
