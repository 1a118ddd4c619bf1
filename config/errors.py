"""Errors of configuration and data files.

ConfigError     (ValueError)   a YAML file that does not say what it should
DatasetError    (ValueError)   a data set folder that is missing, unfinished or changed
"""


class ConfigError(ValueError):
    """A configuration file that does not say what it should."""


class DatasetError(ValueError):
    """A data set folder that is missing, unfinished or changed."""
