"""A run that diverges is stopped; nothing else is."""

from math import inf, nan

import pytest

from config.training import RecipeConfig
from train.divergence import PATIENCE, DivergenceCheck, StepLosses
from train.errors import DivergenceError


def check_of(**recipe: object) -> DivergenceCheck:
    return DivergenceCheck("medical", RecipeConfig.model_validate(recipe))


def add_all(check: DivergenceCheck, norms: list[float], first: int = 1) -> None:
    for step, norm in enumerate(norms, first):
        check.add(StepLosses(step, 0.5, norm))


@pytest.mark.parametrize(("loss", "norm", "what"), [(nan, 1.0, "loss"), (inf, 1.0, "loss"), (0.5, nan, "gradient")])
def test_a_step_that_is_not_finite_ends_the_run(loss: float, norm: float, what: str) -> None:
    check = check_of(learning_rate=3e-3)
    add_all(check, [1.5, 2.5])
    with pytest.raises(DivergenceError) as raised:
        check.add(StepLosses(3, loss, norm))
    text = str(raised.value)
    assert f"'medical' diverges: the {what} is not finite since step 3" in text
    assert "Last good step 2: loss 0.5, gradient norm 2.5" in text
    assert "`recipe.learning_rate` (0.003; try 0.001)" in text
    assert "Nothing was published" in text


def test_a_first_step_without_a_number_is_said_so() -> None:
    with pytest.raises(DivergenceError, match=r"not finite since step 1 .*no good step before"):
        check_of().add(StepLosses(1, nan, nan))


def test_a_held_out_loss_without_a_number_ends_the_run() -> None:
    with pytest.raises(DivergenceError, match="held-out loss is not finite at step 20"):
        check_of().add_held_out(20, nan)


def test_gradients_that_stay_excessive_end_the_run() -> None:
    check = check_of()
    add_all(check, [1.0] * 10 + [500.0] * (PATIENCE - 1))
    with pytest.raises(DivergenceError, match=r"over 100 times .* since step 11 .*Last good step 10"):
        check.add(StepLosses(10 + PATIENCE, 4.0, 500.0))


@pytest.mark.parametrize(
    "norms",
    [
        [1.0] * 10 + ([500.0] * (PATIENCE - 1) + [1.0]) * 5,  # spikes that end
        [0.001] * 50 + [5.0] * 20,  # small gradients that become usual ones
        [50.0] * 20,  # large from the start, as with a summed loss
        [float(norm) for norm in range(1, 60)],
    ],
)
def test_other_gradients_do_not(norms: list[float]) -> None:
    add_all(check_of(), norms)


def test_a_trainer_without_a_gradient_norm_is_checked_by_its_loss() -> None:
    check = check_of()
    check.add(StepLosses(1, 0.5, None))
    with pytest.raises(DivergenceError, match=r"Last good step 1: loss 0\.5\. "):
        check.add(StepLosses(2, nan, None))
