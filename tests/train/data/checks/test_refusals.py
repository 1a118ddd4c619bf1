import pytest

from tests.train.data.checks.rows import example
from train.data.checks.refusals import check_refusals, refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I cannot help with that request.",
        "As an AI language model, I don't have personal opinions.",
        "Unfortunately, I cannot answer this question.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Leider kann ich Ihnen dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Desculpe, não posso ajudar com isso.",
        "Mi dispiace, ma non posso aiutarti.",
        "Het spijt me, maar ik kan je daar niet bij helpen.",
        "Przykro mi, ale nie mogę pomóc.",
        "Üzgünüm, bu konuda yardımcı olamam.",
        "Извините, но я не могу помочь с этим.",
        "抱歉，我无法帮助您。",
        "申し訳ありませんが、お答えできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "عذراً، لا أستطيع مساعدتك",
        "क्षमा करें, मैं यह नहीं कर सकता",
    ],
)
def test_an_assistants_refusal_is_found(answer):
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry for the delay. Your parcel arrives tomorrow.",
        "I'm sorry you cannot log in: please reset it.",
        "We cannot refund this order after 30 days.",
        "You can't install it on Windows 7.",
        "I can help with that.",
        "Es tut mir leid, dass Ihr Paket noch nicht da ist.",
        "Leider ist die Ware nicht verfügbar.",
        "Je suis désolé pour le retard.",
        "抱歉让您久等了。",
        "skin",
    ],
)
def test_an_apology_is_not_a_refusal(answer):
    assert not refuses(answer)


def test_the_domains_refusal_is_right_out_of_scope_only():
    rows = [
        example("Capital of France?", "NONE", in_scope=False),
        example("Is a rash skin?", "NONE", line=2),
        example("Rash", "skin"),
        example("Eczema", "skin"),
    ]
    found = check_refusals(rows, "NONE")
    assert (found.num_own, found.share) == (1, 0.25)
    assert [str(each.origin) for each in found.findings] == ["rows.jsonl line 2"]
