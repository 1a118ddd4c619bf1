"""Where a stop string ends an answer, whatever a tokenizer makes of it."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny_llama import tiny_tokenizer
from train.evaluate.stops import ends_answer

MakeTokenizer = Callable[[], PreTrainedTokenizerBase]

TEXT = 'The answer is the chapter: {"chapter": "skin"} and no more of it 🙂 end.\n\nSo the next: {"chapter": "é…"}'


def byte_fallback() -> PreTrainedTokenizerBase:
    """As Llama 2 and Mistral have it: spaces are in the tokens, and what is unknown is bytes."""
    letters = sorted({*TEXT.replace(" ", "▁")} - {*"🙂é…"})
    tokens = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "▁th", "▁the"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def word_pieces() -> PreTrainedTokenizerBase:
    """As BERT has it: a decoder that puts spaces between words and takes some away again."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="[UNK]")


@pytest.mark.parametrize(
    "stop", [("}",), ("\n\n",), ("é…",), (" the",), (" and",), ("🙂 end", "nowhere"), ("chapter", "next")]
)
@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, byte_fallback, word_pieces])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(
    make_tokenizer: MakeTokenizer, stop: tuple[str, ...]
) -> None:
    tokenizer = make_tokenizer()
    token_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    is_finished = ends_answer(tokenizer, stop)
    beginnings = [token_ids[:length] for length in range(1, len(token_ids) + 1)]
    ended = next((ids for ids in beginnings if is_finished(ids)), None)
    assert ended == next((ids for ids in beginnings if any(s in tokenizer.decode(ids) for s in stop)), None)


@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, byte_fallback, word_pieces])
def test_an_answer_ends_with_the_end_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert ends_answer(tokenizer, ())([5, tokenizer.eos_token_id])
    assert not ends_answer(tokenizer, ("}",))([tokenizer.eos_token_id, 5])
