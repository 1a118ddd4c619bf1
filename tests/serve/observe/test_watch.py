"""What is measured of a generation: its outputs come in, one record comes out."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.sampling_params import SamplingParams

from serve.engine.calls import EngineCall
from serve.engine.finite import NOT_FINITE
from serve.engine.observed import _Watch, with_logprobs
from serve.errors import NotFiniteError
from serve.records import Caller, GenerationRecord, RequestResult

CLIENT = Caller("client", "acme", "r-1")
STATS = SimpleNamespace(
    queued_ts=10.0,
    scheduled_ts=10.25,
    first_token_ts=10.75,
    last_token_ts=12.75,
    first_token_latency=0.8,
    num_generation_tokens=5,
)


def output(*texts: str, stats: Any = None, is_last: bool = False) -> Any:
    choices = [
        SimpleNamespace(
            index=index,
            text=text,
            token_ids=[7 + index],
            logprobs=None,
            finish_reason="stop" if is_last else None,
            stop_reason=None,
        )
        for index, text in enumerate(texts)
    ]
    return SimpleNamespace(outputs=choices, prompt="Hi", prompt_token_ids=[1, 2, 3], num_cached_tokens=2, metrics=stats)


def call_by(caller: Caller = CLIENT) -> EngineCall:
    return EngineCall(caller, RequestResult())


def watched(*outputs: Any, call: EngineCall | None = None) -> GenerationRecord:
    watch = _Watch("medical@3", call or call_by())
    for each in outputs:
        watch.see(each)
    return watch.record("ok")


def test_the_engines_marks_give_its_phases() -> None:
    record = watched(output("Neoplasms", stats=STATS, is_last=True))
    assert (record.queue_s, record.prefill_s, record.decode_s) == (0.25, 0.5, 2.0)
    assert (record.ttft_s, record.tpot_s) == (0.8, 0.5)
    assert (record.num_prompt_tokens, record.num_cached_tokens, record.finish_reasons) == (3, 2, ("stop",))


def test_the_wait_before_the_engine_belongs_to_the_first_token_and_to_the_whole() -> None:
    call = call_by(Caller("client", "acme", "r-1", started_s=time.perf_counter() - 3))
    record = watched(output("Neoplasms", stats=STATS, is_last=True), call=call)
    assert record.ttft_s == pytest.approx(3.8, abs=0.1)
    assert record.e2e_s == pytest.approx(3.0, abs=0.1)


def test_a_streamed_answer_has_a_gap_between_every_two_pieces() -> None:
    record = watched(output("Neo"), output("pla"), output("sms", stats=STATS, is_last=True))
    assert len(record.itl_s) == 2
    assert record.texts == ("Neoplasms",)


def test_a_whole_answer_has_no_gaps() -> None:
    assert watched(output("Neoplasms", stats=STATS, is_last=True)).itl_s == ()


def test_pieces_of_several_choices_have_no_gaps_of_their_own() -> None:
    assert watched(output("a", "b"), output("c", "d", is_last=True)).itl_s == ()


def test_a_generation_that_never_began_has_no_times_but_its_length() -> None:
    record = watched()
    assert (record.queue_s, record.prefill_s, record.decode_s, record.ttft_s, record.tpot_s) == (None,) * 5
    assert record.e2e_s >= 0


def test_the_request_learns_its_tokens_and_its_generation() -> None:
    call = call_by()
    record = watched(output("Neo"), output("plasms", is_last=True), call=call)
    assert (call.result.num_tokens, call.result.generation, record.tenant) == (5, record, "acme")


def test_the_record_has_the_prompt_and_the_tokens_of_the_first_choice() -> None:
    record = watched(output("Neo", "Ten"), output("plasms", "dons", is_last=True))
    assert (record.prompt_text, record.prompt_token_ids, record.token_ids) == ("Hi", (1, 2, 3), (7, 7))
    assert (record.texts, record.token_logprobs) == (("Neoplasms", "Tendons"), ())


@pytest.mark.parametrize("is_flat", [True, False])
def test_log_probabilities_of_the_sampled_tokens_are_collected_piece_by_piece(is_flat: bool) -> None:
    pieces = [output("Neo"), output("plasms", is_last=True)]
    for piece, logprob in zip(pieces, (-0.5, -0.25), strict=True):
        positions = [{7: Logprob(logprob), 9: Logprob(-3.0)}]
        flat = FlatLogprobs([0], [1], [7], [logprob], [1], [None])
        piece.outputs[0].logprobs = flat if is_flat else positions
    assert watched(*pieces).token_logprobs == (-0.5, -0.25)


def test_a_generation_has_its_requests_id_and_says_who_asked() -> None:
    assert watched(output("x")).request_id == "r-1"
    record = watched(output("x"), call=call_by(Caller("shadow")))
    assert (record.source, record.tenant, record.request_id) == ("shadow", None, None)


def test_log_probabilities_are_asked_for_on_a_copy() -> None:
    theirs = SamplingParams(max_tokens=4, stop=["}"])
    ours = with_logprobs(theirs)
    assert (ours.logprobs, ours.flat_logprobs, ours.stop) == (0, True, ["}"])
    assert (theirs.logprobs, theirs.flat_logprobs) == (None, False)


@pytest.mark.parametrize("asked", [{"logprobs": 0}, {"logprobs": 5}, {"logprob_token_ids": [4, 5]}])
def test_what_a_client_asks_for_stays_as_it_is(asked: dict[str, Any]) -> None:
    theirs = SamplingParams(**asked)
    assert with_logprobs(theirs) is theirs


def test_a_clients_prompt_log_probabilities_keep_their_shape() -> None:
    ours = with_logprobs(SamplingParams(prompt_logprobs=1))
    assert (ours.logprobs, ours.flat_logprobs) == (0, False)


def test_an_answer_that_was_ended_for_its_logits_is_not_finite() -> None:
    call = call_by()
    ended = output("Neo", is_last=True)
    ended.outputs[0].finish_reason, ended.outputs[0].stop_reason = "error", NOT_FINITE
    record = watched(output("Neo"), ended, call=call)
    assert not record.is_finite
    assert isinstance(call.failure, NotFiniteError)
    assert "'medical@3' computes values that are not finite" in str(call.failure)


def test_an_answer_that_ended_otherwise_is_finite() -> None:
    call = call_by()
    assert watched(output("Neo", is_last=True), call=call).is_finite
    assert call.failure is None
