from pathlib import Path

import pytest

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import BaseRef, LoraSpec, LossCurves, ManifestDraft, TrainingRecord
from train.card import model_card, write_model_card
from train.gained_lost import gained_and_lost, overfitting_section, text_summary
from train.plots import write_plot


def score(value: float, half: float = 0.0, n: int = 24) -> Score:
    return Score(value=value, ci_low=value - half, ci_high=value + half, n=n)


def text(part: str, more: float, half: float = 0.01) -> FigureRecord:
    return FigureRecord(
        kind="forgetting",
        metric="nats per token",
        part=part,
        adapter=score(3.5 + more),
        base=score(3.5),
        difference=score(more, half),
        higher_is_better=False,
    )


def task(part: str, base: float, difference: Score, chance: float | None = None) -> FigureRecord:
    adapter = score(base + difference.value)
    return FigureRecord(
        kind="forgetting",
        metric="accuracy",
        part=part,
        adapter=adapter,
        base=score(base, 0.1),
        difference=difference,
        chance=chance,
    )


GAIN = FigureRecord(
    kind="metric", metric="exact_match", adapter=score(0.6), base=score(0.1), difference=score(0.5, 0.1)
)
FIGURES = (GAIN, text("news", 0.32), task("cloze", 0.8, score(-0.3, 0.1), 0.25))
LOSSES = LossCurves(train=((1, 2.0), (2, 1.0)), held_out=((1, 2.1), (2, 1.2)), kept_step=2)


def draft(figures: tuple[FigureRecord, ...], losses: LossCurves | None = None) -> ManifestDraft:
    training = TrainingRecord(arguments={}, metrics={}, duration_s=1.0, device="cpu", libraries={}, losses=losses)
    base = BaseRef(name="tiny", digest="0" * 64, quantization="none")
    return ManifestDraft(name="colours", base=base, lora=LoraSpec(), figures=figures, training=training)


@pytest.mark.parametrize(
    ("figure", "result"),
    [
        (GAIN, "gained"),
        (text("news", 0.32), "lost much: perplexity 1.38 times"),
        (text("news", 0.1), "lost noticeably: perplexity 1.11 times"),
        (text("news", 0.03), "lost little: perplexity 1.03 times"),
        (text("news", 0.005, 0.001), "lost hardly: perplexity 1.01 times"),
        (text("news", 0.32, 0.5), "no difference seen"),
        (text("news", -0.1), "gained"),
        (task("cloze", 0.8, score(-0.3, 0.1), 0.25), "lost"),
        (task("cloze", 0.3, score(-0.3, 0.1), 0.25), "the base guesses: nothing to lose"),
        (task("cloze", 0.3, score(0.3, 0.1), 0.25), "gained"),
    ],
)
def test_each_change_is_said_in_words(figure: FigureRecord, result: str) -> None:
    assert gained_and_lost([figure])[0].result == result


def test_gains_come_before_losses_and_slices_are_left_out() -> None:
    sliced = GAIN.model_copy(update={"part": "scope: in"})
    assert [c.name for c in gained_and_lost([*FIGURES, sliced])] == ["held-out: exact_match", "text: news", "cloze"]


def test_the_summary_is_of_texts_alone() -> None:
    assert text_summary([*FIGURES, text("code", 0.0)]).startswith("Perplexity of general texts: 1.17 times")
    assert text_summary([GAIN]) == ""


@pytest.mark.slow
def test_the_card_shows_what_was_gained_and_lost(tmp_path: Path) -> None:
    write_model_card(draft(FIGURES, LOSSES), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| held-out: exact_match | 10.0% (n=24) | 60.0% (n=24) | +50.0 points (+40.0 to +60.0) | gained |" in card
    assert "| text: news | 3.500 | 3.820 | +0.320 (+0.310 to +0.330) | lost much: perplexity 1.38 times |" in card
    assert "](evaluation.svg)" in card
    assert (tmp_path / "evaluation.svg").read_text().startswith("<svg")


def test_a_card_without_figures_has_no_such_section(tmp_path: Path) -> None:
    assert "Gained here" not in model_card(draft(()))
    assert not write_plot(draft(()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_same_figures_give_the_same_plot(tmp_path: Path) -> None:
    plots = []
    for _ in range(2):
        assert write_plot(draft(FIGURES, LOSSES), tmp_path)
        plots.append((tmp_path / "evaluation.svg").read_bytes())
    assert plots[0] == plots[1]


@pytest.mark.slow
def test_losses_below_zero_are_plotted(tmp_path: Path) -> None:
    negative = LossCurves(train=((1, -0.5), (2, 0.0)), held_out=((2, -0.1),))
    assert write_plot(draft((), negative), tmp_path)


def test_a_gap_is_shown_beside_the_bases() -> None:
    rows = FigureRecord(kind="overfitting", metric="exact_match", part="train rows", adapter=score(0.9, n=32))
    gap = FigureRecord(
        kind="overfitting",
        metric="exact_match",
        part="train rows gap",
        adapter=score(0.2, 0.1),
        base=score(0.0, 0.1),
        higher_is_better=False,
    )
    table = overfitting_section([rows, gap])[1]
    row = "| questions | 90.0% (n=32) | +20.0 points (+10.0 to +30.0) | +0.0 points (-10.0 to +10.0) |"
    assert row in table
    assert overfitting_section([rows]) == []
