"""Which targets belong to which encoder frame: the one place that knows frame rates.

Frame i of a hop of h samples stands for samples [i h, (i + 1) h). The encoder's hop is a multiple m of a target's,
so encoder frame i has the m target frames from i m on:

- values (spectra) are averaged over them;
- of codes, which have no mean, the one in the middle (i m + m // 2) is taken, whose samples lie around the encoder
  frame's centre. fairseq takes the first. Predicting all m, as stacked codebooks, would make the heads' shapes and
  the released checkpoints depend on the front-end's hop;
- the encoder frame is valid where all m are.

The encoder may return fewer frames than there are targets (120,000 samples: 375 target frames, 374 encoder frames);
the targets beyond its length are dropped. With m = 1, MERT's own case, nothing else happens.
"""

from torch import Tensor

SAMPLE_RATE = 24_000  # Hz, of all audio in shards
FRAME_RATE = 75  # Hz, of `valid` and of MERT's targets: a hop of 320 samples


def target_stride(name: str, frame_rate: int, hop: int) -> int:
    """Frames m of target `name` (frame_rate in Hz) to one encoder frame of `hop` samples.

    Raises ValueError when the encoder's hop is no multiple of the target's.
    """
    if SAMPLE_RATE % frame_rate or hop % (SAMPLE_RATE // frame_rate):
        target_hop = f"{SAMPLE_RATE / frame_rate:g}"
        raise ValueError(
            f"target {name} has a hop of {target_hop} samples ({frame_rate} Hz at {SAMPLE_RATE} Hz), "
            f"the encoder's hop {hop} is no multiple of it"
        )
    return hop * frame_rate // SAMPLE_RATE


def align_codes(codes: Tensor, stride: int, num_frames: int) -> Tensor:
    """Codes [B, K, T] -> [B, K, F], the middle one of each `stride`."""
    return codes[:, :, stride // 2 :: stride][:, :, :num_frames]


def align_values(values: Tensor, stride: int, num_frames: int) -> Tensor:
    """Values [B, T, bins] -> [B, F, bins], means of `stride`."""
    return values[:, : num_frames * stride].unflatten(1, (num_frames, stride)).mean(2)


def align_valid(valid: Tensor, hop: int, num_frames: int) -> Tensor:
    """`valid` of the batch [B, T] bool at FRAME_RATE -> [B, F] bool of encoder frames of `hop` samples."""
    stride = target_stride("valid", FRAME_RATE, hop)
    return valid[:, : num_frames * stride].unflatten(1, (num_frames, stride)).all(2)
