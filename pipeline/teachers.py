"""The teachers there are: to add one, write its file and name it in the two lines below."""

from typing import Annotated

import torch
from pydantic import Field

from pipeline.cqt_teacher import CqtTeacher, CqtTeacherConfig
from pipeline.encodec_teacher import EncodecTeacher, EncodecTeacherConfig
from pipeline.teacher import Teacher

TeacherConfig = Annotated[EncodecTeacherConfig | CqtTeacherConfig, Field(discriminator="kind")]
TEACHERS = {"encodec": EncodecTeacher, "cqt": CqtTeacher}


def build_teachers(configs: list[TeacherConfig], device: str) -> list[Teacher]:
    """Load the teachers onto a device (`cpu` or `cuda`)."""
    return [TEACHERS[config.kind](config, torch.device(device)) for config in configs]
