"""The metrics of all replicas in one answer, told apart by the label `replica`."""

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"
BASE_LABEL = "base"


class ReplicaScrape(NamedTuple):
    """One replica's metrics.

    Attributes:
        rank: Among the replicas of its base.
        base: The base's name for clients; None where there is only one.
    """

    text: str
    rank: int
    base: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        own = {LABEL: str(self.rank)}
        return own if self.base is None else own | {BASE_LABEL: self.base}


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

    def describe(self) -> Iterable[Metric]:
        return ()


def merged_scrape(scrapes: Iterable[ReplicaScrape]) -> bytes:
    """One scrape of several, in Prometheus' text format."""
    merged: dict[str, Metric] = {}
    for scrape in sorted(scrapes, key=lambda own: (own.base or "", own.rank)):
        for family in text_string_to_metric_families(scrape.text):
            whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.samples.append(sample._replace(labels=dict(sample.labels) | scrape.labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(merged.values()))
    return generate_latest(registry)
