"""Text as memory of the encoder: token embeddings through a small transformer, for the layers that read a memory."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mert_foundry.model.objective.seeding import derive_seed
from mert_foundry.model.transformer.config import TransformerConfig
from mert_foundry.model.transformer.transformer import TransformerEncoderExtend

TOKENIZER = "text.tokens"  # where a run keeps the tokenizer, among the teachers of its data


class TextMemoryConfig(BaseModel):
    """What the text beside an example becomes before the encoder reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = Field("text", description="text: the tokens that shards with text hold")
    layers: int = Field(2, ge=1, description="layers of the transformer over tokens")
    width: int = Field(256, ge=1, description="features per token; encoder.transformer.memory_width must be the same")
    heads: int = Field(4, ge=1, description="attention heads; must divide width, and leave an even number")
    dropout: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="probability that a training step takes the whole text of an example away, so that the encoder"
        " works without any",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "TextMemoryConfig":
        self.transformer()
        return self

    def transformer(self) -> TransformerConfig:
        """Settings of the transformer.

        It draws nothing at random: the encoder's dropout is what it would be without text.
        """
        return TransformerConfig(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            feed_forward=4 * self.width,
            norm="pre",
            position="rope",
            dropout=0.0,
            attention_dropout=0.0,
            layer_drop=0.0,
        )


class TextMemory(nn.Module):
    """Tokens [B, n] -> memory [B, n, D_m]."""

    def __init__(self, config: TextMemoryConfig, vocabulary_size: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_size, config.width)
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.transformer = TransformerEncoderExtend(config.transformer())

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """tokens int64 [B, n], valid [B, n] bool; a row may have no valid token, and then means nothing."""
        # A row of the transformer needs a valid entry; nobody reads what comes of a row without text.
        inside = valid | ~valid.any(dim=1, keepdim=True)
        return self.transformer(self.embedding(tokens), inside).last


def keep_texts(probability: float, seed: int, step: int, keys: Sequence[str]) -> Tensor:
    """Which rows keep their text in a training step, [B] bool: a pure function of seed, step and the row's key."""
    draws = [np.random.default_rng(derive_seed(seed, step, "text", key)).random() for key in keys]
    return torch.tensor([draw >= probability for draw in draws])
