"""Export the student of a finished result: ONNX, weights, id map and model card in one folder.

python -m src.exp.export result=result/result_A out=my_student
"""

from __future__ import annotations

from src.exp.entry import Entry
from src.pipeline.run_folder import RunFolder
from src.serving.export import ExportPlan, ExportSettings, check_export, export_record, export_student


def run(settings: ExportSettings, plan: ExportPlan, folder: RunFolder) -> None:
    """Write the export and the run's record."""
    place = settings.out or folder.path / "student"
    config = export_student(settings, plan, place)
    record = export_record(config, place)
    folder.finish("export", int(plan.result.manifest.get("seed", 0)), config["fingerprints"], record)


ENTRY: Entry[ExportSettings] = Entry(
    command="export", config_name="use/export", description=__doc__, schema=ExportSettings, check=check_export, run=run
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
