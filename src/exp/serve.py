"""Serve exported students over HTTP, with a page on which people can try them.

python -m src.exp.serve student=my_student
python -m src.exp.serve 'students=[baseline,my_student]' port=9000
"""

from __future__ import annotations

from src.exp.entry import Entry
from src.pipeline.run_folder import RunFolder
from src.serving.serve import ServePlan, ServeSettings, check_serve, serve


def run(settings: ServeSettings, plan: ServePlan, folder: RunFolder) -> None:
    """Serve until it is told to end, then write the run's record."""
    serve(settings, plan)
    folder.finish("serve", 0, plan.students[0].fingerprints, {"students": [student.name for student in plan.students]})


ENTRY: Entry[ServeSettings] = Entry(
    command="serve", config_name="use/serve", description=__doc__, schema=ServeSettings, check=check_serve, run=run
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
