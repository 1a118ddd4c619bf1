"""Scrapes of several replicas in one."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.cluster.scrape import ReplicaScrape, merged_scrape


def scrape(num_requests):
    registry = CollectorRegistry()
    counter = Counter("lorikeet_requests", "Requests.", ["adapter"], registry=registry)
    counter.labels("medical").inc(num_requests)
    Histogram("lorikeet_ttft_seconds", "Time.", buckets=(1.0,), registry=registry).observe(0.5)
    return generate_latest(registry).decode()


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_replica_has_its_own_series():
    found = samples(merged_scrape([ReplicaScrape(scrape(2), 1), ReplicaScrape(scrape(3), 0)]).decode())
    requests = {key[-1]: value for key, value in found.items() if key[0] == "lorikeet_requests_total"}
    assert requests == {("replica", "0"): 3, ("replica", "1"): 2}
    assert found["lorikeet_ttft_seconds_bucket", ("le", "1.0"), ("replica", "1")] == 1


def test_a_metric_is_described_once():
    text = merged_scrape([ReplicaScrape(scrape(1), 0), ReplicaScrape(scrape(1), 1)]).decode()
    assert text.count("# TYPE lorikeet_requests_total counter") == 1


def test_replicas_of_several_bases_are_told_apart():
    found = samples(
        merged_scrape([ReplicaScrape(scrape(2), 0, "small"), ReplicaScrape(scrape(3), 0, "large")]).decode()
    )
    requests = {key[2]: value for key, value in found.items() if key[0] == "lorikeet_requests_total"}
    assert requests == {("base", "large"): 3, ("base", "small"): 2}
