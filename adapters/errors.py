"""Errors of the adapter store; the HTTP status of each stands in `serve/errors.py`.

AdapterError
├── InvalidReferenceError    (ValueError)        not a name, `name@3` or `name@alias`
├── AdapterNotFoundError     (LookupError)       no such adapter, version or alias
├── InvalidAdapterError      (ValueError)        a folder that cannot be published or served
│   ├── UnsupportedAdapterError                  valid for PEFT, but vLLM cannot serve it
│   └── IntegrityError                           a file differs from its manifest
├── InvalidDefaultsError     (ValueError)        request defaults that no version can have
├── InvalidSplitError        (ValueError)        a traffic split that makes no sense
├── BaseModelMismatchError   (ValueError)        made for another base, template or quantization
├── BaseNotFoundError        (LookupError)       no such prepared base
├── InvalidBaseError         (ValueError)        a base folder that is unfinished or changed
├── AdapterInUseError        (RuntimeError)      what should be removed has an alias, or is loaded
├── TrialOverError           (RuntimeError)      the canary or the stable version is no longer the one judged
├── StoreDiskError           (OSError)           the store's disk is full or read-only
└── RemoteStoreError         (ConnectionError)   a remote store cannot be reached or used
    └── RemoteConflictError                      the remote holds something else by that name
"""


class AdapterError(Exception):
    """Anything that the adapter store refuses."""


class InvalidReferenceError(AdapterError, ValueError):
    """Not a model reference."""


class AdapterNotFoundError(AdapterError, LookupError):
    """No such adapter, version or alias."""


class InvalidAdapterError(AdapterError, ValueError):
    """A folder that is no adapter, or a broken one."""


class UnsupportedAdapterError(InvalidAdapterError):
    """A good PEFT adapter of a kind that vLLM does not serve."""


class IntegrityError(InvalidAdapterError):
    """Files that differ from what their manifest promises."""


class InvalidDefaultsError(AdapterError, ValueError):
    """Request defaults with an unknown key or a wrong value."""


class InvalidSplitError(AdapterError, ValueError):
    """A canary weight outside 0 to 1, or traffic for a canary that does not exist."""


class BaseModelMismatchError(AdapterError, ValueError):
    """An adapter for another base model, chat template or quantization."""


class BaseNotFoundError(AdapterError, LookupError):
    """No such prepared base."""


class InvalidBaseError(AdapterError, ValueError):
    """A base folder that is unfinished, or that differs from its manifest."""


class AdapterInUseError(AdapterError, RuntimeError):
    """A version that an alias still points to, or that a server has loaded."""


class TrialOverError(AdapterError, RuntimeError):
    """A verdict that comes too late: stable or canary has moved since."""


class StoreDiskError(AdapterError, OSError):
    """A disk without room for what was to be written; nothing of it stays."""


class RemoteStoreError(AdapterError, ConnectionError):
    """A remote store that is away, refuses, or lacks what its history promises."""


class RemoteConflictError(RemoteStoreError):
    """A remote store that holds another version or another history by the same name."""
