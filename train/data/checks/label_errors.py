"""Suspected label errors by confident learning (cleanlab): a classifier that never saw a row contradicts its answer."""

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np

from train.data.checks.balance import class_of, has_classes
from train.data.checks.embeddings import EmbeddedExamples
from train.data.examples import Example
from train.data.steps import Finding, finding

_NUM_FOLDS = 5
_SEED = 13
_MIN_PREDICTED, _MAX_GIVEN = 0.6, 0.15
"""Probabilities of the predicted and of the given class, so that only rows that are clear are listed."""


@dataclass(frozen=True)
class LabelErrors:
    """Suspected errors, the surest first, among `num_checked` of `num_rows` rows."""

    num_rows: int
    num_checked: int
    findings: tuple[Finding, ...]

    @property
    def share(self) -> float:
        return len(self.findings) / self.num_checked if self.num_checked else 0.0


def check_labels(embedded: EmbeddedExamples) -> LabelErrors | None:
    """Cross-validated logistic regression on embeddings; None if answers are not classes.

    Classes with fewer rows than folds are not checked, as a fold would have none of them.
    """
    if not has_classes(embedded.examples):
        return None
    counts = Counter(map(class_of, embedded.examples))
    checked = [index for index, e in enumerate(embedded.examples) if counts[class_of(e)] >= _NUM_FOLDS]
    examples = [embedded.examples[index] for index in checked]
    names = sorted({class_of(example) for example in examples})
    if len(names) < 2:
        return LabelErrors(embedded.num_rows, 0, ())
    labels = np.array([names.index(class_of(example)) for example in examples])
    probabilities = _probabilities(embedded.vectors[checked], labels)
    findings = tuple(
        _finding(examples[index], names[int(probabilities[index].argmax())], float(probabilities[index].max()))
        for index in _suspected(labels, probabilities)
    )
    return LabelErrors(embedded.num_rows, len(checked), findings)


def _probabilities(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities of each row by a model that was not trained on it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED)
    model = LogisticRegression(C=10.0, max_iter=200)
    found: np.ndarray = cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba")
    return found


def _suspected(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    with warnings.catch_warnings():  # cleanlab's advice on its optional packages
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues

        found = find_label_issues(
            labels, probabilities, filter_by="predicted_neq_given", return_indices_ranked_by="self_confidence", n_jobs=1
        )
    own = probabilities[np.arange(len(labels)), labels]
    is_sure = (probabilities.max(axis=1) >= _MIN_PREDICTED) & (own <= _MAX_GIVEN)
    return [int(index) for index in found if is_sure[index]]


def _finding(example: Example, likely: str, probability: float) -> Finding:
    reason = f"answer {class_of(example)!r}, but the question looks like {likely!r} ({probability:.0%})"
    return finding(example, reason)
