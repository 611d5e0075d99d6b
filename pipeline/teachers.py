"""The teachers there are: to add one, write its file and name its config and class below."""

from typing import Annotated

import torch
from pydantic import Field

from pipeline.cqt_teacher import CqtTeacher, CqtTeacherConfig
from pipeline.encodec_teacher import EncodecTeacher, EncodecTeacherConfig
from pipeline.teacher import Teacher

TeacherConfig = Annotated[EncodecTeacherConfig | CqtTeacherConfig, Field(discriminator="kind")]
TEACHERS = {EncodecTeacherConfig: EncodecTeacher, CqtTeacherConfig: CqtTeacher}


def build_teachers(configs: list[TeacherConfig], device: str) -> list[Teacher]:
    """Load the teachers onto a device (`cpu` or `cuda`), in full fp32: TF32 would change the finer codes."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return [TEACHERS[type(config)](config, torch.device(device)) for config in configs]
