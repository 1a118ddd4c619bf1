"""Errors of the adapter store.

AdapterError
├── InvalidReferenceError    (ValueError)        400  not a name, `name@3` or `name@alias`
├── AdapterNotFoundError     (LookupError)       404  no such adapter, version or alias
├── InvalidAdapterError      (ValueError)        422  a folder that cannot be published or served
│   ├── UnsupportedAdapterError                  422  valid for PEFT, but vLLM cannot serve it
│   └── IntegrityError                           422  a file differs from its manifest
├── BaseModelMismatchError   (ValueError)        409  made for another base, template or quantization
├── BaseNotFoundError        (LookupError)       404  no such prepared base
├── InvalidBaseError         (ValueError)        422  a base folder that is unfinished or changed
└── AdapterInUseError        (RuntimeError)      409  an alias points to what should be removed
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


class BaseModelMismatchError(AdapterError, ValueError):
    """An adapter for another base model, chat template or quantization."""


class BaseNotFoundError(AdapterError, LookupError):
    """No such prepared base."""


class InvalidBaseError(AdapterError, ValueError):
    """A base folder that is unfinished, or that differs from its manifest."""


class AdapterInUseError(AdapterError, RuntimeError):
    """A version that an alias still points to."""
