from pathlib import Path

import pytest
import torch

from adapters.bases import verify_base
from config.errors import DatasetError
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.base.sparsify import Pattern, SparsityMethod, kept, parse_pattern, prune, sparsify_base
from train.data.build import build_dataset
from train.errors import PrepareBaseError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("sparse")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    build_dataset(tiny_domain(write_colour_data(root / "colours.jsonl")), home)
    return home


def test_a_share_keeps_the_most_important_of_each_row() -> None:
    importance = torch.tensor([[1.0, 4, 2, 3], [8, 7, 6, 5]])
    assert kept(importance, Pattern(0.5)).int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]


def test_n_of_m_keeps_the_most_important_of_each_group() -> None:
    importance = torch.tensor([[1.0, 2, 3, 4, 9, 8, 7, 6]])
    assert kept(importance, parse_pattern("2:4")).int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("text", ["0", "1", "4:2", "0:4", "half", "2:x", "-0.5", "nan"])
def test_another_pattern_is_refused(text: str) -> None:
    with pytest.raises(PrepareBaseError, match=r"share between 0 and 1, as 0\.5, or N:M"):
        parse_pattern(text)


@pytest.mark.parametrize(("method", "sparsity"), [("magnitude", "0.5"), ("wanda", "2:4")])
def test_a_sparse_base_is_a_base_of_its_own(home: Home, method: SparsityMethod, sparsity: str) -> None:
    manifest = sparsify_base("tiny", home, method, parse_pattern(sparsity), calibration="colours", domains=("colours",))
    assert verify_base(home.bases / manifest.name) == manifest
    assert manifest.lineage is not None
    assert manifest.lineage.parent == verify_base(home.bases / "tiny").ref
    assert manifest.lineage.sparsity is not None
    assert manifest.lineage.sparsity.share_zero == pytest.approx(0.5, abs=0.01)
    assert manifest.lineage.evaluations["colours"].adapter.n == 8
    model, parent = load_causal_lm(home.bases / manifest.name), load_causal_lm(home.bases / "tiny")
    q, whole = (dict(m.named_parameters())["model.layers.0.self_attn.q_proj.weight"] for m in (model, parent))
    assert int((q == 0).sum()) == q.numel() // 2
    assert torch.equal(q[q != 0], whole[q != 0])
    head = model.get_output_embeddings().weight
    assert torch.equal(head, parent.get_output_embeddings().weight)


def test_wanda_keeps_small_weights_of_large_inputs() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.1, 1.0]])
    norms = torch.tensor([100.0, 1.0])
    assert kept(layer.weight.abs() * norms, Pattern(0.5)).int().tolist() == [[1, 0]]


def test_magnitude_and_wanda_choose_differently(home: Home) -> None:
    rows = torch.arange(3, 67)[None]
    pruned = []
    for method in ("magnitude", "wanda"):
        model = load_causal_lm(home.bases / "tiny")
        prune(model, method, Pattern(0.5), rows)
        layer = model.get_submodule("model.layers.1.mlp.down_proj")
        assert isinstance(layer, torch.nn.Linear)
        pruned.append(layer.weight)
    assert not torch.equal(pruned[0], pruned[1])


def test_an_existing_name_is_refused_before_any_work(home: Home, tmp_path: Path) -> None:
    with pytest.raises(PrepareBaseError, match="'tiny' already exists"):
        sparsify_base("tiny", home, "magnitude", Pattern(0.5), new_name="tiny")


def test_a_name_or_data_set_that_cannot_be_is_told_first(home: Home) -> None:
    with pytest.raises(PrepareBaseError, match="cannot name a base"):
        sparsify_base("tiny", home, "magnitude", Pattern(0.5), new_name="../outside")
    for arguments in ({"calibration": "nowhere"}, {"domains": ("nowhere",)}):
        with pytest.raises(DatasetError, match="'nowhere' is missing or unfinished"):
            sparsify_base("tiny", home, "wanda", Pattern(0.5), **arguments)
    assert not (home.bases.parent / "outside").exists()
