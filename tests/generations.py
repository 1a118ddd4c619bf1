"""Finished generations, for tests of what looks at them."""

from serve.records import GenerationRecord


def generation(lora_name: str | None = "medical@3", **changes: object) -> GenerationRecord:
    """A client's whole answer; `changes` by the record's field names."""
    fields: dict[str, object] = {
        "lora_name": lora_name,
        "source": "client",
        "tenant": "acme",
        "request_id": "r-1",
        "outcome": "ok",
        "queue_s": 0.01,
        "prefill_s": 0.15,
        "decode_s": 0.6,
        "ttft_s": 0.2,
        "tpot_s": 0.05,
        "itl_s": (0.04, 0.06),
        "e2e_s": 1.0,
        "num_prompt_tokens": 40,
        "num_cached_tokens": 16,
        "num_completion_tokens": 12,
        "finish_reasons": ("stop",),
        "prompt_text": "Code of angina?",
        "prompt_token_ids": tuple(range(40)),
        "texts": ('{"chapter": "Neoplasms"}',),
        "token_ids": tuple(range(12)),
        "token_logprobs": (-0.25,) * 12,
    }
    return GenerationRecord(**(fields | changes))  # type: ignore[arg-type]  # fields by name
