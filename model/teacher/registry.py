"""Every teacher that a label config may name: those of `pipeline/teachers/registry.py`, and an encoder.

The data side does not know the learned side, so the encoder joins its teachers here, and commands hand all of them to
it.
"""

from typing import Annotated

from pydantic import Field

from mert_foundry.model.teacher.encoder_teacher import EncoderTeacher, EncoderTeacherConfig
from mert_foundry.pipeline.teachers import registry

TEACHERS: registry.Teachers = registry.TEACHERS | {EncoderTeacherConfig: EncoderTeacher}
TeacherConfig = Annotated[registry.TeacherConfig | EncoderTeacherConfig, Field(discriminator="kind")]
