"""Every teacher that a label config may name: those of `pipeline/teachers/registry.py`, and an encoder.

The data side does not know the learned side, so the encoder joins its teachers here, and commands hand all of them to it.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import BaseModel, Field

from mert_foundry.model.teacher.encoder_teacher import EncoderTeacher, EncoderTeacherConfig
from mert_foundry.pipeline.teachers import registry

TEACHERS: registry.Teachers = registry.TEACHERS | {EncoderTeacherConfig: EncoderTeacher}
if TYPE_CHECKING:  # which cannot follow what is imported
    TeacherConfig = BaseModel
else:
    TeacherConfig = Annotated[Union[tuple(TEACHERS)], Field(discriminator="kind")]  # noqa: UP007
