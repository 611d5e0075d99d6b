"""The pre-training step as it is without this project: transformers' HubertModel and heads as MERT's code writes them.

What `mert bench step` compares with. It has the loss of model/objective/pretrain_model.py and takes its weights from
there, so both begin at the same loss and gradient. Needs transformers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from mert_foundry.model.frontend.convolution import scale_gradient
from mert_foundry.model.interop.hubert_config import hubert_config
from mert_foundry.model.interop.weight_names import hubert_name
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import PretrainModel


class NaiveHubert(nn.Module):
    """HubertModel, one projection for all codebooks, an embedding table for each, a linear map for values.

    `attention` is transformers' name of an attention implementation: `eager` or `sdpa`.
    """

    def __init__(self, model: PretrainModel, attention: str):
        super().__init__()
        encoder = model.encoder.config
        self.specs = model.head_specs
        self.objective = model.objective
        self.hubert = HubertModel(HubertConfig(**hubert_config(encoder), attn_implementation=attention))
        self.hubert.load_state_dict({hubert_name(name): w for name, w in model.encoder.state_dict().items()})
        self.heads = model.heads
        multiplier = encoder.frontend.gradient_multiplier
        self.hubert.feature_extractor.register_forward_hook(self._keep_features(multiplier))

    def _keep_features(self, multiplier: float):
        """A hook, since HubertModel does not hand out the features that the penalty is taken of."""

        def hook(module: nn.Module, inputs: tuple, features: Tensor) -> Tensor:
            self.features = scale_gradient(features, multiplier)
            return self.features

        return hook

    def forward(self, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """The training loss of a batch in its device form, all frames valid; mask [B, F] bool."""
        frames = mask.shape[1]
        masked = self.hubert(batch["audio"], mask_time_indices=mask).last_hidden_state[mask]
        loss = self.objective.feature_penalty * self.features.float().square().mean()
        for spec in self.specs:
            head = self.heads[spec.name]
            if spec.kind == "discrete":
                codes = batch[spec.name][:, :, :frames].transpose(1, 2)[mask]
                loss = loss + self._code_loss(head, spec, masked, codes)
            else:
                loss = loss + nn.functional.mse_loss(head(masked), batch[spec.name][:, :frames][mask])
        return loss

    def _code_loss(self, head: nn.Module, spec: HeadSpec, masked: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy summed over codebooks, mean over frames; masked [S, D], codes [S, K]."""
        projected = head.projection(masked).chunk(spec.size, dim=1)
        return sum(
            naive_cross_entropy(projected[k], head.embedding[k], codes[:, k], self.objective.temperature)
            for k in range(spec.size)
        )


def naive_cross_entropy(projected: Tensor, embedding: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """As MERT's compute_nce: the right code first, then the whole table expanded to every frame, the right one out.

    projected [S, d], embedding [V, d], codes [S] -> scalar, mean over frames.
    """
    right = embedding[codes]
    others = embedding[:, None].expand(-1, len(projected), -1)
    candidates = torch.cat([right[None], others])
    logits = torch.cosine_similarity(projected.float(), candidates.float(), dim=2) / temperature
    same = (right == others).all(2)
    logits[1:][same] = -torch.inf
    return nn.functional.cross_entropy(logits.T, torch.zeros_like(codes))
