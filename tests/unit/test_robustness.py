"""A run that is killed, or meets a full disk or a flipped bit, ends as one that nothing happened
to."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

import tessella as ts
from tessella import files
from tessella.cli import entry
from tessella.errors import ArtifactError, TrainingError
from tessella.training import checkpoint
from tessella.training.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
GRID = ts.Grid(4, 4, 1, 4)
OPTIONS: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "warmup": 2,
    "validate_every": 2,
    "checkpoint_every": 1,
}


class Killed(BaseException):
    """The process is gone."""


class Disk:
    """Counts every change of the disk and, from change ``cut`` on, makes none.

    Args:
        patch: puts it in place of the functions that change the disk.
        cut: changes that still happen; of the next one, a half.
        error: what later changes raise. After a :class:`Killed` nothing changes; on a full disk
            things can be removed.
    """

    def __init__(self, patch: pytest.MonkeyPatch, cut: float, error: BaseException) -> None:
        self.cut, self.error, self.changes = cut, error, list[str]()
        removals = [] if isinstance(error, OSError) else ["unlink", "rmdir"]
        patch.setattr(
            os, "fsync", lambda handle: None
        )  # nothing here outlives the machine, and it takes long
        for name in ("fsync", "replace", "rename", "mkdir", *removals):
            patch.setattr(os, name, self._guard(name, getattr(os, name), lambda *_: None))
        patch.setattr(Path, "write_bytes", self._guard("write", Path.write_bytes, _half_a_file))
        patch.setattr(
            safetensors.torch,
            "save_file",
            self._guard("save", safetensors.torch.save_file, _half_tensors),
        )
        patch.setattr(
            files, "append_line", self._guard("append", files.append_line, _half_a_line, wrap=True)
        )

    def _guard(
        self, name: str, act: Callable[..., Any], half: Callable[..., None], wrap: bool = False
    ) -> Any:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if len(self.changes) < self.cut:
                self.changes.append(name)
                return act(*arguments, **options)
            if len(self.changes) == self.cut:
                self.changes.append(name)
                half(*arguments)
            if wrap and isinstance(self.error, OSError):
                raise ArtifactError(f"cannot write {arguments[0]}: {self.error.strerror}")
            raise self.error

        return guarded


def _half_a_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])


def _half_tensors(tensors: Any, path: Path) -> None:
    (path.parent / ".tmpA1b2C3").write_text("what a writer of native code leaves")


def _half_a_line(path: Path, line: str) -> None:
    with Path(path).open("ab") as file:
        file.write(line.encode()[: len(line) // 2])


def images(n: int = 24) -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 4, (n, 4, 4, 1)) * 85).astype(np.uint8)


def tokenizer() -> ts.Tokenizer:
    return ts.create_tokenizer(
        "vqvae",
        image_size=(4, 4),
        channels=1,
        codebook_size=8,
        hidden=8,
        code_dim=4,
        downsample=2,
        residual_blocks=1,
    )


def train(out: Path, kind: str = "density", **options: Any) -> list[str]:
    """Train a tiny model from the beginning, or resume it. Returns what was said."""
    said: list[str] = []
    options = OPTIONS | options | {"say": said.append, "out": out}
    if kind == "tokenizer":
        ts.train(tokenizer(), images(), **options)
    elif kind == "prior":
        prior = ts.create("gated-pixelcnn", tokenizer().grid(), layers=1, hidden=4)
        ts.train(prior, images(), tokenizer=tokenizer(), **options)
    else:
        ts.train(
            ts.create("gated-pixelcnn", GRID, layers=1, hidden=4, dropout=0.2), images(), **options
        )
    return said


def go_on(out: Path, kind: str = "density", **options: Any) -> list[str]:
    """What a person does after a crash: resume, or start again where there is no run yet."""
    return train(out, kind, resume=(out / "run.json").exists(), **options)


def left(out: Path) -> dict[str, Any]:
    """All that a run leaves but its times: the log, the progress, all tensors, the names of all
    files.

    Of the checkpoints only the newest counts: a kill can leave one more of the old ones.
    """
    facts = json.loads((out / "run.json").read_text())
    names = {path for path in out.rglob("*") if "tensorboard" not in path.parts}
    for path in checkpoint.found(out)[:-1]:
        names -= {path, *path.rglob("*")}
    weights = [path for path in out.rglob("*.safetensors") if "checkpoints" not in path.parts]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    untimed = [{key: line[key] for key in line if "seconds" not in key} for line in lines]
    tensors, state, problems = checkpoint.newest(out)
    assert not problems
    return {
        "names": sorted(path.relative_to(out).as_posix() for path in names),
        "status": facts["status"],
        "progress": facts["progress"] | {"seconds": 0, "training": 0, "validating": 0},
        "state": state["progress"] | {"seconds": 0, "training": 0, "validating": 0},
        "log": untimed,
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "weights": {str(path.relative_to(out)): path.read_bytes() for path in weights},
    }  # fmt: skip


@pytest.fixture(scope="module", params=["density"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(out, request.param)
    return out


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """One small checkpoint."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = copy.deepcopy(module)
    checkpoint.save(
        tmp_path, 7, module, average, optimizer, {"progress": {"step": 7, "best": 1.5}, "task": {}}
    )
    return checkpoint.found(tmp_path)[0]


def flipped(path: Path, every: int = 1) -> Iterator[int]:
    """Flip bits of a file, one at a time; the file is whole again afterwards."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), every):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield bit
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "every"), [("manifest.json", 1), ("state.json", 1), ("state.safetensors", 61)]
)
def test_every_flipped_bit_of_a_checkpoint_is_noticed(saved: Path, name: str, every: int) -> None:
    checkpoint.verify(saved)
    for _ in flipped(saved / name, every):
        with pytest.raises(ArtifactError):
            checkpoint.verify(saved)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "state.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_damaged(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        checkpoint.newest(saved.parents[1])


@pytest.mark.parametrize("listed", [{}, {"state.json": {}}, [], "state.json", None])
def test_a_manifest_must_list_both_files(saved: Path, listed: Any) -> None:
    files.write_json(saved / "manifest.json", listed)
    with pytest.raises(ArtifactError, match="does not list state.safetensors and state.json"):
        checkpoint.verify(saved)


def test_no_flipped_bit_of_saved_tensors_gives_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    files.write_tensors(
        path, {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "e": torch.empty(0, 2)}
    )
    whole = {
        name: (t.dtype, t.shape, t.numpy().tobytes())
        for name, t in files.read_tensors(path).items()
    }
    noticed = 0
    for _ in flipped(path, every=3):
        try:
            read = files.read_tensors(path)
        except ArtifactError:
            noticed += 1
        else:  # only a name or a value in the metadata beside the hash may change unnoticed
            assert {
                name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in read.items()
            } == whole
    assert noticed > 0.8 * 8 / 3 * path.stat().st_size


def test_a_flipped_bit_of_a_saved_model_is_noticed(straight: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    for _ in zip(range(5), flipped(run / "model.safetensors", every=8 * 997 + 3), strict=False):
        with pytest.raises(ArtifactError, match=r"model\.safetensors"):
            ts.load(run)


def test_tensors_written_without_a_hash_stay_readable(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"format": "pt"}
    )
    assert torch.equal(files.read_tensors(tmp_path / "x.safetensors")["w"], torch.ones(2))


def test_equal_tensors_make_equal_files_which_others_may_read(tmp_path: Path) -> None:
    os.umask(mask := os.umask(0))
    for i in range(8):
        files.write_tensors(
            tmp_path / str(i), {"b": torch.ones(2, 3).bfloat16(), "ä\t": torch.tensor([True])}
        )
    assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1
    assert (tmp_path / "0").stat().st_mode & 0o777 == 0o666 & ~mask
    assert {path.name for path in tmp_path.iterdir()} == {str(i) for i in range(8)}


def test_resume_goes_back_to_the_newest_whole_checkpoint_and_says_what_it_skipped(
    straight: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    newest = checkpoint.found(run)[-1]
    next(flipped(newest / "state.json"))
    said = train(run, resume=True)
    assert any(
        line.startswith("skipped a checkpoint") and f"{newest}/state.json" in line for line in said
    ), said
    assert any("resuming at step 5" in line for line in said), said
    assert left(run) == left(straight)


def test_whole_checkpoints_are_not_dropped_for_damaged_ones(straight: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    for path in checkpoint.found(run):
        (path / "manifest.json").unlink()
    (run / "config.json").unlink()
    train(run, resume=True, steps=3)
    whole = {path.name for path in checkpoint.found(run) if (path / "manifest.json").exists()}
    assert whole == {"step-00000002", "step-00000003"}


@pytest.mark.parametrize("how", ["no checkpoint yet", "none whole", "no baseline yet"])
def test_without_a_whole_checkpoint_a_resumed_run_starts_again(
    straight: Path, tmp_path: Path, how: str
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    for path in checkpoint.found(run):
        shutil.rmtree(path) if how != "none whole" else next(flipped(path / "state.safetensors"))
    if how == "no baseline yet":
        shutil.rmtree(run / "baseline")
    (run / "config.json").unlink()
    RunDirectory(run).update(status="running")
    said = train(run, resume=True)
    assert any("starting again from the beginning" in line for line in said), said
    assert left(run) == left(straight)


def test_a_model_without_a_whole_checkpoint_is_not_trained_over(
    straight: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match="another --out"):
        train(run, resume=True, steps=30)
    assert {path: path.read_bytes() for path in before} == before


def test_two_processes_do_not_train_in_one_directory(straight: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    other = RunDirectory(run)
    other.lock()
    with pytest.raises(TrainingError, match="another process"):
        train(run, resume=True, steps=30)
    other.close()
    train(run, resume=True, steps=12)
    living = RunDirectory(tmp_path / "living")
    living.start({})
    with pytest.raises(TrainingError, match="another process"):
        RunDirectory(tmp_path / "living").start({})
    assert (tmp_path / "living" / "run.json").exists()
    living.close()


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    straight: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    before = {
        path: path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and path.name != "run.json"
    }
    facts = left(run)
    said = train(run, resume=True)
    assert any("is finished" in line for line in said), said
    assert not any("resuming at" in line for line in said), said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert left(run) == facts
    assert "sittings" not in RunDirectory(run).facts()


def test_leftovers_of_a_kill_are_removed_and_nothing_else(straight: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    mine = [
        run / "notes.txt",
        run / ".hidden",
        run / "x.partial",
        run / "checkpoints" / "notes.old",
    ]
    gone = [
        run / ".model.safetensors.123.partial",
        run / "checkpoints" / ".step-00000009.partial",
        run / "checkpoints" / ".step-00000006.old",
        run / "baseline" / ".config.json.9.partial",
    ]
    for path in [*mine, *gone[:1]]:
        path.write_text("x")
    for path in gone[1:]:
        path.mkdir()
        (path / "state.json").write_text("{}")
    train(run, resume=True)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in gone)


def test_a_checkpoint_that_was_about_to_be_replaced_is_put_back(
    straight: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    newest = checkpoint.found(run)[-1]
    newest.rename(newest.with_name(f".{newest.name}.old"))
    assert not any("skipped" in line for line in train(run, resume=True))
    assert left(run) == left(straight)


def killed_everywhere(tmp_path: Path, kind: str, cuts: Callable[[int], range]) -> None:
    """Kill a run at changes of the disk, resume, and compare with a run that nothing happened
    to."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, float("inf"), Killed())
        train(tmp_path / "straight", kind)
    expected, run = left(tmp_path / "straight"), tmp_path / "run"
    for cut in cuts(len(disk.changes)):
        shutil.rmtree(run, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, cut, Killed())
            with pytest.raises(Killed):
                train(run, kind)
        go_on(run, kind)
        assert left(run) == expected, f"killed at change {cut}: {disk.changes[-5:]}"


@pytest.mark.parametrize("kind", ["density", "prior"])
def test_a_run_killed_at_changes_of_the_disk_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str
) -> None:
    killed_everywhere(tmp_path, kind, lambda n: range(3, n, max(1, n // 5)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["density", "tokenizer", "prior"])
def test_a_run_killed_at_any_change_of_the_disk_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str
) -> None:
    killed_everywhere(tmp_path, kind, range)


def one_checkpoint(out: Path, step: int) -> None:
    """A small checkpoint whose tensors tell its step."""
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, step)
    state = {"progress": {"step": step}, "task": {}}
    checkpoint.save(
        out, step, module, copy.deepcopy(module), torch.optim.AdamW(module.parameters()), state
    )


@pytest.mark.parametrize("step", [4, 5], ids=["replaced", "new"])
def test_a_checkpoint_killed_at_any_point_leaves_it_or_the_one_before_whole(
    tmp_path: Path, step: int
) -> None:
    one_checkpoint(tmp_path / "before", 4)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, float("inf"), Killed())
        one_checkpoint(tmp_path / "counted", 4)
        if step == 4:
            one_checkpoint(tmp_path / "counted", step)
    for cut in range(len(disk.changes)):
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "before", out)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, cut, Killed())
            with contextlib.suppress(Killed):
                one_checkpoint(out, step)
        RunDirectory(out).sweep()
        tensors, state, problems = checkpoint.newest(out)
        assert not problems
        assert state["progress"]["step"] in (4, step)
        assert tensors["module/weight"].eq(state["progress"]["step"]).all()
        assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.parametrize("share", [0.35, 0.5, 0.65, 0.8, 0.93, 0.99])
def test_a_full_disk_stops_a_run_with_one_line_and_it_goes_on_later(
    straight: Path, tmp_path: Path, share: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, float("inf"), OSError(errno.ENOSPC, "No space left on device"))
        train(tmp_path / "counted")
    run, cut = tmp_path / "run", int(share * len(disk.changes))
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, cut, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(
            ArtifactError, match=r"stopped after step \d: cannot .*/run/.*: No space.*--resume"
        ) as told:
            train(run)
    assert "\n" not in str(told.value)
    checkpoint.newest(run)
    train(run, resume=True)
    assert left(run) == left(straight)


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "place", "error"),
    [
        (os, "replace", "model.safetensors", NO_SPACE),
        (os, "replace", "state.json", NO_SPACE),
        (os, "rename", "step-", NO_SPACE),
        (pathlib.Path, "write_bytes", "manifest.json", NO_SPACE),
        (pathlib.Path, "open", "log.jsonl", NO_SPACE),
        (
            safetensors.torch,
            "save_file",
            "state",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        (
            safetensors.torch,
            "save_file",
            "model",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
    ],
)
def test_every_layer_that_writes_names_the_file_and_the_reason(
    straight: Path, tmp_path: Path, owner: Any, name: str, place: str, error: Exception
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        act, armed = getattr(owner, name), [False]

        def failing(*arguments: Any, **options: Any) -> Any:
            armed[0] = armed[0] or (run / "checkpoints" / "step-00000003").exists()
            if armed[0] and any(place in str(a) for a in arguments if isinstance(a, (str, Path))):
                raise error
            return act(*arguments, **options)

        patch.setattr(owner, name, failing)
        with pytest.raises(
            ArtifactError, match=rf"cannot write \S*{place}\S*: .*No space left.*--resume {run}"
        ):
            train(run)
    assert RunDirectory(run).facts()["status"] == "failed"
    train(run, resume=True)
    assert left(run) == left(straight)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    gc.collect()  # tensors that were read from it may still lie in its files
    if subprocess.run(["umount", str(place)], capture_output=True).returncode:
        subprocess.run(
            ["umount", "-l", str(place)], check=True
        )  # away at once, and freed when nothing is open


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount command here")
def test_a_disk_that_is_really_full(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "model.layers=2",
        "model.hidden=24",
        "train.batch=4",
        "train.validate_every=2",
        "data.limit=40",
    ]
    words = [
        "train",
        "digits",
        *sizes,
        "--steps",
        "6",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--out",
    ]
    assert entry.main([*words, str(tmp_path / "straight")]) == 0
    size = sum(
        path.stat().st_size
        for path in (tmp_path / "straight" / "checkpoints").rglob("*")
        if path.is_file()
    )
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**21 - int(1.4 * size) - 2**17))
    capsys.readouterr()
    assert entry.main([*words, str(small_disk / "run")]) == 2
    told = capsys.readouterr().err
    assert "No space left" in told
    assert f"--resume {small_disk / 'run'}" in told
    assert told.count("\n") == 1
    checkpoint.newest(small_disk / "run")
    filler.unlink()
    assert entry.main(["train", "--resume", str(small_disk / "run")]) == 0
    assert left(small_disk / "run") == left(tmp_path / "straight")


@pytest.mark.slow
def test_real_kills_change_nothing() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "kill.py"),
        "--variants",
        "pixelcnn",
        "--trials",
        "2",
    ]
    done = subprocess.run([*command, "--inside", "1"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
