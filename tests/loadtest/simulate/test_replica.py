"""One simulated server, by hand-computed times."""

from loadtest.simulate.fleet import simulate
from loadtest.simulate.replica import ServerModel, SimulatedRequest

MODEL = ServerModel(step_s=0.1, sequence_s=0.01, prompt_token_s=0.001, overhead_s=0.0, load_s=2.0)


def served(*requests: SimulatedRequest, **limits: int) -> list[SimulatedRequest]:
    model = ServerModel(**{**vars(MODEL), **limits})
    simulate(model, requests, 1, "random")
    return list(requests)


def base(at_s: float, prompt: int = 100, answer: int = 3) -> SimulatedRequest:
    return SimulatedRequest(at_s, None, prompt, answer)


def of(adapter: int, at_s: float, answer: int = 3) -> SimulatedRequest:
    return SimulatedRequest(at_s, adapter, 100, answer)


def rounded(*seconds: float) -> list[float]:
    return [round(value, 6) for value in seconds]


def test_one_request_takes_its_prompt_and_its_steps() -> None:
    (request,) = served(base(1.0))
    assert rounded(request.ttft_s, request.end_s) == [0.21, 1.43]  # 0.1 + 0.01 + 100 * 0.001, then 2 * 0.11


def test_a_newcomer_joins_at_the_next_step() -> None:
    first, second = served(base(0.0, answer=10), base(0.25, prompt=10, answer=2))
    # Steps of the first: 0.21, then 0.11 each. The second comes in the step that ends at 0.32, and joins the next one:
    # 0.1 + 2 * 0.01 + 10 * 0.001 = 0.13.
    assert rounded(second.first_token_s, second.end_s) == [0.45, 0.57]
    # Seven tokens are left after 0.57, of the first alone: its tenth is the seventh step after.
    assert rounded(first.end_s) == [round(0.57 + 6 * 0.11, 6)]


def test_a_full_batch_lets_others_wait() -> None:
    first, second = served(base(0.0), base(0.0), max_running=1)
    assert rounded(first.end_s, second.first_token_s) == [0.43, 0.64]


def test_a_cold_adapter_waits_for_its_load_and_a_warm_one_does_not() -> None:
    cold, warm = served(of(1, 0.0), of(1, 10.0))
    assert (cold.is_cold, warm.is_cold) == (True, False)
    assert rounded(cold.ttft_s, warm.ttft_s) == [2.21, 0.21]


def test_a_load_holds_nobody_else_up() -> None:
    _, other = served(of(1, 0.0), base(0.5))
    assert rounded(other.ttft_s) == [0.21]


def test_the_least_wanted_idle_adapter_makes_room() -> None:
    requests = served(of(1, 0.0), of(2, 10.0), of(1, 20.0), of(3, 30.0), of(1, 40.0), of(2, 50.0), max_adapters=2)
    assert [request.is_cold for request in requests] == [True, True, False, True, False, True]


def test_an_adapter_that_is_often_asked_for_stays() -> None:
    often = (of(1, 0.0), of(1, 10.0), of(2, 20.0), of(3, 30.0))
    requests = served(*often, of(1, 40.0), of(2, 50.0), max_adapters=2)
    assert [request.is_cold for request in requests[4:]] == [False, True]


def test_an_adapter_that_is_in_use_is_not_evicted() -> None:
    long, short = served(of(1, 0.0, answer=100), of(2, 1.0), max_adapters=1)
    assert short.first_token_s > long.end_s


def test_a_batch_holds_no_more_adapters_than_slots() -> None:
    first, second = served(of(1, 0.0), of(2, 0.0), max_loras=1)
    assert second.first_token_s > first.end_s


def test_the_newest_of_too_many_is_refused() -> None:
    requests = served(*(base(0.0) for _ in range(5)), max_running=1, max_waiting=2)
    assert [request.is_refused for request in requests] == [False, False, False, True, True]


def test_every_request_is_answered_in_full() -> None:
    requests = served(*(of(number % 7, 0.05 * number, answer=1 + number % 5) for number in range(200)), max_adapters=3)
    assert all(request.num_left <= 0 < request.first_token_s <= request.end_s for request in requests)
