"""Teachers: obtained once, asked once for each batch of views, replayed for every candidate."""

from levit_search.distill.store import Store
from levit_search.distill.teacher import kept_card, obtain_teacher
from levit_search.distill.teacher_answers import (
    TeacherAnswers,
    fill,
    header_of,
    store_folder,
)
from levit_search.distill.teacher_network import create_teacher

__all__ = [
    "Store",
    "TeacherAnswers",
    "create_teacher",
    "fill",
    "header_of",
    "kept_card",
    "obtain_teacher",
    "store_folder",
]
