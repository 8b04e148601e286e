"""Recipes: read as written, refused with the field's name."""

from itertools import pairwise
from pathlib import Path

import pytest

from narrows.errors import NarrowsError
from narrows.training.recipe import Recipe
from narrows.training.schedule import learning_rate_at, mtp_weight_at
from tests.training.corpora import RECIPE, recipe


def read(folder: Path, text: str) -> Recipe:
    (folder / "recipe.toml").write_text(text)
    return Recipe.from_file(folder / "recipe.toml")


def test_a_recipe_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, RECIPE)
    assert (found.steps, found.trained_context, found.precision) == (10, 64, "official")
    assert found.config(4096).hidden_size == 64
    assert found.config(4096).trained_context == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "test"', 'name = "test"\nsede = 1', "the field sede is not known"),
        ("steps = 10", "step = 10", "the field stages.0.(step is not known|steps is missing)"),
        ("steps = 10", 'steps = 10\nmtp = "no"', "stages.0.mtp: Input should be a valid boolean"),
        ("hidden_size = 64", 'hidden_size = 64\nfim_layout = "pms"', "model.*fim_layout = 'pms'"),
        ("steps = 10", "steps = 0", "stages.0.steps: Input should be greater than 0"),
        ("steps = 10", 'steps = "10"', "stages.0.steps: Input should be a valid integer"),
        ("rows_per_pass = 128", "rows_per_pass = 32", "rows_per_pass 32 is below sample_length 64"),
        ("learning_rate = 1e-2", "learning_rate = nan", "optimiser.learning_rate: Input should be (greater|a finite)"),
        ("format = 1", "format = 2", "format: Input should be 1"),
        ("qk_rope_head_dim = 16", "qk_rope_head_dim = 15", "model.*qk_rope_head_dim"),
        ("hidden_size = 64", "hidden_size = 64\nvocab_size = 99", "model.vocab_size follows from the corpus"),
        ('"sliding_attention"', '"round_attention"', "round_attention"),
        ("[model]", "[model", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(NarrowsError, match=rf"recipe\.toml.*{message}"):
        read(tmp_path, RECIPE.replace(old, new, 1))


def test_an_absent_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(NarrowsError, match=r"nowhere\.toml cannot be read \(No such file"):
        Recipe.from_file(tmp_path / "nowhere.toml")


def test_the_learning_rate_warms_up_stays_and_falls_to_its_end() -> None:
    made = recipe([{"steps": 100, "sample_length": 16, "rows_per_pass": 16}])
    rates = [learning_rate_at(made, step) for step in range(100)]
    assert rates[0] == pytest.approx(5e-3)
    assert rates[1:50] == [pytest.approx(1e-2)] * 49
    assert all(later < earlier for earlier, later in pairwise(rates[49:]))
    assert rates[-1] == pytest.approx(1e-3)
    assert [mtp_weight_at(made, step) for step in (49, 50)] == [0.3, 0.1]
