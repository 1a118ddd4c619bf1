"""Metrics whose series are looked up once and go when their version goes."""

from collections.abc import Collection
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from adapters.reference import Target

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

_VERSION = ("adapter", "version")


def labels_of(target: Target) -> tuple[str, str]:
    """The values of `adapter` and `version`."""
    return target.name, str(target.version)


class Family(Generic[MetricT]):
    """A labelled metric that keeps its series at hand: prometheus_client builds a key and takes a lock each time."""

    def __init__(self, metric: MetricT, retired: Collection[tuple[str, ...]] = ()) -> None:
        self._metric = metric
        self._retired = retired
        self._series: dict[tuple[str, ...], MetricT] = {}

    def of(self, *labels: str) -> MetricT:
        """The series with these label values, in the order of the label names."""
        series = self._series.get(labels)
        return self._add(labels) if series is None else series

    def all(self) -> tuple[MetricT, ...]:
        return tuple(self._series.values())

    def drop(self, *labels: str) -> None:
        """Forget one series, where there is one."""
        if self._series.pop(labels, None) is not None:
            self._metric.remove(*labels)

    def drop_where(self, index: int, value: str) -> None:
        """Forget the series that have this value of the label at an index."""
        for labels in [labels for labels in self._series if labels[index] == value]:
            self.drop(*labels)

    def retire(self, version: tuple[str, str]) -> None:
        """Drop every series of a version."""
        self._series = {labels: series for labels, series in self._series.items() if labels[:2] != version}
        self._metric.remove_by_labels(dict(zip(_VERSION, version, strict=True)))

    def _add(self, labels: tuple[str, ...]) -> MetricT:
        series = self._metric.labels(*labels)
        if labels[:2] in self._retired:
            # A request that ends after its version is gone: counted in a series that nobody scrapes.
            self._metric.remove(*labels)
        else:
            self._series[labels] = series
        return series


class VersionFamilies:
    """Declares metrics labelled by adapter and version, and drops the series of a version in all of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._families: list[Family[Any]] = []
        self._retired: set[tuple[str, ...]] = set()

    def counter(self, name: str, text: str, *more: str) -> Family[Counter]:
        return self._add(Counter(name, text, (*_VERSION, *more), registry=self.registry))

    def gauge(self, name: str, text: str, *more: str) -> Family[Gauge]:
        return self._add(Gauge(name, text, (*_VERSION, *more), registry=self.registry))

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Family[Histogram]:
        return self._add(Histogram(name, text, _VERSION, buckets=buckets, registry=self.registry))

    def retire(self, target: Target) -> None:
        """Drop a version's series; it never comes back, for versions are never reused."""
        version = labels_of(target)
        if version not in self._retired:
            self._retired.add(version)
            for family in self._families:
                family.retire(version)

    def _add(self, metric: MetricT) -> Family[MetricT]:
        family = Family(metric, self._retired)
        self._families.append(family)
        return family
