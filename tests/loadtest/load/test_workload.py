"""The plan of a run: prompts, lengths, traces, bounds."""

import json
from pathlib import Path
from typing import Any

import pytest

from config.errors import DatasetError
from config.loadtest import LoadtestConfig, TraceArrival
from loadtest.errors import TraceError
from loadtest.load.options import RunOptions
from loadtest.load.trace import read_trace
from loadtest.load.workload import PlannedRequest, plan
from loadtest.load_cli import read_config
from tests.datasets_on_disk import write_dataset

EXAMPLE = Path(__file__).parents[3] / "config" / "loadtest.yaml"


def planned(datasets: Path = Path("nowhere"), **fields: Any) -> list[PlannedRequest]:
    given = {"mix": {"models": ["a", "b"]}, "num_requests": 200, "arrival": {"kind": "constant", "rate": 100}} | fields
    return list(plan(LoadtestConfig.model_validate(given), datasets))


def texts(requests: list[PlannedRequest]) -> list[str]:
    return [request.prompt.messages[-1].content for request in requests]


def bodies(requests: list[PlannedRequest]) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in requests]


def test_the_example_file_is_a_load_test() -> None:
    config = read_config(EXAMPLE, RunOptions())
    assert len(list(plan(config, Path("nowhere")))) == pytest.approx(120, rel=0.3)


def test_the_same_configuration_gives_the_same_requests() -> None:
    assert planned(seed=5) == planned(seed=5)
    assert texts(planned(seed=5)) != texts(planned(seed=6))


def test_a_run_is_bounded_in_count_and_in_time() -> None:
    assert len(planned(num_requests=7)) == 7
    assert [request.intended_s for request in planned(duration_s=0.05)] == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_a_closed_loop_is_bounded_in_count_and_has_no_times() -> None:
    requests = planned(arrival={"kind": "closed", "concurrency": 4}, num_requests=9)
    assert [request.intended_s for request in requests] == [0.0] * 9


def test_the_body_streams_greedily_with_token_counts() -> None:
    body = bodies(planned(max_tokens={"kind": "fixed", "value": 5}))[0]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["max_tokens"], body["ignore_eos"]) == (0.0, 5, True)


def test_servers_that_know_only_openais_fields_get_only_those() -> None:
    body = bodies(planned(ignore_eos=False))[0]
    assert not {"ignore_eos", "return_token_ids"} & body.keys()


def test_a_chunk_for_every_token_is_asked_for_where_wanted() -> None:
    assert bodies(planned(return_token_ids=True))[0]["return_token_ids"] is True


def test_prompts_have_their_length_and_none_comes_twice() -> None:
    found = texts(planned(prompts={"kind": "synthetic", "num_words": {"kind": "fixed", "value": 20}}))
    assert {len(text.split()) for text in found} == {20}
    assert len(set(found)) == len(found)


def test_lengths_stay_in_their_range() -> None:
    requests = planned(
        prompts={"kind": "synthetic", "num_words": {"kind": "uniform", "low": 3, "high": 5}},
        max_tokens={"kind": "lognormal", "median": 10, "sigma": 1.0, "max": 40},
    )
    assert {len(text.split()) for text in texts(requests)} == {3, 4, 5}
    lengths = sorted(request.prompt.max_tokens for request in requests)
    assert (lengths[0] >= 1, lengths[-1]) == (True, 40)
    assert lengths[100] == pytest.approx(10, abs=2)


def test_requests_for_a_model_share_the_beginning_of_their_prompts() -> None:
    requests = planned(
        prompts={"kind": "synthetic", "num_words": {"kind": "fixed", "value": 10}, "shared_prefix_share": 0.4}
    )
    beginnings = {(request.model, *text.split()[:4]) for request, text in zip(requests, texts(requests), strict=True)}
    assert len(beginnings) == 2
    assert len({text.split()[4] for text in texts(requests)}) > 10


def test_each_adapter_is_asked_the_questions_of_its_own_data_set(tmp_path: Path) -> None:
    write_dataset(tmp_path / "medical", num_test=3)
    request = planned(tmp_path, mix={"models": ["medical@2"]}, prompts={"kind": "dataset"})[0]
    assert [message.role for message in request.prompt.messages] == ["system", "user"]
    assert request.prompt.messages[1].content.startswith("term ")
    body = json.loads(request.body)
    assert (body["max_tokens"], body["stop"], "ignore_eos" in body) == (24, ["}"], False)


def test_a_given_answer_length_goes_before_the_data_sets(tmp_path: Path) -> None:
    write_dataset(tmp_path / "medical", num_test=3)
    length = {"kind": "fixed", "value": 9}
    requests = planned(tmp_path, prompts={"kind": "dataset", "domain": "medical"}, max_tokens=length)
    assert bodies(requests)[0]["max_tokens"] == 9
    assert bodies(requests)[0]["ignore_eos"] is True


def test_the_base_is_asked_what_the_first_adapter_is_asked(tmp_path: Path) -> None:
    write_dataset(tmp_path / "medical", num_test=3)
    mix = {"models": ["medical"], "base": "smollm2", "base_share": 1.0}
    assert texts(planned(tmp_path, mix=mix, prompts={"kind": "dataset"}))[0].startswith("term ")


def test_a_data_set_that_is_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'legal'.*lorikeet data build"):
        planned(tmp_path, mix={"models": ["legal"]}, prompts={"kind": "dataset"})


def write_trace(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_trace_says_when_and_what_and_the_workload_the_rest(tmp_path: Path) -> None:
    lines = '{"time_s": 2.0}\n\n{"time_s": 1.0, "model": "z", "prompt": "Hello?", "max_tokens": 3}\n'
    path = write_trace(tmp_path, "t.jsonl", lines)
    first, second = planned(arrival={"kind": "trace", "path": str(path)})
    assert (first.intended_s, first.model, first.prompt.max_tokens) == (1.0, "z", 3)
    assert texts([first]) == ["Hello?"]
    assert (second.intended_s, second.prompt.max_tokens) == (2.0, 32)
    assert second.model in ("a", "b")


def test_a_csv_trace_may_leave_fields_empty_and_be_replayed_faster(tmp_path: Path) -> None:
    path = write_trace(tmp_path, "t.csv", "time_s,model,max_tokens\n0,a,\n10,,5\n20,a,\n")
    requests = planned(arrival={"kind": "trace", "path": str(path), "speed": 10}, duration_s=1.5)
    assert [request.intended_s for request in requests] == [0.0, 1.0]
    assert requests[1].prompt.max_tokens == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", r"'\.txt', wanted \.csv or \.jsonl"),
        ("t.csv", "time_s\n", "is empty; wanted one request per line"),
        ("t.jsonl", '{"time_s": 1}\n{"time": 2}\n', "line 2: `time_s`: Field required"),
        ("t.jsonl", "{1}\n", "line 1: not JSON"),
        ("t.csv", "time_s\n-3\n", "line 2: `time_s`.*greater than or equal to 0"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_trace(write_trace(tmp_path, name, text))


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"'t\.csv': No such file"):
        read_trace(tmp_path / "t.csv")


def test_a_traces_path_starts_at_the_configurations_folder(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text("mix: {models: [a]}\narrival: {kind: trace, path: t.csv}\n")
    arrival = read_config(path, RunOptions()).arrival
    assert isinstance(arrival, TraceArrival)
    assert arrival.path == tmp_path / "t.csv"
