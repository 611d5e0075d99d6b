"""Audio decoded back from stored codes, to hear what they kept; only for targets of a codec, which has a decoder."""

import numpy as np
import torch
import yaml
from pydantic import ValidationError

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.teachers.codec.weights import load_codec
from mert_foundry.pipeline.teachers.encodec import EncodecTeacher, EncodecTeacherConfig

LABEL_CONFIG = "label.yaml"


class CodecDecoder:
    """Decodes the codes of one target with the codec that made them.

    Raises:
        ValueError: no such codec, or it is not the one that made the target; both fingerprints are named.
        OSError: the official codec could not be downloaded.
    """

    def __init__(self, spec: TargetSpec, config: EncodecTeacherConfig):
        fingerprint = EncodecTeacher.describe(config).fingerprint
        if fingerprint != spec.fingerprint:
            raise ValueError(
                f"codec {config.weights}: fingerprint {fingerprint}, target {spec.name} was made by {spec.fingerprint}"
            )
        self._codec = load_codec(config.weights)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Audio float32 `[320 F]` of codes `[K, F]`, as if they began in silence: the first frames lack their past."""
        indices = torch.from_numpy(codes.astype(np.int64))[:, None]
        audio = self._codec.decoder(self._codec.quantizer.decode(indices))[0, 0]
        return audio[: HOP * codes.shape[1]].numpy()


def recorded_teacher(folder: str, spec: TargetSpec, weights: str | None = None) -> EncodecTeacherConfig:
    """The codec teacher of a target as label.yaml beside the shards has it, else as the target's own settings say.

    `weights` takes the place of the recorded ones, for a codec that has moved. Raises ValueError when none are named.
    """
    config = _in_label_config(folder, spec)
    if config is None:
        if weights is None and "weights" not in spec.teacher:
            raise ValueError(f"target {spec.name}: neither {LABEL_CONFIG} nor index.json names its codec")
        precision = {"precision": spec.teacher["precision"]} if "precision" in spec.teacher else {}
        config = EncodecTeacherConfig(
            kind="encodec", name=spec.name, weights=weights or spec.teacher["weights"], codebooks=spec.size, **precision
        )
    return config.model_copy(update={"weights": weights}) if weights else config


def _in_label_config(folder: str, spec: TargetSpec) -> EncodecTeacherConfig | None:
    location = files.join(folder, LABEL_CONFIG)
    if not files.exists(location):
        return None
    document = yaml.safe_load(files.read_bytes(location))
    for teacher in document.get("teachers", []) if isinstance(document, dict) else []:
        try:
            config = EncodecTeacherConfig.model_validate(teacher)
        except ValidationError:
            continue  # a teacher of another kind
        if config.name == spec.name:
            return config
    return None
