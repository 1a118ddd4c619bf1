"""Several bases behind one endpoint: which of them a model belongs to, and what they must share."""

from types import SimpleNamespace
from typing import cast

import pytest

from adapters.errors import AdapterNotFoundError
from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.cluster.bases import BaseOwners, check_bases
from serve.cluster.errors import ClusterError
from serve.cluster.settings import check_numbers

SMALL = ServeConfig(base="small-nf4", served_model_name="small")
LARGE = ServeConfig(base="large-nf4", served_model_name="large")


class Store:
    """Adapters with the base of each version."""

    def __init__(self, **bases):
        self.bases = bases

    def aliases(self, name):
        return {"stable": 1}

    def manifest(self, target):
        if target.name not in self.bases:
            raise AdapterNotFoundError(f"{target} is not there")
        return SimpleNamespace(base=SimpleNamespace(name=self.bases[target.name]))


@pytest.mark.parametrize(
    ("model", "owner"),
    [
        ("small", 0),
        ("large", 1),
        ("legal", 1),
        ("legal@1", 1),
        ("medical", 0),
        ("unknown", 0),
        ("", 0),
        ("Not A Name", 0),
    ],
)
def test_a_model_belongs_to_the_base_that_it_was_trained_on(model, owner):
    store = Store(medical="small-nf4", legal="large-nf4", other="elsewhere")
    assert BaseOwners([SMALL, LARGE], cast(AdapterStore, store)).owner(model) == owner


def test_an_adapter_of_no_served_base_is_for_the_first_to_refuse():
    assert BaseOwners([SMALL, LARGE], cast(AdapterStore, Store(other="elsewhere"))).owner("other") == 0


def test_a_single_base_owns_everything():
    assert BaseOwners([SMALL], cast(AdapterStore, None)).owner("legal") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "small-nf4"}, "`base` 'small-nf4' is in two"),
        ({"served_model_name": "small"}, "`served_model_name` 'small' is in two"),
        ({"port": 8001}, "`port` is 8001 for the base 'large-nf4', but 8000 for 'small-nf4'"),
        ({"keys_file": "keys.json"}, "`keys_file` is"),
    ],
)
def test_bases_that_cannot_share_an_endpoint_are_refused(change, message):
    check_bases([SMALL, LARGE])
    other = ServeConfig.model_validate(LARGE.model_dump(exclude_unset=True) | change)
    with pytest.raises(ClusterError, match=message):
        check_bases([SMALL, other])


@pytest.mark.parametrize(("fewest", "most"), [(3, 2), (0, None)])
def test_numbers_that_contradict_each_other_are_refused(fewest, most):
    with pytest.raises(ClusterError, match="--max-replicas"):
        check_numbers(fewest, most)
    check_numbers(0, 1)
    check_numbers(2, None)


def test_a_fine_tuned_name_belongs_to_the_base_of_its_version():
    store = Store(legal="large-nf4", medical="small-nf4")
    names = {"ft:large:acme:legal:1": "legal@1", "ft:small:acme:medical:1": "medical@2"}
    owners = BaseOwners([SMALL, LARGE], cast(AdapterStore, store), lambda model: names.get(model, model))
    found = [owners.owner(model) for model in (*names, "ft:large:acme:gone:1", "legal")]
    assert found == [1, 0, 0, 1]
