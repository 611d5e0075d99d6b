"""The teachers there are: to add one, write its file and import its class here. That line is all."""

from typing import Annotated, Union, get_type_hints

import torch
from pydantic import Field

from mert_foundry.pipeline.teachers import teacher
from mert_foundry.pipeline.teachers.cqt import CqtTeacher
from mert_foundry.pipeline.teachers.encodec import EncodecTeacher
from mert_foundry.pipeline.teachers.kmeans import KmeansTeacher
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacher

# Every teacher imported above, by its config: the type of the `config` that its constructor takes.
TEACHERS = {
    get_type_hints(imported.__init__)["config"]: imported
    for name, imported in list(vars().items())
    if name.endswith("Teacher")
}
TeacherConfig = Annotated[Union[tuple(TEACHERS)], Field(discriminator="kind")]  # noqa: UP007


def check_device(configs: list[TeacherConfig], device: str) -> None:
    """Raise ValueError for a teacher that cannot run on a device (`cpu` or `cuda`), naming its place in the config."""
    for number, config in enumerate(configs):
        if device == "cpu" and getattr(config, "precision", None) == "tf32":
            raise ValueError(f"teachers.{number}.precision tf32 needs a GPU (device cuda), the device is cpu")


def build_teachers(configs: list[TeacherConfig], device: str) -> list[teacher.Teacher]:
    """Load the teachers onto a device (`cpu` or `cuda`), in full fp32: TF32 would change the finer codes.

    Raises:
        ValueError: two targets have the same name; and as the teachers do.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    teachers = [TEACHERS[type(config)](config, torch.device(device)) for config in configs]
    names = [each.spec.name for each in teachers]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"target {repeated[0]!r} is made by two teachers; give one of them another name")
    return teachers
