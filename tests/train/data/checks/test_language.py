from tests.train.data.checks.rows import examples
from train.data.checks.language import check_languages

ENGLISH = ("Where is my order? I have been waiting for it for a week.", "It arrives tomorrow, we are sorry.")
GERMAN = ("Wo ist meine Bestellung? Ich warte schon seit einer Woche.", "Sie kommt morgen, entschuldigen Sie bitte.")


def test_a_row_in_another_language_is_found():
    found = check_languages(examples(ENGLISH, ENGLISH, GERMAN), "question")
    assert found.counts == {"en": 2, "de": 1}
    assert [str(each.origin) for each in found.findings] == ["rows.jsonl line 3"]


def test_questions_and_answers_are_told_apart():
    rows = examples(ENGLISH, ENGLISH, (ENGLISH[0], GERMAN[1]))
    assert check_languages(rows, "question").findings == ()
    assert [each.text for each in check_languages(rows, "answer").findings] == [GERMAN[1]]


def test_short_texts_are_not_told():
    found = check_languages(examples(ENGLISH, ("ok", "red"), ("7", "42")), "question")
    assert found.counts == {"en": 1}
    assert found.num_unknown == 2
    assert found.findings == ()
