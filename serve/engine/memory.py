"""How large a CPU's KV cache is where the configuration does not say: what all sequences need, if memory is free."""

import json
from pathlib import Path
from typing import Any

from config.memory import free_memory_bytes

_DTYPE_BYTES = 2  # bfloat16
_SHARE_OF_FREE = 0.5  # the rest is for the base, the adapters and the steps' own buffers
_UNKNOWN_BYTES = 4 << 30  # of an architecture that counts its heads by names of its own


def default_kv_cache_bytes(base_folder: Path, num_tokens: int, free_bytes: int | None = None) -> int:
    """Room for `num_tokens` of the base, at most half of the free memory.

    More than all sequences at full length would only keep more prefixes. Where the base's `config.json` does not tell
    what a token takes, 4 GiB.

    Args:
        num_tokens: `max_num_seqs * max_model_len`.
        free_bytes: By default what this process may still take.
    """
    free = free_memory_bytes() if free_bytes is None else free_bytes
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    per_token = kv_bytes_per_token(config.get("text_config") or config)
    wanted = _UNKNOWN_BYTES if per_token is None else num_tokens * per_token
    return min(wanted, int(free * _SHARE_OF_FREE))


def kv_bytes_per_token(config: dict[str, Any]) -> int | None:
    """Keys and values of all layers for one token, by the base's `config.json`, in bfloat16.

    Args:
        config: Of the language model; of one with several parts it is `text_config`.

    Returns:
        None where it lacks the names that most architectures use.
    """
    try:
        num_heads = config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        return 2 * int(config["num_hidden_layers"]) * int(num_kv_heads) * int(head_dim) * _DTYPE_BYTES
    except KeyError:
        return None
