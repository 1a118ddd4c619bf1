"""Our load generator beside `vllm bench serve`: the same workload, the same figures, and when they agree."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.home import Home
from config.loadtest import ConstantArrival, LoadtestConfig
from loadtest.bench import agreement
from loadtest.bench.agreement import Figures, _agreement, _arguments, _config, _prompts, _round, _server, measured_by_us
from loadtest.bench.options import BenchOptions
from loadtest.bench.synthetic import Delays, SyntheticServer, synthetic_server
from loadtest.errors import TargetError

OPEN, CLOSED = (_config("http://host/v1", "tiny", arrival) for arrival in agreement.WORKLOADS.values())
NAMES = ["requests/s", *(f"{name} p{q}" for name in ("TTFT", "ITL", "TPOT") for q in (50, 99))]


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.01, itl_s=0.002)) as running:
        yield running


def given(config: LoadtestConfig) -> dict[str, str]:
    """Options with their values, as vLLM's benchmark gets them."""
    words = _arguments(config, Path("base"), Path("prompts.jsonl"), Path("out/report.json"))
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_both_send_at_the_same_times() -> None:
    assert {"--request-rate": "2.0", "--burstiness": "inf"}.items() <= given(OPEN).items()
    assert {"--request-rate": "inf", "--max-concurrency": "4"}.items() <= given(CLOSED).items()
    assert "--max-concurrency" not in given(OPEN)


def test_both_send_the_same_prompts_for_as_many_tokens() -> None:
    prompts = list(_prompts(OPEN))
    assert prompts == list(_prompts(OPEN))
    assert len(prompts) == int(given(OPEN)["--num-prompts"]) == agreement.NUM_REQUESTS
    assert {prompt["output_tokens"] for prompt in prompts} == {agreement.NUM_TOKENS}
    assert {len(str(prompt["prompt"]).split()) for prompt in prompts} == {agreement.NUM_WORDS}
    assert {"--ignore-eos", "--disable-shuffle", "--skip-chat-template"} <= given(OPEN).keys()


def test_both_ask_the_same_address() -> None:
    assert (given(OPEN)["--base-url"], given(OPEN)["--endpoint"]) == ("http://host", "/v1/chat/completions")


def test_our_figures_have_the_names_of_vllms(server: SyntheticServer) -> None:
    config = _config(f"{server.url}/v1", "tiny", ConstantArrival(kind="constant", rate=50.0))
    figures = measured_by_us(config.model_copy(update={"num_requests": 10}))
    assert list(figures) == NAMES
    assert all(figures[f"{name} p50"] <= figures[f"{name} p99"] for name in ("TTFT", "ITL", "TPOT"))
    assert figures["TTFT p50"] > 10  # milliseconds


@pytest.mark.parametrize(("ours", "is_pass"), [(104.0, True), (96.0, True), (106.0, False), (94.0, False)])
def test_figures_agree_within_five_percent_at_the_median(ours: float, is_pass: bool) -> None:
    rounds: list[tuple[Figures, Figures]] = [({"TTFT p50": each}, {"TTFT p50": 100.0}) for each in (ours, ours, 300.0)]
    (result,) = _agreement("open loop", rounds)
    assert (result.value, result.baseline, result.unit, result.is_pass) == (ours, 100.0, "ms", is_pass)
    assert result.ratio == pytest.approx(ours / 100)


def test_who_goes_first_changes_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def by(name: str, value: float) -> object:
        def measured(*_: object) -> Figures:
            asked.append(name)
            return {"TTFT p50": value}

        return measured

    monkeypatch.setattr(agreement, "measured_by_us", by("ours", 1.0))
    monkeypatch.setattr(agreement, "measured_by_vllm", by("vllm", 2.0))
    options = BenchOptions(Home(Path("var")), pause_s=0.0)
    rounds = [_round(OPEN, Path(), Path(), number, options) for number in range(2)]
    assert asked == ["vllm", "ours", "ours", "vllm"]
    assert rounds == [({"TTFT p50": 1.0}, {"TTFT p50": 2.0})] * 2


def test_a_given_url_needs_a_model() -> None:
    with pytest.raises(TargetError, match="--model"), _server(BenchOptions(Home(Path("var")), url="http://host/v1")):
        pass
    with _server(BenchOptions(Home(Path("var")), url="http://host/v1", models=("tiny",))) as target:
        assert target == ("http://host/v1", "tiny")
