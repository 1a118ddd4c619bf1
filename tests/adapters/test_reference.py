import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidReferenceError
from adapters.reference import NAME_PATTERN, Reference, Target, parse_reference

names = st.from_regex(NAME_PATTERN, fullmatch=True)


@given(names)
def test_a_bare_name_means_stable(name):
    assert parse_reference(name) == Reference(name, alias="stable")


@given(names, st.integers(1, 999_999_999))
def test_a_targets_text_parses_back_to_it(name, version):
    assert parse_reference(str(Target(name, version))) == Reference(name, version=version)


@given(names, st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True))
def test_an_alias_parses(name, alias):
    assert parse_reference(f"{name}@{alias}") == Reference(name, alias=alias)


@pytest.mark.parametrize(
    "text",
    ["", "@3", "a@", "a@0", "a@03", "a@1234567890", "a@B", "-a", "a" * 64, "a/b", "..", "a\n", "a@1@2"],
)
def test_other_text_is_refused(text):
    with pytest.raises(InvalidReferenceError, match="is not a model reference"):
        parse_reference(text)


def test_a_refusal_quotes_no_more_than_the_start_of_the_text():
    with pytest.raises(InvalidReferenceError) as refusal:
        parse_reference("x" * 100_000)
    assert len(str(refusal.value)) < 300
