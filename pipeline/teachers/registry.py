"""The teachers there are: to add one, write its file and import its class here. That line is all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Union, get_type_hints

import torch
from pydantic import BaseModel, Field

from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.teachers import teacher
from mert_foundry.pipeline.teachers.cqt import CqtTeacher
from mert_foundry.pipeline.teachers.encodec import EncodecTeacher
from mert_foundry.pipeline.teachers.kmeans import KmeansTeacher
from mert_foundry.pipeline.teachers.mel_rvq import MelRvqTeacher
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacher

Teachers = dict[type[BaseModel], Any]  # classes of teachers by those of their configs

# Every teacher imported above, by its config: the type of the `config` that its constructor takes.
TEACHERS: Teachers = {
    get_type_hints(imported.__init__)["config"]: imported
    for name, imported in list(vars().items())
    if name.endswith("Teacher")
}
if TYPE_CHECKING:  # which cannot follow what is imported
    TeacherConfig = BaseModel
else:
    TeacherConfig = Annotated[Union[tuple(TEACHERS)], Field(discriminator="kind")]  # noqa: UP007


def check_device(configs: Sequence[BaseModel], device: str) -> None:
    """Raise ValueError for a teacher that cannot run on a device (`cpu` or `cuda`), naming its key in the config."""
    for number, config in enumerate(configs):
        if device == "cpu" and getattr(config, "precision", None) == "tf32":
            raise ValueError(f"teachers.{number}.precision tf32 needs a GPU (device cuda), the device is cpu")
        if device == "cuda" and getattr(config, "backend", None) == "openvino":
            raise ValueError(f"teachers.{number}.backend openvino runs on the CPU, the device is cuda")


def describe_targets(configs: Sequence[BaseModel], teachers: Teachers = TEACHERS) -> list[TargetSpec]:
    """What the teachers will write, without loading their weights into anything; `teachers` may have more than those
    here.

    Raises:
        ValueError: two targets have the same name; and as the teachers do.
    """
    specs = [teachers[type(config)].describe(config) for config in configs]
    _check_names(specs)
    return specs


def build_teachers(configs: Sequence[BaseModel], device: str, teachers: Teachers = TEACHERS) -> list[teacher.Teacher]:
    """Load the teachers onto a device (`cpu` or `cuda`), in full fp32: TF32 would change the finer codes.

    Raises as `describe_targets`, and when a teacher cannot run on the device.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    built = [teachers[type(config)](config, torch.device(device)) for config in configs]
    _check_names([each.spec for each in built])
    return built


def _check_names(specs: list[TargetSpec]) -> None:
    names = [spec.name for spec in specs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"target {repeated[0]!r} is made by two teachers; give one of them another name")
