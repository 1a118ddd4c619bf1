"""An answer as the quality store keeps it, for tests of what reads it."""

from quality.samples.records import Sample
from quality.signals import signals_of

NOON_S = 1795348800.0  # 2026-11-22 12:00 UTC

SAMPLE = Sample(
    id=0,
    at_s=NOON_S,
    request_id="r-1",
    adapter="medical",
    version=1,
    tenant_hash=None,
    source="client",
    privacy="full",
    num_prompt_tokens=12,
    ttft_s=0.1,
    e2e_s=0.5,
    signals=signals_of("I20", num_tokens=2, finish_reason="stop", token_logprobs=(-0.5,)),
    prompt="Angina?",
    answer="I20",
)
