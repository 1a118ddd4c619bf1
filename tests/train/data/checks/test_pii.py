from dataclasses import replace

import pytest

from config.dataset import FunctionCall, Message, ToolCall
from tests.train.data.checks.rows import example
from train.data.checks.pii import clean_pii, find_pii, redact
from train.data.checks.texts import texts_of


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Write to jo.smith+news@mail.example.com.", "Write to [EMAIL]."),
        ("müller@exämple.de schrieb", "[EMAIL] schrieb"),
        ("call 415-555-2671", "call [PHONE]"),
        ("(555) 123-4567 or +1-555-123-4568", "[PHONE] or [PHONE]"),
        ("+49 151 12345678 bitte", "[PHONE] bitte"),
        ("Tel.: 030 12345678", "Tel.: [PHONE]"),
        ("Mon téléphone: 06 12 34 56 78", "Mon téléphone: [PHONE]"),
        ("0044 20 7946 0958", "[PHONE]"),
        ("手机 13812345678", "手机 [PHONE]"),
        ("My card is 4111 1111 1111 1111.", "My card is [CARD]."),
        ("378282246310005", "[CARD]"),
        ("DE89 3704 0044 0532 0130 00 please", "[IBAN] please"),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("FR14 2004 1010 0505 0001 3M02 606 IS MINE", "[IBAN] IS MINE"),
        ("from 192.168.1.20:8080 and 203.0.113.7/24", "from [IP_ADDRESS]:8080 and [IP_ADDRESS]/24"),
        ("IP 1.2.3.4", "IP [IP_ADDRESS]"),
        ("2001:db8:85a3:0:0:8a2e:370:7334", "[IP_ADDRESS]"),
        ("sk-proj-abc123DEF456ghi789JKL012", "[SECRET]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "[SECRET]\nend"),
        ('api_key = "9f8a7b6c5d4e3f2a1b0c"', 'api_key = "[SECRET]"'),
        ("postgres://bob:s3cr3tPw@db.host/x", "postgres://bob:[SECRET]@db.host/x"),
    ],
)
def test_personal_data_gets_a_typed_placeholder(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "ICD E11.9 and J45.909, S72.001A",
        "CPT 99213 99214 99215",
        "version 1.20.3.14, v10.0.19.45, requests==2.31.0.10, Chrome/120.0.6099.109",
        '"version": "10.20.30.40"',
        "1.2.3.4 Scope of the section",
        "section 3.2.10.4",
        "127.0.0.1",
        "$1,234.56 or 12.345,67 €",
        "order 20261128-123456 of 2026-11-28 12:30:45",
        "ISBN 978-3-16-148410-0, EAN 4006381333931",
        "4111111111111112",
        "DE89 3704 0044 0532 0130 01",
        "1700000000000",
        "0.4111111111111111",
        "550e8400-e29b-41d4-a716-446655440000",
        "logo@2x.png, @types/node@20.1.2, x@self.weight",
        "git@github.com:a/b.git",
        "std::vector<int>::iterator at 12:30:45:10",
        "sk-your-api-key-here-please",
        "api_key: your_api_key_here_123",
        "password: required for login",
        "max_tokens: 128, token: abc",
        "api_key: aaaaaaaaaaaaaaaaaa11",
        "The mobility 12345678 of it, call on 20261128",
        "Call 12345678 units, +100 000 000 Euro",
        "lat 52.520008, lon 13.404954",
    ],
)
def test_codes_versions_and_prices_are_not_personal_data(text):
    assert find_pii(text) == []


def test_report_keeps_the_rows_and_masks_the_data():
    rows = [example("Mail jo@example.org", line=7), example("Hello")]
    result = clean_pii(rows, "report")
    assert list(result.examples) == rows
    (found,) = result.step.findings
    assert (str(found.origin), found.reason) == ("rows.jsonl line 7", "EMAIL jo…rg")
    assert "jo@example.org" not in found.text


def test_redact_changes_all_texts_of_a_row():
    call = ToolCall(function=FunctionCall(name="send", arguments={"to": ["jo@example.org"], "times": 2}))
    turns = (Message(role="assistant", tool_calls=(call,)), Message(role="assistant", content="Sent to jo@example.org"))
    row = replace(example("Mail jo@example.org"), completion=turns)
    result = clean_pii([row], "redact")
    assert result.step.num_changed == 1
    assert list(texts_of(result.examples[0])) == ["Mail [EMAIL]", "", "[EMAIL]", "Sent to [EMAIL]", ""]
    assert result.examples[0].completion[0].tool_calls[0].function.arguments["times"] == 2


def test_drop_leaves_the_other_rows():
    rows = [example("Hello", "Write to jo@example.org"), example("Hello")]
    result = clean_pii(rows, "drop")
    assert result.examples == (rows[1],)
    assert result.step.num_dropped == 1
