"""Recipes: strict keys, types, overrides; the ones that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.config import Recipe, apply_overrides, from_dict, load_recipe, recipe_names, to_dict
from tessella.errors import ConfigError
from tessella.grid import Grid

GOOD = {"model": {"name": "gated-pixelcnn", "layers": 3}, "train": {"minutes": 1}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_is_valid_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.about
    assert from_dict(Recipe, {k: v for k, v in to_dict(recipe).items() if v is not None}) == recipe


def test_sizes_are_what_the_table_holds_beyond_its_keys() -> None:
    recipe = from_dict(Recipe, GOOD)
    assert recipe.model.sizes == {"layers": 3}
    assert recipe.train.minutes == 1.0


def test_overrides_are_read_as_toml_and_bare_words_as_text() -> None:
    changed = apply_overrides(
        GOOD, ["train.minutes=2.5", "model.head=logistic-mixture", "data.flip=true", "a.b=[1, 2]"]
    )
    assert changed["train"] == {"minutes": 2.5}
    assert changed["model"]["head"] == "logistic-mixture"
    assert changed["data"] == {"flip": True}
    assert changed["a"] == {"b": [1, 2]}
    assert GOOD["train"] == {"minutes": 1}, "what is given stays as it is"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.minuts=1", "did you mean 'minutes'"),
        ("trian.minutes=1", "did you mean 'train'"),
        ("train.batch=many", "train.batch must be of type int"),
        ("train.batch=true", "train.batch must be of type int"),
        ("train.betas=[0.9]", "list of 2"),
        ("data.crop=middle", "'center', 'squash', 'tiles'"),
        ("train.minutes=0", "limit"),
        ("tokenizer.name=vqvae", "exactly one"),
        ("train=1", "must be a table"),
        ("train.minutes.x=1", "is a value"),
        ("nonsense", "table.key=value"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Recipe, apply_overrides(GOOD, [override]))


def test_another_model_takes_its_own_sizes() -> None:
    shipped = load_recipe("digits").model
    other = load_recipe("digits", ["model.name=made", "model.hidden=7"]).model
    same = load_recipe("digits", ["model.layers=9", 'model.name="gated-pixelcnn"']).model
    assert (other.name, other.sizes) == ("made", {"hidden": 7})
    assert same.sizes == {**shipped.sizes, "layers": 9}


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[model]\nname = "independent"\n[train]\nsteps = 3\n')
    assert load_recipe(str(tmp_path / "mine.toml"), ["train.steps=4"]).train.steps == 4


@pytest.mark.parametrize("sizes", [(0, 1, 1, 2), (1, 1, 1, 1), (1, 2.0, 1, 2), (1, 1, True, 2)])
def test_a_grid_has_positive_sizes_and_two_levels(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="Grid"):
        Grid(*sizes)


def test_a_grid_counts_in_the_order_of_generation() -> None:
    grid = Grid(2, 3, 2, 4)
    assert [grid.place(t) for t in (0, 1, 2, 6, 11)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (1, 0, 0),
        (1, 2, 1),
    ]
    assert grid.bits_per_dim(grid.nats(1.5)) == pytest.approx(1.5)
