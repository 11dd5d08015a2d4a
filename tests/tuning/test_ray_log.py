"""A log in many files, read by one node and by two, is the log that one process reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from src.core.errors import DataError
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from tests.data.test_presets import composed
from tests.data.toy_sources import ITEMS, toy_log

pytestmark = pytest.mark.slow
FILES = 6


@pytest.fixture
def shop(tmp_path: Path) -> DatasetSettings:
    """Six files of a log with dates, and titles beside them."""
    (tmp_path / "log").mkdir()
    size = len(toy_log()) // FILES
    for number in range(FILES):
        part = toy_log()[number * size : (number + 1) * size]
        lines = [f"c{u},s{i},2024-01-01 {t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d},{r}" for u, i, r, t in part]
        (tmp_path / "log" / f"part-{number}.csv").write_text("\n".join(["customer,sku,bought_at,stars", *lines]) + "\n")
    titles = [f"s{item},Thing {item}" for item in range(1, ITEMS + 1)]
    (tmp_path / "products.csv").write_text("\n".join(["sku,title", *titles]) + "\n")
    return composed("table_on_ray", tmp_path, "dataset.interactions_file=log", "dataset.items_file=products.csv")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_one_node_and_two_read_what_one_process_reads(
    shop: DatasetSettings, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    here = load_dataset(replace(shop, adapter="table")).fingerprints()
    ray.init(address=cluster.address, log_to_driver=False)
    assert load_dataset(shop).fingerprints() == here
    cluster.add_node(num_cpus=1)
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert load_dataset(shop).fingerprints() == here
    # what the nodes find wrong is told as ever: file, line, rule
    (shop.root / "log" / "part-3.csv").write_text("customer,sku,bought_at,stars\nc1,s1\n")
    with pytest.raises(DataError, match=r"part-3\.csv line 2.*has 2 fields, must have 4"):
        load_dataset(shop)
