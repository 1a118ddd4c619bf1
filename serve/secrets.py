"""What a server must not be without: its API keys, and the key of the judge's endpoint."""

import os

from config.errors import ConfigError
from config.home import Home
from config.hosts import is_loopback
from config.serve import ServeConfig
from serve.access.keys import KeyRing


def open_keys(config: ServeConfig, home: Home) -> KeyRing:
    """Raises ConfigError for a broken file, and for a server reachable from outside without keys."""
    default = home.keys if home.keys.exists() else None
    path = config.keys_file or default
    if path is None and not is_loopback(config.host):
        raise ConfigError(
            f"Without API keys the server may listen on loopback only, not on {config.host!r}. Create a key "
            f"first: `lorikeet keys create TENANT --home {home.root}`."
        )
    return KeyRing(path)


def read_judge_key(config: ServeConfig) -> str | None:
    """Raises ConfigError where the variable that should hold the key is not set."""
    judge = config.quality.judge
    if judge is None or judge.api_key_env is None:
        return None
    if not os.environ.get(judge.api_key_env):
        raise ConfigError(
            f"`quality.judge.api_key_env` names the environment variable {judge.api_key_env!r}, which is not "
            "set. Export the judge's API key under that name, or remove `api_key_env` if the judge needs none."
        )
    return os.environ[judge.api_key_env]
