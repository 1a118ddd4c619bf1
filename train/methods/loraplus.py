"""LoRA+ (https://arxiv.org/abs/2402.12354): a higher learning rate for B than for A."""

from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer

from train.methods.method import base_of


def use_loraplus(trainer: Trainer, ratio: float) -> None:
    """Give the trainer the recipe's optimiser with two rates."""
    assert isinstance(trainer.model, PeftModel)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args, base_of(trainer.model))
    rate = options.pop("lr")
    trainer.optimizer = create_loraplus_optimizer(
        trainer.model,
        optimizer_class,
        lr=rate,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        loraplus_lr_embedding=rate,
        **options,
    )
