import pytest

from quality.grading.template import TemplateError, check_template, missing_fields, render

ITEM = {"reference_answer": "red", "points": {"max": 3}, "tags": ["a", "b"], "my field": "x"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{sample.output_text}}", '{"colour": "red"}'),
        ("It is {{ item.reference_answer }}.", "It is red."),
        ("{{ item.points.max }} of {{ item['my field'] }}", "3 of x"),
        ("{{ item.tags[1] }} in {{ item.tags }}", 'b in ["a", "b"]'),
        ("{{ sample.output_json.colour }}", "red"),
        ("no {single} braces", "no {single} braces"),
    ],
)
def test_placeholders_are_filled_in(text: str, filled: str) -> None:
    assert render(check_template(text), ITEM, '{"colour": "red"}') == filled


def test_what_a_text_names_is_not_filled_in_again() -> None:
    assert render("{{ item.a }}", {"a": "{{ item.b }}", "b": "secret"}, "") == "{{ item.b }}"


@pytest.mark.parametrize(
    "text", ["{{ item }}", "{{ answer }}", "{{ sample.choices }}", "{{ item.a + 1 }}", "{{ __import__('os') }}"]
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        check_template(text)


@pytest.mark.parametrize("output", ["not JSON", '{"size": 1}', "[1]", "[" * 100_000])
def test_an_answer_without_the_field_is_an_error(output: str) -> None:
    with pytest.raises(TemplateError):
        render("{{ sample.output_json.colour }}", {}, output)


def test_missing_fields_of_a_row_are_named() -> None:
    assert missing_fields("{{ item.reference_answer }} {{ item.other }} {{ sample.output_text }}", ITEM) == [
        "item.other"
    ]
