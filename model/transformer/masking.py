"""What masking does to the frames that enter the transformer, and which frames are then predicted.

Three things can happen to a masked frame, as in BERT (arXiv 1810.04805, section 3.1) and MERT's settings: the mask
embedding takes its place, the features of another frame of the same row do, or it is kept. All three are predicted.
A fourth has happened before: its samples are noise (model/objective/noise_fill.py), and nothing is done here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """Masks of a batch, on the encoder's frames.

    predicted: [B, F] bool; masked frames, whose targets are predicted.
    embedded: [B, F] bool; those of them that the mask embedding replaces.
    source: [B, F] int64 or None; whose features a frame gets: the index of a frame of its row, its own for most.
    channels: [B, D] bool or None; features that are 0 in all frames of a row.
    noised: [B, F] bool or None; masked frames whose samples are noise.
    """

    predicted: Tensor
    embedded: Tensor
    source: Tensor | None = None
    channels: Tensor | None = None
    noised: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """[B, F]"""
        return self.predicted.shape

    def first(self, rows: int) -> "Masking":
        """Those of the first rows."""
        return self.each(lambda part: part[:rows])

    def split(self, count: int) -> Iterator["Masking"]:
        """`count` parts along the rows, as Tensor.tensor_split cuts them."""
        return (self.each(partial(_part_of, count, number)) for number in range(count))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Masking":
        """The same with every part changed."""
        return Masking(
            change(self.predicted),
            change(self.embedded),
            None if self.source is None else change(self.source),
            None if self.channels is None else change(self.channels),
            None if self.noised is None else change(self.noised),
        )


def _part_of(count: int, number: int, tensor: Tensor) -> Tensor:
    return tensor.tensor_split(count)[number]


def as_masking(mask: Tensor | Masking) -> Masking:
    """A plain mask [B, F] bool: each masked frame gets the mask embedding and is predicted."""
    return mask if isinstance(mask, Masking) else Masking(mask, mask)


def apply_masking(hidden: Tensor, mask: Tensor | Masking, embedding: Tensor) -> Tensor:
    """Features [B, F, D] as the transformer gets to see them; `embedding` is the mask embedding [D].

    Features of other frames are taken before anything is masked, then the embedding is set, then channels are
    zeroed, in the embedding too.
    """
    masking = as_masking(mask)
    if masking.source is not None:
        hidden = hidden.gather(1, masking.source[:, :, None].expand_as(hidden))
    hidden = torch.where(masking.embedded[:, :, None], embedding.to(hidden.dtype), hidden)
    if masking.channels is not None:
        hidden = hidden.masked_fill(masking.channels[:, None], 0.0)
    return hidden
