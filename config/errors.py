"""Errors of configuration and data files.

ConfigError     (ValueError)   a YAML file that is missing or invalid
  RayError                     Ray is not installed, or not reached
DatasetError    (ValueError)   a data set folder that is missing, unfinished or changed
"""


class ConfigError(ValueError):
    """A configuration file that is missing or invalid."""


class RayError(ConfigError):
    """Ray is not installed, or not reached."""


class DatasetError(ValueError):
    """A data set folder that is missing, unfinished or changed."""
