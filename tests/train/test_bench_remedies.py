import pytest

from adapters.scores import Score
from adapters.store.evaluation_records import FigureKind, FigureRecord
from adapters.store.manifest import BaseRef, LoraSpec, ManifestDraft
from train.bench_remedies import REMEDIES, domain_of, line_of


def figure(kind: FigureKind, metric: str, part: str, base: float, adapter: float) -> FigureRecord:
    def score(value: float) -> Score:
        return Score(value=value, ci_low=value, ci_high=value, n=24)

    return FigureRecord(
        kind=kind,
        metric=metric,
        part=part,
        adapter=score(adapter),
        base=score(base),
        difference=score(adapter - base),
        higher_is_better=metric != "nats per token",
    )


@pytest.mark.parametrize("name", REMEDIES)
def test_each_remedy_is_a_valid_domain(name: str) -> None:
    domain = domain_of(REMEDIES[name])
    assert (domain.name, domain.recipe.max_steps) == ("legal", 60)


def test_a_line_has_the_mean_of_all_texts() -> None:
    figures = (
        figure("metric", "exact_match", "", 0.0, 0.5),
        figure("forgetting", "nats per token", "news", 3.0, 3.4),
        figure("forgetting", "nats per token", "code", 3.0, 3.2),
        *(figure("forgetting", "accuracy", task, 0.5, 0.25) for task in ("cloze", "arithmetic", "instructions")),
    )
    base = BaseRef(name="tiny", digest="0" * 64, quantization="none")
    line = line_of("none", ManifestDraft(name="legal", base=base, lora=LoraSpec(), figures=figures), 12.3)
    assert (line["exact match"], line["texts: nats"], line["perplexity"]) == ("50.0%", "+0.300", "1.35 times")
    assert (line["cloze"], line["seconds"]) == ("50% to 25%", "12")
