"""Errors of the adapter store; the HTTP status of each stands in `serve/errors.py`.

AdapterError
├── InvalidReferenceError    (ValueError)        must be `name`, `name@3` or `name@alias`
├── AdapterNotFoundError     (LookupError)       no such adapter, version or alias
├── InvalidAdapterError      (ValueError)        a folder that cannot be published or served
│   ├── UnsupportedAdapterError                  valid for PEFT, but vLLM cannot serve it
│   └── IntegrityError                           a file differs from its manifest
├── InvalidDefaultsError     (ValueError)        invalid request defaults
├── InvalidSplitError        (ValueError)        an invalid traffic split
├── BaseModelMismatchError   (ValueError)        made for another base, template or quantization
├── BaseNotFoundError        (LookupError)       no such prepared base
├── InvalidBaseError         (ValueError)        a base folder that is unfinished or changed
├── AdapterInUseError        (RuntimeError)      a version to remove has an alias, or is loaded
├── TrialOverError           (RuntimeError)      the canary or the stable version is not the one that was judged
├── StoreDiskError           (OSError)           the store's disk is full or read-only
└── RemoteStoreError         (ConnectionError)   a remote store cannot be reached or used
    └── RemoteConflictError                      the remote's version or history differs
"""


class AdapterError(Exception):
    """Base class of the adapter store's errors."""


class InvalidReferenceError(AdapterError, ValueError):
    """Text that is not a model reference."""


class AdapterNotFoundError(AdapterError, LookupError):
    """No such adapter, version or alias."""


class InvalidAdapterError(AdapterError, ValueError):
    """A folder that is not a PEFT adapter, or is broken."""


class UnsupportedAdapterError(InvalidAdapterError):
    """A valid PEFT adapter of a kind that vLLM cannot serve."""


class IntegrityError(InvalidAdapterError):
    """Files that differ from their manifest."""


class InvalidDefaultsError(AdapterError, ValueError):
    """Request defaults with an unknown key or an invalid value."""


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
    """A verdict on a trial that has ended: stable or canary has moved since."""


class StoreDiskError(AdapterError, OSError):
    """The disk is full or read-only; the write was undone."""


class RemoteStoreError(AdapterError, ConnectionError):
    """A remote store that is unreachable, denies access, or lacks files of its history."""


class RemoteConflictError(RemoteStoreError):
    """A remote store whose version or history of the same name differs."""
