"""LoRA and DoRA, with PEFT's initialisations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, LoraGAConfig, PeftConfig, PeftModel
from peft.tuners.lora.config import CordaConfig
from transformers import PreTrainedModel, Trainer

from adapters.lint.config import MAX_LORA_RANK, LintFinding, check_adapter_config
from adapters.store.manifest import BaseManifest
from config.lora_methods import CHANGES_BASE, LoraMethod, LoraSettings, initialisation
from train.data.encode import Encoded
from train.errors import RecipeError
from train.methods.examples_init import initialise_eva, prepare_corda, prepare_lora_ga
from train.methods.initial_factors import converted_to_lora, keep_initial_factors
from train.methods.loraplus import use_loraplus
from train.methods.method import Method, ServedAs, Trainable
from train.methods.targets import check_patterns, named, resolve_target_modules
from train.processes import first_in_turn

_LOFTQ = (
    "init_lora_weights is 'loftq', which corrects what quantization changed: a prepared base is quantized already, and "
    "PEFT quantizes on CUDA only. Set init_lora_weights: pissa, which takes the largest part of the weights as it is."
)
_LM_HEAD = (
    "target_modules has 'lm_head', which cannot be trained: TRL multiplies by `lm_head.weight` itself, past the "
    "adapter, and refuses it. Leave it out."
)


class Lora(Method):
    """Low-rank factors beside the linear layers."""

    def check(self, settings: LoraSettings) -> None:
        problems = [str(finding) for finding in self._findings(settings) if not finding.is_unsupported]
        if {"lm_head", "embed_out"} & set(named(settings.target_modules)):
            problems.append(_LM_HEAD)
        kind = _initialisation(settings)
        if kind == "loftq":
            problems.append(_LOFTQ)
        if kind == "orthogonal" and settings.r % 2:
            problems.append(f"init_lora_weights: orthogonal requires an even r; got {settings.r}.")
        if problems:
            raise RecipeError("This recipe cannot be used: " + " ".join(problems))

    def served_as(self, settings: LoraSettings) -> ServedAs:
        return "converted to LoRA" if self.changes_base(settings) else "LoRA"

    def unserved(self, settings: LoraSettings) -> str:
        return " ".join(str(finding) for finding in self._findings(settings) if finding.is_unsupported)

    def check_base(self, settings: LoraSettings, base: BaseManifest) -> None:
        if self.changes_base(settings) and base.storage == "bitsandbytes":
            raise RecipeError(
                f"init_lora_weights: {_initialisation(settings)} changes the base's weights, and base {base.name!r} "
                "stores bitsandbytes tensors. Set init_lora_weights: true, or prepare it with `--storage dequantized`."
            )

    def changes_base(self, settings: LoraSettings) -> bool:
        return _initialisation(settings) in CHANGES_BASE

    def needs_examples(self, settings: LoraSettings) -> bool:
        return _initialisation(settings) in ("eva", "corda", "lora_ga")

    def peft_config(self, settings: LoraSettings, model: PreTrainedModel) -> LoraConfig:
        kind, layers = _initialisation(settings), settings.layers_to_transform
        targets = resolve_target_modules(model, settings.target_modules, with_embeddings=True)
        check_patterns(model, targets, {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern})
        return LoraConfig(
            **self._keys(settings) | {"target_modules": targets},
            # EVA's is set in `set_up`: PEFT warns of memory otherwise, and then initialises nothing.
            init_lora_weights=kind == "eva" or settings.init_lora_weights if isinstance(settings, LoraMethod) else True,  # type: ignore[arg-type]  # checked by the settings
            layers_to_transform=list(layers) if isinstance(layers, tuple) else layers,
            lora_dropout=settings.lora_dropout,
            corda_config=CordaConfig() if kind == "corda" else None,
            lora_ga_config=LoraGAConfig() if kind == "lora_ga" else None,
            bias="none",
            task_type="CAUSAL_LM",
        )

    def prepare(
        self, settings: LoraSettings, model: PreTrainedModel, config: PeftConfig | None, examples: Sequence[Encoded]
    ) -> None:
        assert isinstance(config, LoraConfig)
        if self.changes_base(settings):
            model.float()
        match _initialisation(settings):
            case "corda":
                prepare_corda(model, config, examples)
            case "lora_ga":
                prepare_lora_ga(model, config, examples)

    def set_up(self, settings: LoraSettings, trainer: Trainer, examples: Sequence[Encoded]) -> None:
        assert isinstance(trainer.model, PeftModel)
        if _initialisation(settings) == "eva":
            initialise_eva(trainer.model, examples)
        if self.changes_base(settings):
            with first_in_turn():  # the others get the first one's factors
                keep_initial_factors(trainer.model, Path(str(trainer.args.output_dir)))
        if settings.loraplus_lr_ratio is not None:
            use_loraplus(trainer, settings.loraplus_lr_ratio)

    def finish(self, settings: LoraSettings, model: Trainable, base_folder: Path, run_folder: Path) -> Trainable:
        assert isinstance(model, PeftModel)
        return converted_to_lora(model, base_folder, run_folder) if self.changes_base(settings) else model

    def _findings(self, settings: LoraSettings) -> list[LintFinding]:
        """Findings on what is saved: a converted adapter has twice the rank, and EVA may give a layer twice."""
        keys = self._keys(settings)
        if self.changes_base(settings) or _initialisation(settings) == "eva":
            keys |= {"r": 2 * settings.r, "rank_pattern": {key: 2 * r for key, r in settings.rank_pattern.items()}}
        findings = check_adapter_config({"peft_type": "LORA", **keys}, max_lora_rank=MAX_LORA_RANK)
        return [finding for finding in findings if finding.level == "error"]

    def _keys(self, settings: LoraSettings) -> dict[str, Any]:
        """PEFT's keys that decide whether the adapter can be served."""
        return {
            "r": settings.r,
            "lora_alpha": settings.lora_alpha,
            "use_rslora": settings.use_rslora,
            "rank_pattern": dict(settings.rank_pattern),
            "alpha_pattern": dict(settings.alpha_pattern),
            "target_modules": settings.target_modules,
        }


class Dora(Lora):
    """LoRA, and a magnitude for each output row."""

    def served_as(self, settings: LoraSettings) -> ServedAs:
        return "DoRA"

    def _keys(self, settings: LoraSettings) -> dict[str, Any]:
        return super()._keys(settings) | {"use_dora": True}


def _initialisation(settings: LoraSettings) -> str:
    return initialisation(settings.init_lora_weights) if isinstance(settings, LoraMethod) else ""
