"""Contents of `report.json`. Documented in docs/loadtest.md."""

from typing import Literal

from loadtest.load.records import GeneratorFigures, LoadtestRecord, RunResult
from loadtest.report.slo import Slo, SloVerdict, judge
from loadtest.report.stats import Bucket, TrafficSummary, bucket_width_s, summarize, summarize_by_model, timeline


class Report(LoadtestRecord):
    """`report.json`."""

    schema_version: Literal[1] = 1
    name: str
    url: str
    started_at: str
    machine: str
    workload: dict[str, object]
    seed: int
    duration_s: float
    generator: GeneratorFigures
    warnings: tuple[str, ...]
    overall: TrafficSummary
    adapters: tuple[TrafficSummary, ...]
    timeline: tuple[Bucket, ...]
    slo: SloVerdict | None


def make_report(result: RunResult, slo: Slo | None) -> Report:
    return Report(
        name=result.name,
        url=result.url,
        started_at=result.started_at,
        machine=result.machine,
        workload=result.workload,
        seed=result.seed,
        duration_s=result.duration_s,
        generator=result.generator,
        warnings=result.warnings,
        overall=summarize(result),
        adapters=summarize_by_model(result),
        timeline=timeline(result.records, result.duration_s, bucket_width_s(result.duration_s)),
        slo=judge(result, slo) if slo else None,
    )
