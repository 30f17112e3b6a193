"""Teachers: obtained once, asked once for each batch of views, replayed for every candidate."""

from levit_search.distill.store import Store
from levit_search.distill.teacher import kept_card, obtain_teacher, shared_teacher
from levit_search.distill.teacher_answers import Filled, TeacherAnswers, fill, kept_store
from levit_search.distill.teacher_network import create_teacher

__all__ = [
    "Filled",
    "Store",
    "TeacherAnswers",
    "create_teacher",
    "fill",
    "kept_card",
    "kept_store",
    "obtain_teacher",
    "shared_teacher",
]
