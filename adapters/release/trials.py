"""A canary's trial against stable, as pure functions of an adapter's history: start and end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from adapters.errors import TrialOverError
from adapters.reference import DEFAULT_ALIAS
from adapters.release.aliases import current_aliases
from adapters.release.traffic import CANARY_ALIAS
from adapters.store.history import Event, VerdictAction

Conclusion = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Trial:
    """Two versions under comparison. A move of either alias starts another trial."""

    stable: int
    canary: int
    began_at: str
    """UTC, ISO 8601: the last move of either."""

    @property
    def began_s(self) -> float:
        """Seconds since the epoch."""
        return datetime.fromisoformat(self.began_at).timestamp()


def current_trial(history: Iterable[Event]) -> Trial | None:
    """The current trial; None without a canary, or if it is stable's own version."""
    aliases: dict[str, int] = {}
    began_at = ""
    for event in history:
        if event.alias in (DEFAULT_ALIAS, CANARY_ALIAS) and event.version is not None:
            aliases[event.alias] = event.version
            began_at = event.at
    stable, canary = aliases.get(DEFAULT_ALIAS), aliases.get(CANARY_ALIAS)
    if stable is None or canary is None or stable == canary:
        return None
    return Trial(stable, canary, began_at)


def reported_verdicts(history: Sequence[Event], trial: Trial) -> frozenset[VerdictAction]:
    """Verdicts on the canary since its trial began."""
    told: set[VerdictAction] = set()
    for event in history:
        if event.alias in (DEFAULT_ALIAS, CANARY_ALIAS):
            told.clear()
        elif event.kind == "judged" and event.version == trial.canary and event.action is not None:
            told.add(event.action)
    return frozenset(told)


def check_running(name: str, history: Sequence[Event], trial: Trial) -> None:
    """Raise unless the trial is the current one.

    Raises:
        TrialOverError: Stable or canary has moved.
    """
    if current_trial(history) != trial:
        aliases = current_aliases(history)
        raise TrialOverError(
            f"The verdict on '{name}@{trial.canary}' beside '{name}@{trial.stable}' comes too late: "
            f"the aliases are now {aliases!r}. No alias was moved."
        )


def plan_conclusion(trial: Trial, action: Conclusion, *, at: str, reason: str, figures: dict[str, float]) -> Event:
    """The single event that ends a trial: both aliases point to one version, which also ends the traffic split."""
    is_promotion = action == "promote"
    kept, dropped = (trial.canary, trial.stable) if is_promotion else (trial.stable, trial.canary)
    return Event(
        kind="promoted" if is_promotion else "rolled_back",
        at=at,
        alias=DEFAULT_ALIAS if is_promotion else CANARY_ALIAS,
        version=kept,
        previous=dropped,
        reason=reason,
        figures=figures,
    )
