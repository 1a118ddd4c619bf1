"""Warnings at startup about secrets and private files that others could read."""

import logging
from urllib.parse import urlsplit

from config.home import Home
from config.hosts import is_loopback
from config.private import close_to_others, is_open_to_others, private_paths
from config.serve import ServeConfig

logger = logging.getLogger(__name__)


def warn_of_exposure(config: ServeConfig, home: Home) -> None:
    """Close private files of the state folder to other users; warn of what only the operator can change."""
    close_to_others(private_paths(home))
    if config.keys_file is not None and is_open_to_others(config.keys_file):
        logger.warning(
            "Other users can access the key file %s. Run `chmod go= FILE` to take their rights away.", config.keys_file
        )
    judge = config.quality.judge
    if judge is not None and judge.url is not None and judge.api_key_env is not None and _is_readable(judge.url):
        logger.warning(
            "The judge's API key and the texts to grade are sent to %r unencrypted. Use an https:// URL in "
            "`quality.judge.url`, or a judge on this machine.",
            urlsplit(judge.url).hostname,
        )


def _is_readable(url: str) -> bool:
    """Whether data sent to this URL can be read in transit."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
