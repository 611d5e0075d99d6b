"""Tokens as frames: an embedding of each, for text alone."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class EmbeddingFrontendConfig(BaseModel):
    """Settings of the embedding of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input_name: ClassVar[str] = "tokens"

    kind: Literal["embedding"] = Field(description="An embedding of the tokens of shards of text alone")
    vocabulary_size: int | None = Field(
        None, ge=1, description="tokens there are; null: as many as the shards' tokenizer has"
    )
    width: int = Field(256, ge=1, description="features per token")

    @property
    def hop(self) -> int:
        """A token is a frame, which shards count as 320 samples whether there is audio or not."""
        return 320

    @property
    def sample_rate(self) -> None:
        """There is no audio."""
        return None

    @property
    def learned_width(self) -> int:
        """All features are weights."""
        return self.width

    @property
    def padding_invariant(self) -> bool:
        """A frame depends on its own token alone."""
        return True


class EmbeddingFrontend(nn.Module):
    """Tokens [B, 1, F] -> features [B, F, C]. Masked frames become the encoder's mask embedding afterwards, so that no
    prediction sees its own token.
    """

    def __init__(self, config: EmbeddingFrontendConfig):
        """Raises ValueError when the size of the vocabulary is not known."""
        super().__init__()
        if config.vocabulary_size is None:
            raise ValueError(
                "encoder.frontend.vocabulary_size is null: shards of text alone say it, or it must be given"
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)

    def num_frames(self, num_tokens: int) -> int:
        """Frames F that `forward` returns for `num_tokens` tokens: as many."""
        return num_tokens

    def operations(self, num_tokens: int) -> float:
        """Of a training step, on a row of `num_tokens` tokens: rows of a table are looked up, nothing is multiplied."""
        return 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, 1, F] -> features [B, F, C]."""
        features: Tensor = self.embedding(tokens.squeeze(1))
        return features
