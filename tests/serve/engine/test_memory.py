"""The KV cache where the configuration does not say how large it is."""

import json
from pathlib import Path

import pytest

from serve.engine.memory import default_kv_cache_bytes, kv_bytes_per_token

SMOLLM2 = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 30}
SMOLLM2_BYTES = 2 * 30 * 3 * 64 * 2


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return tmp_path


def test_a_token_takes_keys_and_values_of_each_layer() -> None:
    assert kv_bytes_per_token(SMOLLM2) == SMOLLM2_BYTES
    assert kv_bytes_per_token({"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}) == 2 * 2 * 64 * 2


def test_a_base_that_tells_nothing_gets_four_gib(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 9, "hidden_size": 64, "num_hidden_layers": 2}))
    assert default_kv_cache_bytes(tmp_path, 65536, free_bytes=64 << 30) == 4 << 30


def test_of_a_base_with_several_parts_the_language_model_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "several", "text_config": SMOLLM2}))
    assert default_kv_cache_bytes(tmp_path, 65536, free_bytes=64 << 30) == 65536 * SMOLLM2_BYTES


def test_all_sequences_have_room_where_memory_is_free(base: Path) -> None:
    assert default_kv_cache_bytes(base, 65536, free_bytes=64 << 30) == 65536 * SMOLLM2_BYTES


def test_half_of_the_free_memory_stays_free(base: Path) -> None:
    assert default_kv_cache_bytes(base, 65536, free_bytes=1 << 30) == 1 << 29
