"""Recommend for a whole file of histories (Parquet, CSV, JSON Lines) with an exported student or a result's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.run_folder import RunFolder
    from src.serving.recommend import RecommendSettings

EXAMPLES = (
    ("student=my_student histories=users.parquet out=next.parquet", "ten items for every user"),
    (
        "student=my_student histories=events.csv out=next.csv columns.item=movie k=20",
        "from a log, with names of its own",
    ),
    ("student=my_student histories=users.parquet out=next.parquet unknown=popular", "for strangers, too"),
    ("student=my_student histories=users.csv out=next.csv exclude_seen=false", "what was seen may come again"),
    ("student=result/result_A histories=u.csv out=next.csv new_items=new.csv", "with items that came after training"),
)


def work() -> Work[RecommendSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.new_texts import text_embedder
    from src.serving.recommend import check_recommend, recommend_file, report_counts

    def check(settings: RecommendSettings) -> Any:
        return check_recommend(settings, text_embedder(settings.encoder))

    def write(settings: RecommendSettings, plan: Any, folder: RunFolder) -> None:
        counts = recommend_file(settings, plan)
        report_counts(counts, plan.out)
        folder.finish("recommend", 0, plan.student.fingerprints, {"recommendations": counts.as_dict()})

    return Work(check, write)


ENTRY: Entry[RecommendSettings] = Entry(
    "recommend", "use/recommend", __doc__, SCHEMAS["use/recommend"], work, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
