"""The methods by name; a method adds itself by being listed here."""

from collections.abc import Mapping

from config.method import MethodConfig
from config.training import TrainingConfig
from train.errors import RecipeError
from train.methods.bottleneck import BottleneckLayers
from train.methods.converted import converted_methods
from train.methods.lora import Dora, Lora
from train.methods.method import Method, ServedAs
from train.methods.own_base import own_base_methods
from train.methods.virtual_tokens import VirtualTokens

METHODS: Mapping[str, Method] = {
    "lora": Lora(),
    "dora": Dora(),
    **converted_methods(),
    **own_base_methods(),
    "prompt_tuning": VirtualTokens(),
    "p_tuning": VirtualTokens(),
    "prefix_tuning": VirtualTokens(),
    "bottleneck": BottleneckLayers(),
}

_WITH_EXAMPLES = ("sft", "text")


def method_of(settings: MethodConfig) -> Method:
    return METHODS[settings.name]


def served_as(settings: MethodConfig) -> ServedAs:
    """How the result is served; a method may be served in some settings only."""
    method = method_of(settings)
    return "not served" if method.unserved(settings) else method.served_as(settings)


def check_method(config: TrainingConfig, *, allow_unserved: bool = False) -> None:
    """Refuse, before the model loads, what cannot be trained or, unless allowed, what could not be served.

    Raises:
        RecipeError: In one line, with the nearest method that can be served.
    """
    settings, method = config.method, method_of(config.method)
    method.check(settings)
    if method.needs_examples(settings) and config.objective.name not in _WITH_EXAMPLES:
        raise RecipeError(
            "This initialisation runs training examples through the base, which `objective: "
            f"{config.objective.name}` does not have in that form. Set init_lora_weights: pissa."
        )
    is_plain = method.served_as(settings) in ("LoRA", "DoRA") and not method.needs_examples(settings)
    if config.from_version is not None and not is_plain:
        raise RecipeError(
            f"`from: {config.from_version}` continues with that version's LoRA, which `method: {settings.name}` with "
            "these settings does not. Set `method: lora` without `init_lora_weights`, or leave `from` out."
        )
    if config.objective.name == "reward" and not is_plain:
        raise RecipeError(
            f"`objective: reward` trains a head beside the adapter, which `method: {settings.name}` with these "
            "settings cannot save. Set `method: lora`."
        )
    if config.objective.name == "text" and isinstance(method, VirtualTokens):
        raise RecipeError(
            f"`objective: text` packs documents into rows, and the virtual tokens of `method: {settings.name}` stand "
            "before the first one only. Set `method: lora`."
        )
    if config.objective.name in ("grpo", "rloo") and isinstance(method, VirtualTokens):
        raise RecipeError(
            f"`objective: {config.objective.name}` computes the log-probabilities of a prompt's answers in one row, "
            f"without the virtual tokens of `method: {settings.name}`. Set `method: lora`."
        )
    if isinstance(method, VirtualTokens):
        method.check_recipe(settings, config.recipe)
    if not allow_unserved and (reason := method.unserved(settings)):
        raise RecipeError(f"This recipe cannot be used: {reason} `--allow-unserved` trains it for evaluation.")
