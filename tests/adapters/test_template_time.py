"""The clock for chat templates: the same text wherever and in whatever language it is asked."""

import time
from datetime import datetime

import pytest

from adapters.template_time import APART, noon, strftime_at

MOMENT = datetime(2026, 11, 1, 9, 5, 7)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("%d %b %Y", "01 Nov 2026"),
        ("%A, %B %d, %I %p", "Sunday, November 01, 09 AM"),
        ("%-d.%m.%y %a %h", "1.11.26 Sun Nov"),
        ("%c|%x|%X|%r", "Sun Nov  1 09:05:07 2026|11/01/26|09:05:07|09:05:07 AM"),
        ("100%% %%B", "100% %B"),
        ("%s", "1793523907"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
def test_a_moment_is_one_text_in_every_zone(monkeypatch: pytest.MonkeyPatch, zone: str, format: str, text: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert strftime_at(MOMENT)(format) == text
    finally:
        monkeypatch.undo()
        time.tzset()


def test_names_are_english_whatever_the_locale_says() -> None:
    class German(datetime):
        """As the C library answers in a German locale."""

        def strftime(self, format: str) -> str:
            return format.replace("%B", "November!").replace("%A", "Sonntag").replace("%p", "")

    assert strftime_at(German(2026, 11, 1, 9))("%A %B %p") == "Sunday November AM"


@pytest.mark.parametrize("field", ["%Y", "%y", "%m", "%d", "%b", "%B", "%a", "%A", "%H", "%M", "%S", "%p", "%j", "%s"])
def test_the_two_moments_share_no_field(field: str) -> None:
    early, late = (strftime_at(moment)(field) for moment in APART)
    assert early[0] != late[0]


def test_a_day_is_its_noon() -> None:
    assert noon(MOMENT.date()) == datetime(2026, 11, 1, 12)
