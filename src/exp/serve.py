"""Serve exported students over HTTP, with a page on which people can try them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.run_folder import RunFolder
    from src.serving.serve import ServeSettings

EXAMPLES = (
    ("student=my_student", "on http://127.0.0.1:8080"),
    ("student=my_student beside=result/result_A", "beside the baseline and the teacher"),
    ("'students=[baseline,my_student]' port=9000", "two side by side"),
    ("student=my_student port=0", "on a port that is free"),
    ("student=my_student host=0.0.0.0 token_file=token.txt", "for other machines, with a token"),
)


def work() -> Work[ServeSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.serving.serve import check_serve, serve

    def answer(settings: ServeSettings, plan: Any, folder: RunFolder) -> None:
        serve(settings, plan)
        names = [student.name for student in plan.students]
        folder.finish("serve", 0, plan.students[0].fingerprints, {"students": names})

    return Work(check_serve, answer)


ENTRY: Entry[ServeSettings] = Entry("serve", "use/serve", __doc__, SCHEMAS["use/serve"], work, examples=EXAMPLES)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
