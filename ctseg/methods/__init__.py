"What a method adds to a step, one module each; importing this package registers them all."
from . import mean_teacher, self_training, supervised, teacher_student, unimatch

__all__ = ["mean_teacher", "self_training", "supervised", "teacher_student", "unimatch"]
