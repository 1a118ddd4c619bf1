import pytest
import torch
from peft import PeftModel

from adapters.errors import AdapterNotFoundError
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from tests.exported import adapted, publish, random_adapter
from tests.narrowing import not_none
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.export.combine_pairs import Weighted, combine
from train.export.version import open_version, read_pairs
from train.pipeline import train_and_publish

pytestmark = pytest.mark.slow

# Method, density, and how far it may be from PEFT's: dare drops random numbers, a hundredth here.
METHODS = [
    pytest.param("linear", 0.5, 0.03, marks=pytest.mark.slow),
    ("ties", 0.5, 0.03),
    pytest.param("svd", 0.5, 0.03, marks=pytest.mark.slow),
    ("cat", 0.5, 0.03),
    pytest.param("dare_linear", 0.99, 0.4, marks=pytest.mark.slow),
    ("dare_ties", 0.99, 0.4),
]


@pytest.fixture
def shapes(home, tmp_path):
    """A second version on the same base, of another rank where asked."""

    def make(**options):
        folder = random_adapter(home.bases / "tiny", tmp_path / "shapes", seed=1, **options)
        publish(home, folder, "shapes")
        return folder

    return make


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 63).reshape(2, 30)).logits


@pytest.mark.parametrize(("method", "density", "tolerance"), METHODS)
def test_a_combination_is_that_of_peft(home, tmp_path, lorikeet, shapes, method, density, tolerance):
    other = shapes(lora_alpha=4)
    words = ["adapters", "merge", "colours@1:0.7", "shapes@1:-0.3", "--method", method, "--name", "both"]
    result = lorikeet(*words, "--density", str(density))
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    model = PeftModel.from_pretrained(
        load_causal_lm(home.bases / "tiny", dtype=torch.float32), str(tmp_path / "colours"), "colours"
    )
    model.load_adapter(str(other), "shapes")
    model.add_weighted_adapter(["colours", "shapes"], [0.7, -0.3], "both", combination_type=method, density=density)
    model.set_adapter("both")
    wanted = logits(model.eval())
    got = logits(adapted(home.bases / "tiny", AdapterStore(home.adapters).folder(Target("both", 1))))
    with model.disable_adapter():
        effect = (logits(model) - wanted).abs().max()
    assert (got - wanted).abs().max() < tolerance * effect
    assert f"published both@1, rank {8 if method == 'cat' else 4}" in result.stdout


def test_lineage_is_in_the_manifest_and_shown(home, lorikeet, shapes):
    shapes()
    lorikeet("adapters", "merge", "colours@1:0.7", "shapes@1:0.3", "--method", "ties", "--name", "both")
    store = AdapterStore(home.adapters)
    manifest = store.verify(Target("both", 1))
    combination = not_none(manifest.combination)
    assert (combination.method, combination.density, manifest.origin) == ("ties", 0.5, "combined")
    assert [(s.lora_name, s.weight) for s in combination.sources] == [("colours@1", 0.7), ("shapes@1", 0.3)]
    assert combination.sources[0].digest == store.manifest(Target("colours", 1)).digest
    assert not_none(manifest.defaults).system == "Colour?"
    output = lorikeet("adapters", "show", "both@1").stdout
    assert "0.7 of colours@1" in output
    assert "ties, density 0.5" in output
    assert "- 0.7 of `colours@1`" in (store.folder(Target("both", 1)) / "README.md").read_text()


def test_versions_with_different_layers_and_ranks_are_combined(home, lorikeet, tmp_path, shapes):
    other = shapes(r=2, target_modules=["k_proj", "down_proj"], use_rslora=True, layers_to_transform=[1])
    lorikeet("adapters", "merge", "colours@1:1", "shapes@1:1", "--method", "cat", "--name", "both")
    folder = AdapterStore(home.adapters).folder(Target("both", 1))
    deltas = [
        adapted(home.bases / "tiny", each).merge_and_unload().state_dict()
        for each in (folder, tmp_path / "colours", other)
    ]
    base = load_causal_lm(home.bases / "tiny", dtype=torch.float32).state_dict()
    for name, weight in base.items():
        changes = [delta[name] - weight for delta in deltas]
        torch.testing.assert_close(changes[0], changes[1] + changes[2], rtol=0.02, atol=0.02, msg=name)


def test_dare_drops_the_same_numbers_every_time(home, shapes):
    shapes()
    parts = [Weighted(name, read_pairs(open_version(home, name)), 0.5) for name in ("colours@1", "shapes@1")]
    once, again = (combine(parts, "dare_ties", 0.5) for _ in range(2))
    assert all(torch.equal(pair.lora_a, again[layer].lora_a) for layer, pair in once.items())
    assert any((pair.lora_a == 0).any() for pair in once.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["colours@1:0.5", "shapes@1:0.5", "--method", "mean"],
            "There is no method 'mean'. Choose one of linear",
        ),
        (["colours@1", "shapes@1:0.5"], "'colours@1' must be a version and its weight, such as 'medical@3:0.7'"),
        (["colours@1:much", "shapes@1:0.5"], "must be a version and its weight"),
        (["colours@1:nan", "shapes@1:0.5"], "must be a version and its weight"),
        (["colours@1:0.5"], "Give two or more different versions; got colours@1."),
        (["colours@1:0.5", "colours@1:0.5"], "Give two or more different versions"),
        (["colours@1:0.5", "nobody@1:0.5"], "There is no 'nobody@1'"),
        (["colours@1:0.5", "shapes@1:0.5", "--method", "cat", "--max-lora-rank", "6"], "cat gives rank 8"),
        (["colours@1:0.5", "shapes@1:0.5", "--name", "Both[1]"], "'Both[1]' is not a valid adapter name"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(home, lorikeet, shapes, words, message):
    shapes()
    result = lorikeet("adapters", "merge", "--name", "both", *words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert AdapterStore(home.adapters).names() == ["colours", "shapes"]


def test_unequal_ranks_are_refused_by_methods_that_add_a_to_a(lorikeet, shapes):
    shapes(r=2)
    result = lorikeet("adapters", "merge", "colours@1:1", "shapes@1:1", "--method", "linear", "--name", "both")
    assert (
        "linear needs equal ranks; 'model.layers.0.mlp.down_proj' has {'colours@1': 4, 'shapes@1': 2}" in result.stderr
    )


def test_another_base_is_refused(home, lorikeet, tmp_path):
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"), "other")
    publish(home, random_adapter(home.bases / "other", tmp_path / "source"), "shapes", base="other")
    result = lorikeet("adapters", "merge", "colours@1:1", "shapes@1:1", "--name", "both")
    assert "Only versions of one base can be combined; got colours@1 on tiny" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def two_domains(tmp_path) -> Home:
    """Two trained versions with their data sets."""
    home = Home(tmp_path / "trained")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    for name, num_rows in (("colours", 60), ("shapes", 90)):
        domain = tiny_domain(write_colour_data(tmp_path / f"{name}.jsonl", num_rows))
        train_and_publish(domain.model_copy(update={"name": name}), home)
    return home


@pytest.mark.slow
def test_both_held_out_sets_are_scored_and_the_fingerprint_is_made(two_domains, lorikeet):
    words = ["adapters", "merge", "colours@1:0.5", "shapes@1:0.5", "--name", "both"]
    result = lorikeet(*words, "--home", str(two_domains.root))
    assert result.exit_code == 0, result.stderr
    store = AdapterStore(two_domains.adapters)
    combination = not_none(store.manifest(Target("both", 1)).combination)
    assert {name: scores.adapter.n for name, scores in combination.evaluations.items()} == {"colours": 8, "shapes": 8}
    fingerprint = not_none(read_fingerprint(store.folder(Target("both", 1))))
    assert len(fingerprint.prompts) == 6
    assert fingerprint.adapter_effect_nats > 0
    assert "colours: exact_match" in result.stdout


@pytest.mark.slow
def test_a_missing_data_set_leaves_its_score_out(two_domains, lorikeet):
    (two_domains.datasets / "shapes").rename(two_domains.datasets / "gone")
    words = ["adapters", "merge", "colours@1:0.5", "shapes@1:0.5", "--name", "both"]
    assert lorikeet(*words, "--home", str(two_domains.root)).exit_code == 0
    store = AdapterStore(two_domains.adapters)
    assert list(not_none(store.manifest(Target("both", 1)).combination).evaluations) == ["colours"]
    assert len(not_none(read_fingerprint(store.folder(Target("both", 1)))).prompts) == 6
    with pytest.raises(AdapterNotFoundError):
        store.manifest(Target("both", 2))
