"""Which of several bases behind one endpoint a model belongs to."""

from collections.abc import Callable, Sequence

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS, Target, parse_reference
from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.cluster.errors import ClusterError

_SHARED = (
    "host",
    "port",
    "keys_file",
    "allowed_hosts",
    "cors_origins",
    "max_body_bytes",
    "body_timeout_s",
    "otlp_endpoint",
)


def check_bases(configs: Sequence[ServeConfig]) -> None:
    """Check that bases can share an endpoint.

    Raises:
        ClusterError: Two are the same or have the same name, or their endpoints differ.
    """
    first = configs[0]
    for number, config in enumerate(configs):
        for field in ("base", "served_model_name"):
            if getattr(config, field) in [getattr(other, field) for other in configs[:number]]:
                raise ClusterError(
                    f"`{field}` {getattr(config, field)!r} is in two configuration files. Each base needs its own file "
                    "and its own `served_model_name`."
                )
        for field in _SHARED:
            own, wanted = getattr(config, field), getattr(first, field)
            if own != wanted:
                raise ClusterError(
                    f"`{field}` is {own!r} for the base {config.base!r}, but {wanted!r} for {first.base!r}. Bases "
                    "behind one endpoint share it: write the same in both files."
                )


class BaseOwners:
    """Finds the base of a model name, by its number in the order of the configurations.

    Args:
        configs: One for each base.
        store: Of all their adapters.
        reference: The version that a name `ft:…` stands for; any other name as it is.
    """

    def __init__(
        self,
        configs: Sequence[ServeConfig],
        store: AdapterStore,
        reference: Callable[[str], str] = lambda model: model,
    ) -> None:
        self._by_name = {config.served_model_name: number for number, config in enumerate(configs)}
        self._by_base = {config.base: number for number, config in enumerate(configs)}
        self._store = store
        self._reference = reference
        self._known: dict[Target, int] = {}

    def owner(self, model: str) -> int:
        """0, the first base, for what is unknown: it says so."""
        if len(self._by_base) == 1:
            return 0
        if model in self._by_name:
            return self._by_name[model]
        try:
            target = self._target(self._reference(model))
        except AdapterError:
            return 0
        if target is None:
            return 0
        if target not in self._known:
            try:
                self._known[target] = self._by_base.get(self._store.manifest(target).base.name, 0)
            except (AdapterError, OSError):  # damaged, or removed at this moment
                return 0
        return self._known[target]

    def _target(self, model: str) -> Target | None:
        reference = parse_reference(model)
        version = reference.version
        if version is None:
            version = self._store.aliases(reference.name).get(reference.alias or DEFAULT_ALIAS)
        return None if version is None else Target(reference.name, version)
