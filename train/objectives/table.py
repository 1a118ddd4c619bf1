"""The objectives by name; a new one is one file and one line here."""

from collections.abc import Mapping

from config.training import TrainingConfig
from train.errors import RecipeError
from train.objectives.objective import Objective
from train.objectives.preference import Dpo, Kto, Orpo
from train.objectives.reinforcement import Reinforcement
from train.objectives.reward import Reward
from train.objectives.sft import Sft
from train.objectives.text import Text

OBJECTIVES: Mapping[str, Objective] = {
    "sft": Sft(),
    "dpo": Dpo(),
    "orpo": Orpo(),
    "kto": Kto(),
    "text": Text(),
    "reward": Reward(),
    "grpo": Reinforcement(),
    "rloo": Reinforcement(),
}


def objective_of(config: TrainingConfig) -> Objective:
    """The objective of a domain.

    Raises:
        RecipeError: It is not built yet.
    """
    objective = OBJECTIVES.get(config.objective.name)
    if objective is None:
        raise RecipeError(
            f"`lorikeet train` cannot train `objective: {config.objective.name}` yet; it can train: "
            f"{', '.join(OBJECTIVES)}."
        )
    return objective
