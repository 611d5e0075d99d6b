"""Names of the encoder's weights here, in `transformers.HubertModel` and in fairseq's HuBERT and MERT models.

A table is a list of (pattern, replacement); a name is renamed by the first pattern that its beginning matches.
"""

import re
from collections.abc import Sequence

Names = Sequence[tuple[str, str]]

HUBERT_NAMES: Names = (
    (r"frontend\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"frontend\.layers\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"projection\.norm\.", "feature_projection.layer_norm."),
    (r"projection\.linear\.", "feature_projection.projection."),
    (r"mask_embedding$", "masked_spec_embed"),
    (r"transformer\.position\.conv\.", "encoder.pos_conv_embed.conv."),
    (r"transformer\.norm\.", "encoder.layer_norm."),
    (r"transformer\.layers\.(\d+)\.attention\.query\.", r"encoder.layers.\1.attention.q_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.key\.", r"encoder.layers.\1.attention.k_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.value\.", r"encoder.layers.\1.attention.v_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.out\.", r"encoder.layers.\1.attention.out_proj."),
    (r"transformer\.layers\.(\d+)\.attention_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"transformer\.layers\.(\d+)\.feed_forward\.inner\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"transformer\.layers\.(\d+)\.feed_forward\.outer\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"transformer\.layers\.(\d+)\.feed_forward_norm\.", r"encoder.layers.\1.final_layer_norm."),
)

# fairseq keeps a convolution, its dropout and its norm in one Sequential; a layer norm sits between two transposes.
_FAIRSEQ_NAMES: Names = (
    (r"frontend\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"projection\.norm\.", "layer_norm."),
    (r"projection\.linear\.", "post_extract_proj."),
    (r"mask_embedding$", "mask_emb"),
    (r"transformer\.position\.conv\.", "encoder.pos_conv.0."),
    (r"transformer\.norm\.", "encoder.layer_norm."),
    (r"transformer\.layers\.(\d+)\.attention\.query\.", r"encoder.layers.\1.self_attn.q_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.key\.", r"encoder.layers.\1.self_attn.k_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.value\.", r"encoder.layers.\1.self_attn.v_proj."),
    (r"transformer\.layers\.(\d+)\.attention\.out\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"transformer\.layers\.(\d+)\.attention_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"transformer\.layers\.(\d+)\.feed_forward\.inner\.", r"encoder.layers.\1.fc1."),
    (r"transformer\.layers\.(\d+)\.feed_forward\.outer\.", r"encoder.layers.\1.fc2."),
    (r"transformer\.layers\.(\d+)\.feed_forward_norm\.", r"encoder.layers.\1.final_layer_norm."),
)
FAIRSEQ_GROUP_NORM_NAMES: Names = (
    *_FAIRSEQ_NAMES,
    (r"frontend\.layers\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.2."),
)
FAIRSEQ_LAYER_NORM_NAMES: Names = (
    *_FAIRSEQ_NAMES,
    (r"frontend\.layers\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.2.1."),
)


def rename(name: str, names: Names) -> str:
    """The name that the other implementation gives to a weight of MertEncoder. Raises KeyError when it has none."""
    for pattern, replacement in names:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    raise KeyError(name)


def hubert_name(name: str) -> str:
    """The name that HubertModel gives to a weight of MertEncoder."""
    return rename(name, HUBERT_NAMES)
