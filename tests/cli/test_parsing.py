"""Mistakes in the words of a command: one sentence, the nearest name, and no wait for torch."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tessella.cli import checks
from tessella.cli import verb_options as options
from tessella.cli.entry import main
from tessella.cli.flags import Within, flags, given_fields
from tessella.cli.parsing import parse
from tessella.config import TrainConfig
from tessella.errors import InputError, TessellaError

MISTAKES = {
    "sampel digits": "'sampel' is no verb of tessella; did you mean 'sample'? Verbs: demo, train,",
    "sample digits --sede 3": "sample has no option --sede; did you mean '--seed'?",
    "sample digits --temprature 0.5": "did you mean '--temperature'?",
    "sample digits --n": "--n needs a value",
    "sample digits --n many": "--n must be a whole number, got 'many'",
    "train digits --minutes long": "--minutes must be a number, got 'long'",
    "train digits --device gpu": "--device must be one of auto, cpu, cuda, got 'gpu'",
    "eval digits --split tset": "got 'tset'; did you mean 'test'?",
    "sample": "sample needs RUN: Run directory, or the name of a bundled model",
    "detokenize run": "detokenize needs CODES: Directory of the codes",
    "sample digits more": "sample takes no further words, got more",
    "train digts": "unknown recipe 'digts'; did you mean 'digits'?",
    "train digits train.minuts=3": "did you mean 'minutes'?",
    "train digits data.szie=8": "did you mean 'size'?",
    "train digits --data mnsit:x": "unknown data source 'mnsit'; did you mean 'mnist'?",
    "eval digits data.szie=8": "did you mean 'size'?",
    "eval digits --data floder:x": "did you mean 'folder'?",
    "sample digit": "did you mean 'digits'?",
    "train digits --model pixelcn": "unknown model 'pixelcn'; did you mean 'pixelcnn'?",
    "train digits model.layer=3": "did you mean 'layers'?",
    "train digits model.head=odinal": "did you mean 'ordinal'?",
    "train digits-vqvae tokenizer.hiden=8": "did you mean 'hidden'?",
    "train digits-vqvae tokenizer.options.codebok_size=8": "did you mean 'codebook_size'?",
    "check gated-pixelcn": "did you mean 'gated-pixelcnn'?",
    "check vq --kind model": "unknown model 'vq'",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_sentence_with_the_nearest_name(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert MISTAKES[words] in err
    assert err.count("\n") == 1
    words_of_message = err.removeprefix("tessella: ").replace(":", "").split()
    doubled = [a for a, b in itertools.pairwise(words_of_message) if a == b]
    assert not doubled


@pytest.mark.parametrize("words", MISTAKES)
def test_a_misspelt_name_is_answered_without_torch(words: str) -> None:
    code = f"""
import sys
from tessella.cli.entry import main
assert main({words.split()!r}) == 2
assert "torch" not in sys.modules, "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("verb", options.VERBS)
def test_every_verb_takes_plugins(verb: str) -> None:
    assert any(flag.name == "--plugin" for flag in flags(options.VERBS[verb]))


def numbers() -> list[tuple[str, str]]:
    """Every option of every verb that takes a number with bounds."""
    found = []
    for verb, cls in options.VERBS.items():
        for flag in flags(cls):
            if flag.note(Within) is not None:
                found.append((verb, flag.name))
    return found


@pytest.mark.parametrize(("verb", "name"), numbers())
def test_every_number_of_every_verb_is_checked(verb: str, name: str) -> None:
    several = {"detokenize": ["run", "codes"], "check": ["x"], "data": ["verify", "digits"]}
    positional = several.get(verb, ["digits"])
    words = [verb, *([] if verb == "demo" else positional), f"{name}=-3"]
    with pytest.raises(InputError, match=f"{name} must (lie in|be)"):
        checks.check_values(parse(words))


def test_no_number_goes_unchecked() -> None:
    # The rule of sampling and the steps of masked models check their values themselves.
    rule = {"--temperature", "--top-k", "--top-p", "--guidance"}
    unmasking = {"--steps", "--choice-temperature"}
    for cls in options.VERBS.values():
        draws = cls in (options.Sample, options.Complete)
        elsewhere = rule | unmasking if draws else rule
        for flag in flags(cls):
            is_number = {int, float} & {flag.hint, *getattr(flag.hint, "__args__", ())}
            if is_number and flag.takes_value and flag.name not in elsewhere:
                assert flag.note(Within) is not None, f"{cls.__name__} {flag.name}"


def test_training_flags_are_fields_of_the_configuration_with_its_help() -> None:
    command = parse(["train", "digits", "--minutes", "3", "--threads", "2", "--compile"])
    given = given_fields(command, TrainConfig)
    assert given == {"minutes": 3.0, "threads": 2, "compile": True}
    assert set(given) < {field.name for field in dataclasses.fields(TrainConfig)}


def test_a_limit_replaces_those_of_the_recipe() -> None:
    from tessella.cli.recipes import new_recipe

    command = parse(["train", "digits", "--steps", "5", "train.batch=8"])
    assert isinstance(command, options.Train)
    recipe = new_recipe(command)
    assert (recipe.train.steps, recipe.train.minutes, recipe.train.batch) == (5, 0, 8)


@pytest.mark.parametrize("out", ["/", "//", "/tmp/..", "x/../../../../../../../../../.."])
def test_the_root_is_no_output(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TessellaError):
        checks.check_output(out, (".png", ".npz", "/"))
    assert main(["sample", "digits", "--out", "/"]) == 2
    assert "root" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sample", "complete", "eval", "tokenize", "detokenize", "info"])
def test_verbs_that_do_not_train_load_no_engine(verb: str) -> None:
    # Each of these takes as long to import as torch.
    code = f"import sys, tessella.cli.verbs.{verb}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not {"lightning_fabric", "torch._dynamo", "matplotlib", "tensorboard"} & set(loaded)
