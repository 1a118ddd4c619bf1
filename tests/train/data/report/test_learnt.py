from config.dataset import conversation
from config.domain import ChatConfig
from tests.tiny_llama import RENDERED_AT, tiny_tokenizer
from train.data.encode import Encoded, encode
from train.data.report.learnt import histogram, learnt_rows, token_figures

CHAT = ChatConfig(system="Colour?")


def encoded(text: str, answer: str) -> Encoded:
    return encode(tiny_tokenizer(), conversation(CHAT, text, answer), RENDERED_AT)


def test_the_spans_are_those_of_the_trainers_labels():
    tokenizer = tiny_tokenizer()
    short, long = encoded("a rose", "red"), encoded("a very long stem", "green")
    first, second = learnt_rows(tokenizer, [short, long], ["a line 1", "a line 2"])
    assert [span.text for span in first.spans if span.is_learnt] == ["red<|im_end|>"]
    assert [span.text for span in second.spans if span.is_learnt] == ["green<|im_end|>"]
    assert first.spans[0].text.endswith("a rose<|im_end|>\n<|im_start|>assistant\n")
    assert (first.num_context_tokens, first.num_learnt_tokens) == (len(short.prompt_ids), len(short.answer_ids))
    assert "".join(span.text for span in first.spans).count("<|im_end|>") == 3  # no padding


def test_every_learnt_turn_is_a_span_of_its_own():
    class TwoTurns(Encoded):
        @property
        def labels(self) -> list[int]:
            return [-100, 5, 6, -100, 8]

    tokenizer = tiny_tokenizer()
    (row,) = learnt_rows(tokenizer, [TwoTurns((4, 5, 6, 7), (8,))], ["x"])
    assert [span.is_learnt for span in row.spans] == [False, True, False, True]
    assert row.num_learnt_tokens == 3


def test_lengths_count_what_is_learnt_by_the_labels():
    rows = [encoded("a rose", "red"), encoded("a very long stem", "green")]
    figures = token_figures(rows, "tiny", 128)
    assert (figures.rows.largest, figures.learnt.largest) == (len(rows[1]), len("green") + 1)
    assert sum(figures.histogram.counts) == 2


def test_a_histogram_covers_the_longest_row_and_the_limit():
    found = histogram([1, 2, 500], at_least=100)
    assert found.edges[-1] > 500
    assert sum(found.counts) == 3
    assert histogram([1], at_least=100).edges[-1] > 100


def test_nothing_is_learnt_of_no_rows():
    assert learnt_rows(tiny_tokenizer(), [], []) == []
