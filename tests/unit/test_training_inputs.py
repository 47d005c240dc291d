"""Arguments of training: paths, iterables, wrong types, sizes that no machine can hold."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tessella as ts
from tessella.config import Recipe, TrainConfig, from_dict, load_recipe
from tessella.errors import ConfigError, InputError
from tessella.models import MODELS
from tessella.training import batch_size, train_recipe, trainer
from tessella.training.optimizers import parameter_groups
from tessella.training.stream import Stream
from tessella.training.tasks import DensityTask
from tessella.training.train_keywords import TrainOptions

GRID = ts.Grid(4, 4, 1, 4)
OPTIONS: dict[str, Any] = {"steps": 6, "batch": 8, "validate_every": 3, "device": "cpu"}


def images(n: int = 40, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.integers(0, 4, (n, 4, 4, 1)) * 85).astype(np.uint8)


def model(**sizes: Any) -> Any:
    return ts.create("gated-pixelcnn", GRID, **({"layers": 1, "hidden": 4} | sizes))


def train(out: Path, given: Any, net: Any = None, **options: Any) -> trainer.Run:
    net = model() if net is None else net
    return ts.train(net, given, out=out, say=lambda line: None, **(OPTIONS | options))


class Batches:
    """Arrays of uneven sizes, again and again."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.passes = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        for number, size in enumerate(self.sizes):
            yield images(size, seed=number)


@pytest.mark.parametrize("path", ["photos", Path("photos")])
def test_a_path_is_refused_with_the_line_that_loads_a_folder(tmp_path: Path, path: Any) -> None:
    with pytest.raises(InputError, match=r'data\.load\(DataConfig\("folder:photos"'):
        train(tmp_path / "run", path)
    with pytest.raises(InputError, match=r"valid must be an array.*folder:photos"):
        train(tmp_path / "run", images(), valid=path)
    assert not (tmp_path / "run").exists()


def test_a_data_loader_is_trained_on_in_its_order(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(images())), batch_size=7)
    run = train(tmp_path / "run", loader, valid=images(10, 1))
    assert run.progress.step == 6
    assert isinstance(run.load(), ts.Generator)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["train"] == {"source": "iterable", "shape": [4, 4, 1], "count": 40}
    assert ts.evaluate(run.path, images(10, 2))["baseline_bits_per_dim"] > 0


def test_a_loader_of_images_and_labels_trains_a_conditional_model(tmp_path: Path) -> None:
    x = torch.from_numpy(images())
    labels = torch.arange(40) % 3
    net = ts.create("gated-pixelcnn", GRID, classes=3, layers=1, hidden=4)
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    run = train(tmp_path / "run", loader, net, valid=x[:9].numpy(), valid_labels=labels[:9].numpy())
    assert run.progress.step == 6


def test_a_tokenizer_trains_on_an_iterable(tmp_path: Path) -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(4, 4), channels=1, codebook_size=8, hidden=8, code_dim=4, downsample=2
    )
    run = train(tmp_path / "run", Batches(9, 9), tokenizer, valid=images(10, 1))
    assert run.load().name == "vqvae"


def test_a_stream_gives_its_images_in_order_and_begins_anew() -> None:
    source = Batches(3, 5)
    stream = Stream(source, channels=1, size=(4, 4))
    order = stream.order(4, seed=0)
    generator = torch.Generator()
    seen = [stream.batch(order.at(step), generator, torch.device("cpu"))[0] for step in range(4)]
    once = torch.from_numpy(np.concatenate(list(source)))
    assert torch.equal(torch.cat(seen), torch.cat([once, once]))
    assert len(stream) == 8


def test_single_images_are_taken_too() -> None:
    single = list(images(5))
    stream = Stream(TensorDatasetOf(single), channels=1, size=None)
    x, labels = stream.batch(torch.arange(5), torch.Generator(), torch.device("cpu"))
    assert torch.equal(x, torch.from_numpy(np.stack(single)))
    assert labels is None


class TensorDatasetOf:
    """A data set that is read by numbers, as those of PyTorch are."""

    def __init__(self, items: list[np.ndarray]) -> None:
        self.items = items

    def __getitem__(self, place: int) -> np.ndarray:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (lambda: iter([images()]), {}, InputError, "read once"),
        (lambda: Batches(4), {}, InputError, "give valid="),
        (lambda: Batches(4), {"resume": True, "valid": images(4)}, InputError, "order of its"),
        (lambda: Batches(), {"valid": images(4)}, InputError, "gave none"),
        (lambda: Batches(4), {"valid": images(4), "devices": 2}, ConfigError, "one process"),
        (lambda: Batches(4), {"valid": Batches(4)}, InputError, "valid must be an array"),
        (lambda: Batches(4), {"valid": images(4), "labels": [0]}, InputError, "labels itself"),
        (lambda: object(), {}, InputError, "got object"),
        (lambda: {"a": 1}, {}, InputError, "got dict"),
        (lambda: 5, {}, InputError, "got int"),
        (lambda: None, {}, InputError, "got NoneType"),
    ],
)
def test_other_things_are_refused_with_the_reason(
    tmp_path: Path, given: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(tmp_path / "run", given(), **options)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (images(3).astype(np.float32), "uint8"),
        (np.zeros((2, 8, 8, 1), np.uint8), "4x4"),
        (np.zeros((2, 4, 4, 3), np.uint8), "channels"),
        ("a.png", "it gave str"),
        ((1, 2, 3), "3 things"),
    ],
)
def test_images_of_an_iterable_are_checked(tmp_path: Path, item: Any, message: str) -> None:
    class Items:
        def __iter__(self) -> Iterator[Any]:
            yield item

    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", Items(), valid=images(4))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net": 5}, InputError, "train takes a density model"),
        ({"tokenizer": "runs/x"}, InputError, "tokenizer must be a Tokenizer"),
        ({"resume": "yes"}, InputError, "resume must be True or False"),
        ({"say": 3}, InputError, "say must be a function"),
        ({"out": None}, InputError, "out must be the path"),
        ({"labels": "abc"}, InputError, "labels must be"),
        ({"seed": "x"}, ConfigError, "train.seed must be of type int"),
        ({"minutes": None}, ConfigError, "train.minutes must be of type float"),
        ({"batch": 2.5}, ConfigError, "train.batch must be of type int"),
        ({"betas": 0.9}, ConfigError, "train.betas must be a list"),
        ({"betas": (0.9, 1.5)}, ConfigError, r"train.betas must lie in \[0, 1\)"),
        ({"minuts": 1}, ConfigError, "did you mean 'minutes'"),
        ({"lables": [0]}, ConfigError, "did you mean 'labels'"),
        ({"seed": 2**70}, ConfigError, "train.seed must be at most"),
        ({"devices": 10**9}, ConfigError, "train.devices must be at most"),
        ({"batch": 10**9}, ConfigError, "train.batch must be at most 1048576"),
    ],
)
def test_arguments_of_a_wrong_type_or_size_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"out": tmp_path / "run", "say": lambda line: None} | OPTIONS | change
    net = arguments.pop("net", model())
    with pytest.raises(error, match=message):
        ts.train(net, images(), **arguments)


def test_a_batch_beyond_this_machine_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "machine_memory", lambda: 1_000_000)
    with pytest.raises(ConfigError, match=r"train.batch=65536 examples take .* 36 training images"):
        train(tmp_path / "run", images(), batch=65536)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.layers=1000000000", "model.layers must be at most 1000"),
        ("model.hidden=2147483648", "model.hidden must be at most 1048576"),
        ("model.seed=99999999999999999999999", "model.seed must be at most"),
        ("train.batch=1000000000", "train.batch must be at most"),
        ("train.minutes=1e999", "finite|at least|must be"),
    ],
)
def test_recipes_of_absurd_sizes_are_refused_before_anything_is_built(
    override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [override])


def test_sizes_in_tables_and_lists_are_bounded_too() -> None:
    with pytest.raises(ConfigError, match="tokenizer.options.depth must be at most"):
        load_recipe("digits-vqvae", ["tokenizer.options={depth=100000}"])
    with pytest.raises(ConfigError, match="tokenizer.multipliers must be at most"):
        load_recipe("digits-vqgan", ["tokenizer.multipliers=[1, 1073741824]"])
    with pytest.raises(ConfigError, match="adversarial.layers must be at most 16"):
        load_recipe("digits-vqgan", ["adversarial.layers=40"])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", ["model.hidden=1000000", "model.layers=50"]),
        ("digits-vqvae", ["tokenizer.hidden=60000"]),
        ("digits-vae", ["vae.hidden=60000"]),
    ],
)
def test_a_model_that_memory_cannot_hold_is_refused_before_it_takes_any(
    tmp_path: Path, name: str, sizes: list[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"take (smaller sizes|fewer channels)"):
        train_recipe(load_recipe(name, sizes), tmp_path / "run", say=lambda line: None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert not (tmp_path / "run").exists()


def test_the_keywords_of_train_are_the_fields_of_its_configuration() -> None:
    fields = typing.get_type_hints(TrainConfig)
    assert typing.get_type_hints(TrainOptions) == fields


@pytest.mark.parametrize("name", [name for name in MODELS if name != "independent"])
def test_biases_and_gains_of_any_shape_are_not_decayed(name: str) -> None:
    task = DensityTask(ts.create(name, ts.Grid(4, 4, 1, 4)), None)
    decayed, undecayed = parameter_groups(task)
    assert len(decayed) + len(undecayed) == len(list(task.parameters()))
    for path, parameter in task.named_parameters():
        spared = path.rpartition(".")[2] in ("bias", "hidden_bias", "gain")
        expected = undecayed if spared or parameter.dim() <= 1 else decayed
        assert any(parameter is other for other in expected), path


def test_a_resumed_recipe_travels_as_it_was(tmp_path: Path) -> None:
    recipe = load_recipe(
        "digits", ["model.layers=1", "model.hidden=4", "train.steps=2", "train.minutes=0",
                   "data.limit=20", "train.device=cpu"]
    )  # fmt: skip
    train_recipe(recipe, tmp_path / "run", say=lambda line: None)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert from_dict(Recipe, {k: v for k, v in stored.items() if v is not None}) == recipe


def test_misspelt_names_do_not_wait_for_torch() -> None:
    script = (
        "import sys\n"
        "from tessella.config import load_recipe\n"
        "from tessella.errors import ConfigError\n"
        "for given in sys.argv[1:]:\n"
        "    try:\n"
        "        load_recipe('digits', [given])\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    wrong = ["model.name=gated-pixlcnn", "model.head=categorial", "model.layrs=3", "data.sorce=x"]
    done = subprocess.run(
        [sys.executable, "-c", script, *wrong], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    meant = ["gated-pixelcnn", "categorical", "layers", "source"]
    assert [f"did you mean {word!r}" in line for word, line in zip(meant, lines, strict=True)] == [
        True
    ] * 4


def test_a_vae_takes_no_symbols(tmp_path: Path) -> None:
    vae = ts.create_vae(image_size=(8, 8), channels=1, hidden=8, latent=2)
    symbols = torch.zeros(20, 8, 8, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="images must be uint8"):
        ts.train(vae, symbols, steps=1, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("shape", "says"),
    [((9, 9), "the images are 9x9x1"), ((8, 8, 3), "channel"), ((8, 8), "labels must be")],
)
def test_held_out_images_that_do_not_fit_are_named(
    tmp_path: Path, shape: tuple[int, ...], says: str
) -> None:
    generator = np.random.default_rng(0)
    file = tmp_path / "x.npz"
    np.savez(
        file,
        train=generator.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        train_labels=np.arange(40) % 3,
        valid=generator.integers(0, 256, (20, *shape), dtype=np.uint8),
        test=generator.integers(0, 256, (20, 8, 8), dtype=np.uint8),
    )
    options = ["data.levels=0", "model.layers=1", "model.hidden=8", f"data.source=npz:{file}"]
    conditional = says.startswith("labels")
    recipe = load_recipe("digits", [*options, f"model.conditional={str(conditional).lower()}"])
    expected = "the split valid of npz:.*give labels" if conditional else f"the split valid.*{says}"
    with pytest.raises(InputError, match=expected):
        train_recipe(recipe, tmp_path / "run")
    net = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 256), layers=1, hidden=4, classes=3)
    held_out = generator.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    with pytest.raises(InputError, match=r"valid: labels must be \[20\] integers in 0\.\.2"):
        trainer.train(
            net,
            held_out,
            labels=np.arange(20) % 3,
            valid=held_out,
            valid_labels=np.arange(20) % 4,
            out=tmp_path / "other",
            steps=1,
        )
