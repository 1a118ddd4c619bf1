"""A fixed time for chat templates that read the clock through `strftime_now`.

transformers lets a template write today's date. Two renderings give the same tokens only at the same time, so
everything that is compared later is rendered at a recorded time. `apply_chat_template(..., strftime_now=…)`
overrides transformers' own function in that call only.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time

APART = (datetime(1987, 6, 4, 5, 6, 7), datetime(2045, 12, 31, 23, 59, 58))
"""Two times that differ in every field, and in its first character, to detect a template that uses the time."""

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_COMPOSITES = {"c": "%a %b %e %H:%M:%S %Y", "x": "%m/%d/%y", "X": "%H:%M:%S", "r": "%I:%M:%S %p"}


def noon(day: date) -> datetime:
    """The fixed time of a date."""
    return datetime.combine(day, time(12))


def strftime_at(moment: datetime) -> Callable[[str], str]:
    """A `strftime_now` for templates that gives the same text in every locale and time zone.

    Args:
        moment: A naive datetime, as transformers passes local time.
    """

    def strftime_now(format: str) -> str:
        return moment.strftime(re.sub(r"%(.)", lambda found: _in_english(found[1], moment), format, flags=re.DOTALL))

    return strftime_now


def _in_english(directive: str, moment: datetime) -> str:
    """Expand directives that depend on locale or time zone; leave the others to strftime."""
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
