"""Recommend for a whole file of histories (Parquet, CSV, JSON Lines) with an exported student or a result's.

python -m src.exp.recommend student=my_student histories=users.parquet out=next.parquet k=10
"""

from __future__ import annotations

from src.exp.entry import Entry
from src.pipeline.run_folder import RunFolder
from src.serving.recommend import RecommendPlan, RecommendSettings, check_recommend, recommend_file, tell


def run(settings: RecommendSettings, plan: RecommendPlan, folder: RunFolder) -> None:
    """Write the recommendations and the run's record."""
    counts = recommend_file(settings, plan)
    tell(counts, plan.out)
    folder.finish("recommend", 0, plan.student.fingerprints, {"recommendations": counts.as_dict()})


ENTRY: Entry[RecommendSettings] = Entry(
    command="recommend",
    config_name="use/recommend",
    description=__doc__,
    schema=RecommendSettings,
    check=check_recommend,
    run=run,
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
