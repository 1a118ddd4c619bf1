"""The model card: tables of what was measured, and the outcome of the gates."""

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord, GateOutcome
from adapters.store.manifest import LoraSpec, ManifestDraft
from tests.figure_records import figure
from tests.peft_folders import BASE, EVALUATION
from train.card import model_card

ODD = figure("exact_match", 0.1, 0.8, part="class: a|b <i>").model_copy(update={"num_left_out": 3})


def card(*figures: FigureRecord, gates: tuple[GateOutcome, ...] = ()) -> str:
    draft = ManifestDraft(
        name="medical", base=BASE, lora=LoraSpec(), evaluation=EVALUATION, figures=figures, gates=gates
    )
    return model_card(draft)


def test_metrics_stand_with_base_difference_and_interval() -> None:
    text = card(figure("macro_f1", 0.1, 0.8), ODD)
    assert (
        "| macro\\_f1 | 0.100 (0.060 to 0.140) | 0.800 (0.760 to 0.840) | +0.700 (+0.660 to +0.740) \\* | 240 |" in text
    )
    assert "| exact\\_match\\[class: a\\|b \\<i\\>\\] | " in text
    assert "| 240 (3 left out) |" in text
    assert "### Robustness" not in text


def test_perturbations_have_a_table_of_their_own() -> None:
    text = card(figure("macro_f1", 0.1, 0.8), figure("macro_f1", 0.2, 0.2, kind="robustness", part="typos"))
    _, _, robustness = text.partition("### Robustness")
    assert "| robustness\\[typos\\], macro\\_f1 | 0.200" in robustness
    assert "+0.000 (-0.040 to +0.040) |" in robustness


def test_a_figure_without_a_score_is_no_number() -> None:
    empty = FigureRecord(kind="metric", metric="numeric", adapter=Score(value=0, ci_low=0, ci_high=1, n=0))
    assert "| numeric | - | - | - | 0 |" in card(empty)


def test_the_card_says_which_gates_failed() -> None:
    gates = (GateOutcome(is_met=True, finding="valid format 1.000"), GateOutcome(is_met=False, finding="gain +0.000"))
    text = card(gates=gates)
    assert (
        "This version failed its gates when it was published.\n\n- met: valid format 1.000\n- **not met**: gain" in text
    )
    assert "This version passed its gates" in card(gates=gates[:1])
    assert "## Gates" not in card()
