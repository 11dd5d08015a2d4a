"""What each stage of the cache produces, as a number."""

#: raise a stage's number when its code changes what it produces: older cache entries are then built again
VERSIONS = {
    "student": 2,
    "closed_form": 1,
    "prior": 1,
    "student_outputs": 1,
    "tiny_llm": 1,
    "teacher": 1,
    "teacher_outputs": 1,
    "title_outputs": 1,
}
