"""Whether a new version becomes `stable`: its gates, what is known of them before training, and `--force`."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.reference import DEFAULT_ALIAS
from adapters.store.evaluation_records import FigureKind, GateOutcome
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.dataset import DatasetRow
from config.domain import DomainConfig
from config.items import items_of
from config.rows import AnyRow
from quality.metrics.item import Metric
from train.errors import RecipeError
from train.evaluate.robustness import UNPERTURBED
from train.gates import GateEvidence, gate_reason, judge_gates
from train.objectives.objective import Objective

_KNOWN_AFTERWARDS = set(get_args(FigureKind)) - {"metric", "robustness"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Promotion:
    """Whether an alias moves to a version, why, and what each gate found."""

    is_promoted: bool
    reason: str
    gates: tuple[GateOutcome, ...]
    alias: str = DEFAULT_ALIAS


def decide_promotion(
    config: DomainConfig, objective: Objective, measured: GateEvidence, store: AdapterStore, *, force: bool
) -> Promotion:
    """Judge the gates beside the current stable version.

    Args:
        force: Promote whatever they say.
    """
    gates = judge_gates(measured, config.gates, _stable(store, config.name))
    reason = gate_reason(gates)
    if not objective.gives_answers:
        return Promotion(False, f"{reason}; not promoted: a reward model is not served", gates)
    is_passed = all(gate.is_met for gate in gates)
    if force and not is_passed:
        return Promotion(True, f"forced: {reason}", gates)
    return Promotion(is_passed, reason, gates)


def for_alias(promotion: Promotion, alias: str | None) -> Promotion:
    """The same for another alias than `stable`; None: no alias moves, whatever the gates say."""
    if alias is None:
        reason = f"no alias was to move; {promotion.reason}"
        return replace(promotion, is_promoted=False, reason=reason)
    return replace(promotion, alias=alias)


def check_gate_keys(config: DomainConfig, metrics: Sequence[Metric], rows: Sequence[AnyRow]) -> None:
    """Refuse gates of metrics, slices and perturbations that this domain does not measure, before it is trained.

    Forgetting and overfitting, and the scores of an objective of its own, are known afterwards.

    Args:
        rows: The test split.

    Raises:
        RecipeError: A key of `gates.figures` names none of them.
    """
    if config.objective.name != "sft":
        return
    questions = [row for row in rows if isinstance(row, DatasetRow)]
    items = items_of(questions, [""] * len(questions))
    slices = {f"{name}: {value}" for item in items for name, value in item.slices.items()}
    names = [metric.name for metric in metrics]
    known = [key for name in names for key in (name, *sorted(f"{name}[{part}]" for part in slices))]
    if (robustness := config.evaluation.robustness) is not None:
        known += [f"robustness[{part}]" for part in (UNPERTURBED, *robustness.perturbations)]
    unknown = [
        key for key in config.gates.figures if key not in known and key.partition("[")[0] not in _KNOWN_AFTERWARDS
    ]
    if unknown:
        raise RecipeError(
            f"`gates.figures` names {', '.join(map(repr, unknown))}, which this domain does not measure. "
            f"It measures {_listed(known)}. Add it to `evaluation.metrics` or `evaluation.robustness`, "
            "or correct the key."
        )


def _listed(keys: Iterable[str], most: int = 30) -> str:
    names = list(keys)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "no metric") + more


def _stable(store: AdapterStore, name: str) -> Manifest | None:
    try:
        return store.manifest(store.resolve(name))
    except AdapterNotFoundError:
        return None
    except AdapterError as error:  # the new version is not lost for a broken old one
        logger.warning("The gates judge without the stable version: %s", error)
        return None
