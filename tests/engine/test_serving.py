"""The real thing, end to end: data, training, publishing, serving by vLLM, answers, metrics, rollback."""

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from adapters.fingerprint import GoldenPrompt
from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from adapters.reference import Target
from adapters.store.manifest import BaseRef, Manifest, ManifestDraft
from tests.live_server import ANSWERS, BASE, BASE_NAME, LiveServer, lorikeet

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Mean |served - trained| log-probability per token. Logits are bf16 on both sides, and a bf16 number near 16 has a
# step of 0.125: where the base finds an answer unlikely, two tenths of a nat are rounding. An adapter is sure of its
# answer, and off by less than a thousandth.
ADAPTER_TOLERANCE_NATS = 0.05
BASE_TOLERANCE_NATS = 0.4


@pytest.fixture(scope="module")
def sdk(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def question(domain: str, number: int = 7) -> list[Any]:
    system = {"role": "system", "content": f"Answer about {domain} in JSON."}
    return [system, {"role": "user", "content": f"What is number {number} of the {domain}?"}]


def stopped(**more: Any) -> dict[str, Any]:
    """Greedy, ended by the closing brace, which stays."""
    extra = {"include_stop_str_in_output": True}
    return {"temperature": 0.0, "max_tokens": 16, "stop": ["}"], "extra_body": extra} | more


def test_each_adapter_answers_what_it_was_trained_on(sdk: OpenAI) -> None:
    answers = {
        domain: sdk.chat.completions.create(model=domain, messages=question(domain), **stopped()) for domain in ANSWERS
    }
    assert {domain: answer.choices[0].message.content for domain, answer in answers.items()} == ANSWERS
    assert {answer.model for answer in answers.values()} == {"colours@1", "shapes@1"}


@pytest.mark.anyio
async def test_a_mixed_batch_gives_each_request_its_own_adapter_and_the_base_its_own(live: LiveServer) -> None:
    """Teacher-forced log-probabilities of all golden prompts, all at once, against transformers + peft."""
    jobs = [
        (model, prompt, prompt.base_logprobs if model == BASE_NAME else prompt.adapter_logprobs)
        for domain in ANSWERS
        for prompt in live.fingerprint(domain).prompts
        for model in (BASE_NAME, domain)
    ]
    async with httpx.AsyncClient(base_url=live.url, timeout=300) as client:
        served = await asyncio.gather(*(forced_logprobs(client, model, prompt) for model, prompt, _ in jobs))
    errors = {True: 0.0, False: 0.0}
    for (model, _, want), got in zip(jobs, served, strict=True):
        errors[model == BASE_NAME] = max(errors[model == BASE_NAME], mean_gap(want, got))
    assert errors[False] < ADAPTER_TOLERANCE_NATS
    assert errors[True] < BASE_TOLERANCE_NATS
    # The adapters do change the answers, so that a wrong one would have been seen.
    changes = [mean_gap(prompt.base_logprobs, prompt.adapter_logprobs) for _, prompt, _ in jobs]
    assert min(changes) > 3 * BASE_TOLERANCE_NATS


async def forced_logprobs(client: httpx.AsyncClient, model: str, prompt: GoldenPrompt) -> list[float]:
    token_ids = [*prompt.prompt_token_ids, *prompt.answer_token_ids]
    body = {"model": model, "prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    positions = response.json()["choices"][0]["prompt_logprobs"][-len(prompt.answer_token_ids) :]
    return [position[str(token)]["logprob"] for token, position in zip(prompt.answer_token_ids, positions, strict=True)]


def mean_gap(want: Sequence[float], got: Sequence[float]) -> float:
    return sum(abs(w - g) for w, g in zip(want, got, strict=True)) / len(want)


@pytest.mark.anyio
async def test_the_sdk_streams_several_adapters_at_once(live: LiveServer) -> None:
    async def streamed(client: AsyncOpenAI, domain: str, number: int) -> tuple[str, str, int]:
        text, tokens, served_by = "", 0, ""
        async for chunk in await client.chat.completions.create(
            model=domain,
            messages=question(domain, number),
            stream=True,
            stream_options={"include_usage": True},
            **stopped(),
        ):
            served_by = chunk.model
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return text, served_by, tokens

    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        results = await asyncio.gather(*(streamed(client, d, n) for d in ANSWERS for n in range(5)))
    assert [(text, served_by) for text, served_by, _ in results] == [
        (ANSWERS[domain], f"{domain}@1") for domain in ANSWERS for _ in range(5)
    ]
    assert all(tokens > 3 for _, _, tokens in results)


def test_the_chat_endpoint_renders_the_prompt_that_training_used(live: LiveServer, sdk: OpenAI) -> None:
    prompt = live.fingerprint("colours").prompts[0]
    messages: Any = list(prompt.messages)
    completion = sdk.chat.completions.create(model="colours", messages=messages, max_tokens=1)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(prompt.prompt_token_ids)


def test_openai_features_come_from_vllm(sdk: OpenAI) -> None:
    schema = {
        "type": "object", "required": ["animal"], "additionalProperties": False,
        "properties": {"animal": {"enum": ["cat", "dog"]}},
    }  # fmt: skip
    # Greedily, and with a pattern to follow: what a schema allows between its words is any white space, without end.
    messages: Any = [{"role": "user", "content": 'Name an animal, as JSON: {"animal": "cat"} or {"animal": "dog"}.'}]
    structured = sdk.chat.completions.create(
        model=BASE_NAME,
        messages=messages,
        temperature=0.0,
        max_tokens=24,
        response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}},
    )
    assert json.loads(structured.choices[0].message.content or "")["animal"] in {"cat", "dog"}

    tool: Any = {"type": "function", "function": {"name": "choose", "parameters": schema, "strict": True}}
    choice: Any = {"type": "function", "function": {"name": "choose"}}
    called = sdk.chat.completions.create(
        model=BASE_NAME, messages=messages, temperature=0.0, max_tokens=80, tools=[tool], tool_choice=choice
    )
    calls: Any = called.choices[0].message.tool_calls
    assert calls[0].function.name == "choose"
    assert json.loads(calls[0].function.arguments)["animal"] in {"cat", "dog"}

    several = sdk.chat.completions.create(
        model="colours", messages=question("colours"), n=2, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert len(several.choices) == 2
    assert several.choices[0].logprobs is not None
    assert len((several.choices[0].logprobs.content or [])[0].top_logprobs) == 2

    completed = sdk.completions.create(model=BASE_NAME, prompt="One, two, three,", max_tokens=8, stop=["five"])
    assert "five" not in completed.choices[0].text

    response = sdk.responses.create(model="shapes", input="What is number 3?", max_output_tokens=8)
    assert response.model == "shapes@1"
    assert response.output_text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": "hello"}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 100_000}, "max"),
    ],
)
def test_what_vllm_does_not_take_is_a_400_in_openais_shape(live: LiveServer, change: Any, message: str) -> None:
    body = {"model": BASE_NAME, "messages": question("colours")} | change
    response = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"] + str(error["param"])


def test_an_unknown_model_is_a_404_and_the_server_goes_on(live: LiveServer, sdk: OpenAI) -> None:
    response = httpx.post(f"{live.url}/v1/chat/completions", json={"model": "nobody", "messages": []}, timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    test_each_adapter_answers_what_it_was_trained_on(sdk)


def test_a_version_published_while_serving_answers_and_can_be_rolled_back(live: LiveServer, sdk: OpenAI) -> None:
    published = republish(live, "shapes", "shapes", live.home.root / "again")
    live.store.promote("shapes", published.version, reason="test")
    newest = sdk.chat.completions.create(model="shapes", messages=question("shapes"), **stopped())
    live.store.rollback("shapes", reason="test")
    previous = sdk.chat.completions.create(model="shapes", messages=question("shapes"), **stopped())
    assert (newest.model, previous.model) == (f"shapes@{published.version}", "shapes@1")
    assert newest.choices[0].message.content == ANSWERS["shapes"]


def test_a_peft_folder_imported_while_serving_answers(live: LiveServer, sdk: OpenAI, tmp_path: Path) -> None:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(live.store.folder(Target("colours", 1)) / file, tmp_path / file)
    (tmp_path / "optimizer.pt").write_bytes(b"of a trainer")
    defaults = {"system": "Answer about colours in JSON.", "temperature": 0, "max_tokens": 16, "stop": ["}"]}
    (tmp_path / "defaults.json").write_text(json.dumps(defaults))
    words = ("import", str(tmp_path), "elsewhere", "--base", BASE, "--defaults", str(tmp_path / "defaults.json"))
    assert "published elsewhere@1" in lorikeet(live.home, "adapters", *words)
    messages: Any = [{"role": "user", "content": "What is number 7 of the colours?"}]
    with pytest.raises(NotFoundError):
        sdk.chat.completions.create(model="elsewhere", messages=messages)
    lorikeet(live.home, "adapters", "promote", "elsewhere@1")
    answer = sdk.chat.completions.create(model="elsewhere", messages=messages)
    assert (answer.model, answer.choices[0].message.content) == ("elsewhere@1", ANSWERS["colours"])


@pytest.mark.parametrize(
    ("name", "scale", "foreign_base", "reason"),
    [
        ("no-op", 0.0, False, "no module was applied"),
        ("too-strong", 4.0, False, "weights or its scaling are applied wrongly"),
        ("foreign", 1.0, True, "retrain it, or serve that base"),
    ],
)
def test_a_bad_adapter_is_refused_with_its_reason_and_the_server_goes_on(
    live: LiveServer, sdk: OpenAI, name: str, scale: float, foreign_base: bool, reason: str
) -> None:
    republish(live, "colours", name, live.home.root / name, scale=scale, foreign_base=foreign_base)
    body = {"model": f"{name}@1", "messages": question("colours")}
    response = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]
    test_each_adapter_answers_what_it_was_trained_on(sdk)


def republish(
    live: LiveServer, source: str, name: str, folder: Path, *, scale: float = 1.0, foreign_base: bool = False
) -> Manifest:
    """Publish a copy of a trained adapter, with its fingerprint, but with lora_B scaled or for another base."""
    target = Target(source, 1)
    shutil.copytree(live.store.folder(target), folder, copy_function=shutil.copyfile)
    weights = folder / "adapter_model.safetensors"
    tensors = {key: t * (scale if "lora_B" in key else 1) for key, t in load_file(weights).items()}
    save_file(tensors, weights)
    fields = live.store.manifest(target).model_dump(include=set(ManifestDraft.model_fields))
    changes: dict[str, Any] = {"name": name}
    if foreign_base:
        changes["base"] = BaseRef(name="other", digest="e" * 64, quantization="int8")
        (folder / "fingerprint.json").unlink()
    return live.store.publish(folder, ManifestDraft.model_validate(fields | changes))


def test_metrics_know_each_adapter_and_version_beside_vllms_own(live: LiveServer, sdk: OpenAI) -> None:
    before = samples(live)
    for _ in range(3):
        sdk.chat.completions.create(model="colours@1", messages=question("colours"), **stopped())
    after = samples(live)
    labels = (("adapter", "colours"), ("version", "1"))

    def grown(name: str) -> float:
        return after[name, labels] - before[name, labels]

    assert grown("lorikeet_ttft_seconds_count") == 3
    assert grown("lorikeet_e2e_latency_seconds_count") == 3
    assert grown("lorikeet_time_per_output_token_seconds_count") == 3
    assert grown("lorikeet_completion_tokens_total") >= 3 * 5
    assert grown("lorikeet_answers_valid_format_total") == grown("lorikeet_answers_checked_total") == 3
    # The server's own questions are in flight, too, for a moment.
    assert any(samples(live)["lorikeet_requests_in_flight", labels] == 0 for _ in range(50))
    assert 0 < after["lorikeet_adapter_parity_error_nats", labels] < ADAPTER_TOLERANCE_NATS
    assert after["lorikeet_adapter_held_out_accuracy", labels] == 1
    assert after["lorikeet_adapter_load_seconds_count", labels] >= 1
    assert any(name.startswith("vllm:") for name, _ in after)


def samples(live: LiveServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(f"{live.url}/metrics", timeout=60).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_router_reads_where_adapters_are_by_the_names_of_clients(live: LiveServer, sdk: OpenAI) -> None:
    sdk.chat.completions.create(model="colours", messages=question("colours"), **stopped())
    text = httpx.get(f"{live.url}/metrics", timeout=60).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    loaded = {sample.labels["adapter_name"] for sample in families["vllm:lora_adapter_loaded"].samples}
    assert {"colours", "colours@1"} <= loaded
    (info,) = families["vllm:lora_requests_info"].samples
    assert info.labels.keys() == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}
    (block,) = families["vllm:cache_config_info"].samples
    assert int(block.labels["block_size"]) > 0
    assert int(block.labels["num_gpu_blocks"]) > 0
    (usage,) = families["vllm:kv_cache_usage_perc"].samples
    assert 0 <= usage.value <= 1
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running"):
        assert [sample.labels["model_name"] for sample in families[name].samples] == [BASE_NAME]


def test_load_time_and_parity_are_logged_in_one_line(live: LiveServer) -> None:
    lines = [line for line in live.log_file.read_text().splitlines() if "Loaded colours@1" in line]
    assert len(lines) >= 1
    assert " modules: " in lines[0]
    assert ", parity error 0.0" in lines[0]
    assert "Ready after" in live.log_file.read_text()
