"""A probing task: what is predicted of which clips, and by which metrics it is scored."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Kind = Literal["multiclass", "multilabel", "regression", "frame_classes", "beats", "separation"]
Metric = Literal[
    "accuracy",
    "macro_accuracy",
    "weighted_key_score",
    "octave_free_accuracy",
    "roc_auc",
    "average_precision",
    "r2",
    "frame_accuracy",
    "frame_roc_auc",
    "beat_f_70ms",
    "beat_f_20ms",
    "tempo_accuracy_1",
    "tempo_accuracy_2",
    "sdr",
]
# Those for which one label holds of a whole track, so that its features and predictions can be averaged.
POOLED_KINDS: tuple[Kind, ...] = ("multiclass", "multilabel", "regression")
METRICS_OF: dict[Kind, frozenset[Metric]] = {
    "multiclass": frozenset({"accuracy", "macro_accuracy", "weighted_key_score", "octave_free_accuracy"}),
    "multilabel": frozenset({"roc_auc", "average_precision"}),
    "regression": frozenset({"r2"}),
    "frame_classes": frozenset({"frame_accuracy", "frame_roc_auc"}),
    "beats": frozenset({"beat_f_70ms", "beat_f_20ms", "tempo_accuracy_1", "tempo_accuracy_2"}),
    "separation": frozenset({"sdr"}),
}


def check_stretch(start: float, end: float | None) -> None:
    """Raises ValueError for a stretch that ends before it starts."""
    if end is not None and end <= start:
        raise ValueError(f"it starts at {start} s and ends at {end} s")


class Segment(BaseModel):
    """One class over a stretch of a file; frames under no segment are not scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(ge=0, description="Seconds from the start of the file")
    end: float = Field(gt=0, description="Seconds from the start of the file")
    label: str = Field(description="One of the task's classes")

    @model_validator(mode="after")
    def _is_a_stretch(self) -> Self:
        check_stretch(self.start, self.end)
        return self


class Beats(BaseModel):
    """The beats of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    times: tuple[float, ...] = Field(description="Seconds from the start of the file, ascending")
    tempo: float | None = Field(default=None, gt=0, description="Beats per minute, where it is known")

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        for earlier, later in zip(self.times, self.times[1:]):
            if later <= earlier:
                raise ValueError(f"the beat at {later} s follows one at {earlier} s")
        return self


# multiclass: a class; multilabel: classes; regression: a value for each of the task's classes; frame_classes: segments;
# beats: beats; separation: by stem, the path of its audio.
Label = str | tuple[str, ...] | tuple[float, ...] | tuple[Segment, ...] | Beats | dict[str, str]


class ProbeClip(BaseModel):
    """A labelled stretch of an audio file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="The audio file, relative to the root of the set, with slashes")
    label: Label = Field(description="What is to be predicted; its form follows the task's kind")
    split: Split | None = Field(default=None, description="null only in a task with folds")
    fold: int | None = Field(default=None, ge=0, description="Fold of a cross-validated task")
    track: str = Field(description="Predictions of clips with the same track are averaged before they are scored")
    group: str = Field(description="The piece: no group lies in two splits, and intervals are drawn over groups")
    start: float = Field(default=0.0, ge=0, description="Seconds from the start of the file")
    end: float | None = Field(default=None, gt=0, description="Seconds from the start of the file; null: its end")
    condition: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_]*$",
        description="Test clips of another condition, such as another soundfont, are scored in rows of their own",
    )

    @model_validator(mode="after")
    def _is_a_stretch(self) -> Self:
        check_stretch(self.start, self.end)
        return self


class ProbeTask(BaseModel):
    """What is predicted, and how it is scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Name of the task, as in tasks=[...]")
    kind: Kind = Field(description="What a label is")
    classes: tuple[str, ...] = Field(
        default=(), description="Classes in the order of the outputs; names of the values of a regression; stems"
    )
    metrics: tuple[Metric, ...] = Field(min_length=1, description="The first one chooses layer, rate and checkpoint")
    clip_seconds: float | None = Field(
        default=None, gt=0, description="Longer stretches are cut into clips of this length, seconds; null: not cut"
    )
    clip_minimum: float = Field(
        default=0.8, ge=0, le=1, description="A last clip is kept if it is at least this share of clip_seconds"
    )
    folds: int = Field(
        default=0,
        ge=0,
        description="Folds of a cross-validated task, at least 3: one is tested, one validates, the others train; 0:"
        " the splits of the clips",
    )
    published_as: str = Field(default="", description="The published task that this is, or resembles")

    @model_validator(mode="after")
    def _metrics_fit(self) -> Self:
        unfit = [metric for metric in self.metrics if metric not in METRICS_OF[self.kind]]
        if unfit:
            raise ValueError(
                f"task {self.name}: {self.kind} has the metrics {sorted(METRICS_OF[self.kind])}, not {unfit}"
            )
        for name, values in (("classes", self.classes), ("metrics", self.metrics)):
            if len(set(values)) < len(values):
                raise ValueError(f"task {self.name}: one of {name} stands twice: {', '.join(values)}")
        if self.kind != "beats" and not self.classes:
            raise ValueError(f"task {self.name}: {self.kind} needs classes")
        return self

    @model_validator(mode="after")
    def _folds_suffice(self) -> Self:
        if self.folds in (1, 2):
            raise ValueError(
                f"task {self.name}: {self.folds} folds; at least 3 are needed, to test, to validate and to train"
            )
        return self


class LabelledSet(BaseModel):
    """A task with its clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: ProbeTask
    root: str = Field(description="Folder that the clips' paths are relative to")
    clips: tuple[ProbeClip, ...]
