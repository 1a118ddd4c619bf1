from sklearn.metrics import f1_score

from quality.metrics.classes import OTHER, Accuracy, Confusion, MacroF1
from quality.metrics.item import Item

EXPECTED = ["cat", "cat", "cat", "dog", "dog", "bird"]
ANSWERED = ["Cat.", "dog", " cat", "dog", "a fish", "cat"]


def items() -> list[Item]:
    pairs = zip(EXPECTED, ANSWERED, strict=True)
    return [Item(id=str(n), question="?", expected=wanted, answer=found) for n, (wanted, found) in enumerate(pairs)]


def test_macro_f1_is_scikit_learns() -> None:
    known = ["cat", "dog", "cat", "dog", "other", "cat"]
    own = MacroF1().value(items(), [])
    assert own == f1_score(EXPECTED, known, average="macro", labels=["bird", "cat", "dog"], zero_division=0)


def test_an_answer_that_is_no_class_is_told() -> None:
    confusion = Confusion.of(items())
    assert confusion.labels == ("bird", "cat", "dog")
    assert confusion.counts["dog", OTHER] == 1
    assert confusion.counts["cat", "cat"] == 2


def test_accuracy_ignores_case_and_full_stop() -> None:
    assert Accuracy().scores(items()) == [1, 0, 1, 1, 0, 0]
