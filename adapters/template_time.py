"""The time that a chat template is given, where it asks for one: `strftime_now`, at a moment that is chosen.

transformers lets a template write the date of today. Two renderings are the same tokens only at the same moment, so
whatever is compared later is rendered at a moment that is kept with it. `apply_chat_template(..., strftime_now=…)`
goes before the function that transformers itself offers, in that call alone.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time

APART = (datetime(1987, 6, 4, 5, 6, 7), datetime(2045, 12, 31, 23, 59, 58))
"""Two moments that share no field, and no first digit or letter of one: what differs between them is the time."""

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_COMPOSITES = {"c": "%a %b %e %H:%M:%S %Y", "x": "%m/%d/%y", "X": "%H:%M:%S", "r": "%I:%M:%S %p"}


def noon(day: date) -> datetime:
    """The moment that stands for a day."""
    return datetime.combine(day, time(12))


def strftime_at(moment: datetime) -> Callable[[str], str]:
    """What a template may call for the time: the same text in every locale and time zone.

    Args:
        moment: Without a time zone, as the local time that transformers gives.
    """

    def strftime_now(format: str) -> str:
        return moment.strftime(re.sub(r"%(.)", lambda found: _in_english(found[1], moment), format, flags=re.DOTALL))

    return strftime_now


def _in_english(directive: str, moment: datetime) -> str:
    """A directive that the C library would answer by its locale or time zone, answered here; others as they are."""
    if directive in _COMPOSITES:
        return re.sub(r"%(.)", lambda found: _in_english(found[1], moment), _COMPOSITES[directive])
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    names = {
        "A": day,
        "a": day[:3],
        "B": month,
        "b": month[:3],
        "h": month[:3],
        "p": "AM" if moment.hour < 12 else "PM",
    }
    seconds = {"s": str(int(moment.replace(tzinfo=UTC).timestamp()))}
    return (names | seconds).get(directive, f"%{directive}")
