"""Which bins of a continuous target are pitches."""

from pipeline.teacher import TargetSpec


def octave_layout(spec: TargetSpec) -> tuple[float, int] | None:
    """Centre of the lowest bin in Hz and bins an octave, when the target's teacher says so (a constant-Q transform)."""
    lowest, per_octave = spec.teacher.get("lowest_frequency"), spec.teacher.get("bins_per_octave")
    if isinstance(lowest, int | float) and isinstance(per_octave, int) and lowest > 0 and per_octave > 0:
        return float(lowest), per_octave
    return None
