"""Checkpoint files: containers and settings of training scripts, and what is never read."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tessella.errors import ArtifactError, ConfigError
from tessella.exchange.checkpoints import flattened, read_checkpoint
from tessella.exchange.unpickling import RefusedError, read_pickled

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1, 2])}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items()
    )


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": WEIGHTS, "optimizer": {"state": {}}},
        {"model": {"b": torch.ones(1)}, "ema": WEIGHTS},
        {"module": WEIGHTS, "model": {}},
    ],
)
def test_weights_are_found_in_what_training_scripts_write(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    tensors, _ = read_pickled(saved(tmp_path / "x.pt", content))
    assert same(tensors)


def test_settings_come_along_and_objects_are_not_built(tmp_path: Path) -> None:
    args = argparse.Namespace(n_head=4, gpt_model="GPT-B", path=None)
    tensors, settings = read_pickled(saved(tmp_path / "x.pt", {"model": WEIGHTS, "args": args}))
    assert same(tensors)
    assert settings == {"n_head": 4, "gpt_model": "GPT-B"}


def test_a_pickle_that_would_run_is_refused_by_the_name_it_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(RefusedError, match=r"it asks for (posix|os)\.mkdir"):
        read_pickled(saved(tmp_path / "x.pt", {"a": WEIGHTS["a.weight"], "b": Evil(folder)}))
    plain = tmp_path / "y.pt"
    plain.write_bytes(pickle.dumps(Evil(folder), protocol=2))
    with pytest.raises(RefusedError):
        read_pickled(plain)
    assert not folder.exists()


@pytest.mark.parametrize("content", [{}, {"a": 1}, [WEIGHTS], {"a": torch.eye(3).to_sparse()}])
def test_what_holds_no_plain_tensors_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(RefusedError):
        read_pickled(saved(tmp_path / "x.pt", content))


def test_another_process_reads_it(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    args = argparse.Namespace(n_head=4)
    file = saved(tmp_path / "x.ckpt", {"state_dict": wrapped, "args": args})
    read = read_checkpoint(file)
    assert same(read.tensors)
    assert read.facts == {"n_head": 4}


def test_another_process_says_why_it_does_not_read_it(tmp_path: Path) -> None:
    evil = saved(tmp_path / "x.pt", {"a": Evil(tmp_path / "made")})
    with pytest.raises(ArtifactError, match=r"it asks for .*mkdir.*save_file"):
        read_checkpoint(evil)
    assert not (tmp_path / "made").exists()


def test_few_numbers_that_stand_for_many_are_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(ArtifactError, match="its tensors take"):
        read_checkpoint(saved(tmp_path / "x.pt", {"a": huge}))


def test_facts_stand_in_the_metadata_and_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    inner = {"resolution": 32, "ch": 8}
    metadata = {"config": json.dumps({"ddconfig": inner, "n_embed": 4, "ch": 16})}
    save_file(WEIGHTS, file, metadata=metadata)
    assert read_checkpoint(file).facts == {"resolution": 32, "ch": 16, "n_embed": 4}
    (tmp_path / "config.json").write_text('{"n_embed": 5}')
    assert read_checkpoint(tmp_path).facts["n_embed"] == 5
    assert flattened({"a": {"b": {"c": 1}}, "c": 2}) == {"c": 2}


def test_a_part_of_the_tensors_is_named_by_its_prefix(tmp_path: Path) -> None:
    save_file({f"x.{name}": tensor for name, tensor in WEIGHTS.items()}, tmp_path / "x.safetensors")
    read = read_checkpoint(tmp_path / "x.safetensors")
    assert same(read.below("x.").tensors)
    with pytest.raises(ConfigError, match=r"no tensor .* begins with 'y\.'"):
        read.below("y.")


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        read_checkpoint(tmp_path)
    for name in "ab":
        save_file(WEIGHTS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="several checkpoints"):
        read_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "c.pt")
