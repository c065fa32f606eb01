"""Learning from a teacher: its logits, and its tensors at the ends of stages.

`Distiller` is the loss of every training that may have a teacher: fine-tuning, QAT and NNCF's.
"""

from edge_resnet.distillation.cache import TeacherAnswers, worth_keeping
from edge_resnet.distillation.distiller import Distiller
from edge_resnet.distillation.features import stage_pairs
from edge_resnet.distillation.teacher import Teacher, check_teacher

__all__ = ["Distiller", "Teacher", "TeacherAnswers", "check_teacher", "stage_pairs", "worth_keeping"]
