"""Export the student of a finished result: ONNX, weights, id map and model card in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.run_folder import RunFolder
    from src.serving.export import ExportStudentSettings

EXAMPLES = (
    ("result=result/result_A", "into student/ of this run's result folder"),
    ("result=result/result_A out=my_student", "into a folder of your choice"),
    ("result=result/result_A out=small quantise=int8", "weights as 8-bit whole numbers, the loss measured"),
    ("result=result/result_A name=films", "with a name on its model card"),
    ("result=result/result_A push_to_hub=me/films", "also to the Hugging Face hub"),
)


def work() -> Work[ExportStudentSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.new_texts import text_embedder
    from src.serving.export import check_export, export_record, export_student, report_export

    def check(settings: ExportStudentSettings) -> Any:
        return check_export(settings, text_embedder(settings.encoder))

    def write(settings: ExportStudentSettings, plan: Any, folder: RunFolder) -> None:
        place = settings.out or folder.path / "student"
        config = export_student(settings, plan, place)
        report_export(config, place)
        record = export_record(config, place)
        folder.finish("export", int(plan.result.manifest.get("seed", 0)), config["fingerprints"], record)

    return Work(check, write)


ENTRY: Entry[ExportStudentSettings] = Entry(
    "export", "use/export", __doc__, SCHEMAS["use/export"], work, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
