"""What a run writes is JSON, and what is read of a run is checked, whoever wrote it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import files
from tessella.cli import entry
from tessella.errors import ArtifactError, TessellaError
from tessella.evaluation import data_config
from tessella.report.curves import read_log
from tessella.training import checkpoint, loop, run_directory
from tessella.training.progress import Progress, Rank
from tessella.training.run_directory import RunDirectory, command_line
from tessella.training.tasks import TokenizerTask

OPTIONS: dict[str, Any] = {"steps": 4, "batch": 4, "validate_every": 2, "device": "cpu"}
NESTED = "[" * 100_000 + "]" * 100_000


def images(n: int = 24) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.integers(0, 4, (n, 4, 4, 1)) * 85).astype(np.uint8)


def train(out: Path, **options: Any) -> list[str]:
    """Train a tiny model, or resume it. Returns what was said."""
    said: list[str] = []
    model = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 4), layers=1, hidden=4)
    ts.train(model, images(), out=out, say=said.append, **(OPTIONS | options))
    return said


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(out)
    return out


@pytest.fixture
def run(straight: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(straight, tmp_path / "run")


def no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def strict_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def rewrite_state(checkpoint_folder: Path, text: str) -> None:
    """Put another state into a checkpoint, and vouch for it in the manifest."""
    state = checkpoint_folder / "state.json"
    state.write_text(text)
    manifest = json.loads((checkpoint_folder / "manifest.json").read_text())
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    manifest["state.json"] = {"bytes": state.stat().st_size, "sha256": digest}
    (checkpoint_folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_line_of_the_log_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that come back exactly have an infinite PSNR."""
    measured = TokenizerTask.validate

    def exact(self: TokenizerTask, *given: Any) -> dict[str, float]:
        return measured(self, *given) | {"psnr_db": math.inf, "code_perplexity": math.nan}

    monkeypatch.setattr(TokenizerTask, "validate", exact)
    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(4, 4), channels=1, codebook_size=8, hidden=8, code_dim=4, downsample=2
    )
    out = tmp_path / "run"
    ts.train(tokenizer, images(), out=out, say=lambda line: None, **OPTIONS)
    lines = strict_lines(out / "log.jsonl")
    assert [line["valid/psnr_db"] for line in lines if "valid/psnr_db" in line] == [None, None]
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=no_constant)
    again = ts.create_tokenizer(
        "vqvae", image_size=(4, 4), channels=1, codebook_size=8, hidden=8, code_dim=4, downsample=2
    )
    options = OPTIONS | {"steps": 6}
    resumed = ts.train(again, images(), out=out, resume=True, say=lambda line: None, **options)
    assert resumed.progress.step == 6


def test_a_validation_that_is_kept_says_why(straight: Path) -> None:
    kept = [line for line in strict_lines(straight / "log.jsonl") if "kept" in line]
    record = json.loads((straight / "run.json").read_text())
    assert kept[-1]["step"] == record["progress"]["best_step"]
    assert kept[-1]["kept"] == "least bits_per_dim"
    assert record["progress"]["rank"]["tier"] == 0


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("text", [NESTED, "[]", "5", '{"progress": []}', "null", "{"])
def test_a_checkpoint_with_broken_json_is_passed_over_for_the_one_before(
    run: Path, name: str, text: str
) -> None:
    newest = checkpoint.found(run)[-1]
    if name == "state.json":
        rewrite_state(newest, text)
    else:
        (newest / name).write_text(text)
    _, state, problems = checkpoint.newest(run)
    assert state["progress"]["step"] == 2
    assert len(problems) == 1
    said = train(run, resume=True)
    assert any(line.startswith("skipped a checkpoint") for line in said)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": "4"},
        {"step": True},
        {"step": 2.5},
        {"step": 10**30},
        {"seconds": "x"},
        {"figures": []},
        {"figures": {"bits_per_dim": "x"}},
        {"rank": 5},
        {"rank": {"tier": "x", "value": 1}},
    ],
)
def test_a_progress_of_wrong_types_is_our_error(run: Path, change: dict[str, Any]) -> None:
    newest = checkpoint.found(run)[-1]
    state = json.loads((newest / "state.json").read_text())
    state["progress"] |= change
    rewrite_state(newest, json.dumps(state))
    with pytest.raises(ArtifactError, match=r"state\.json"):
        checkpoint.read_state(newest / "state.json")
    _, state, _ = checkpoint.newest(run)
    assert state["progress"]["step"] == 2


@pytest.mark.parametrize("memory", [{"counts": 5}, {"counts": [[1.5]]}, {"counts": ["ab"]}])
def test_a_memory_of_wrong_types_is_our_error(memory: dict[str, Any]) -> None:
    tokenizer = ts.create_tokenizer("vqvae", image_size=(4, 4), channels=1, hidden=8)
    with pytest.raises(ArtifactError, match="counts of codes"):
        TokenizerTask(tokenizer).recall(memory)


@pytest.mark.parametrize("name", ["optimizer/x/exp_avg", "optimizer/99999/exp_avg", "optimizer/0"])
def test_a_state_of_another_optimizer_is_our_error(run: Path, name: str) -> None:
    tensors, _, _ = checkpoint.newest(run)
    module = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 4), layers=1, hidden=4)
    optimizer = torch.optim.AdamW(module.parameters())
    with pytest.raises(ArtifactError, match="of another model"):
        checkpoint.restore(tensors | {name: torch.zeros(1)}, module, module, optimizer)


WRONG_RECORDS: list[Any] = [
    [],
    5,
    None,
    "x",
    {"recipe": 5},
    {"recipe": {"data": 5}},
    {"recipe": {"train": []}},
    {"data": []},
    {"data": {"train": 5}},
    {"data": {"train": {"classes": 5}}},
    {"environment": "x"},
    {"sittings": {}},
    {"sittings": [5]},
    {"progress": [1]},
    {"figures": 3},
    {"status": 7},
    {"task": []},
]


@pytest.mark.parametrize("change", WRONG_RECORDS, ids=str)
def test_a_record_of_wrong_types_is_one_line_in_every_verb(
    run: Path, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "run.json").read_text())
    changed = record | change if isinstance(change, dict) else change
    (run / "run.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=r"run\.json"):
        RunDirectory(run).facts()
    with pytest.raises(TessellaError, match=r"run\.json"):
        data_config(run)
    with pytest.raises(TessellaError):
        train(run, resume=True)
    for words in (["train", "--resume", str(run)], ["eval", str(run)]):
        assert entry.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert entry.main(["info", str(run)]) in (0, 2)


def test_a_record_nested_without_end_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text('{"recipe": ' + NESTED + "}")
    assert entry.main(["train", "--resume", str(run)]) == 2
    assert "levels deep" in capsys.readouterr().err


def test_a_log_with_steps_beyond_all_numbers_is_read(run: Path) -> None:
    log = run / "log.jsonl"
    count = len(log.read_text().splitlines())
    with log.open("a") as file:
        file.write('{"step": 1e999, "loss": 1}\n{"step": NaN}\n[]\n' + NESTED + "\n")
    entries, facts = read_log(log)
    assert len(entries) == count
    assert facts["unreadable"] == 4
    RunDirectory(run).cut_log(4)
    assert len(log.read_text().splitlines()) == count


@pytest.mark.parametrize(
    ("kind", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 130), ("SIGINT", 130)]
)
def test_signals_save_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    number = getattr(signal, kind)
    before = signal.getsignal(number)
    step = loop._step

    def interrupted(session: loop.Session, *rest: Any) -> dict[str, float]:
        if session.progress.step == 2:
            os.kill(os.getpid(), number)
        return step(session, *rest)

    monkeypatch.setattr(loop, "_step", interrupted)
    model = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 4), layers=1, hidden=4)
    options = OPTIONS | {"say": lambda line: None}
    assert ts.train(model, images(), out=tmp_path / "run", **options).status == status
    assert checkpoint.found(tmp_path / "run")[-1].name == "step-00000003"
    assert RunDirectory(tmp_path / "run").facts()["status"] == "interrupted"
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_goes_on_ignoring_hangups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        step = loop._step

        def hung_up(session: loop.Session, *rest: Any) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGHUP)
            return step(session, *rest)

        monkeypatch.setattr(loop, "_step", hung_up)
        train(tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert RunDirectory(tmp_path / "run").facts()["status"] == "finished"


def test_resume_notes_another_version_of_the_package(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["environment"]["tessella"] = "0.0.7"
    (run / "run.json").write_text(json.dumps(record))
    said = train(run, resume=True, steps=6)
    assert (
        f"note: tessella was 0.0.7 and is {ts.__version__}: the run will not repeat bit for bit"
        in said
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/x/tessella/__main__.py", "train", "digits"], ["tessella", "train", "digits"]),
        (["/usr/bin/tessella", "train"], ["tessella", "train"]),
        (["script.py", "5"], ["script.py", "5"]),
        ([""], [""]),
    ],
)
def test_runs_record_a_command_that_starts_another(argv: list[str], words: list[str]) -> None:
    assert command_line(argv) == words


def test_the_environment_of_a_run_holds_that_command(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["/x/tessella/__main__.py", "train", "digits"]
    monkeypatch.setattr(run_directory.sys, "argv", argv)
    made = run_directory.environment(torch.device("cpu"), 1)
    assert made["command"] == ["tessella", "train", "digits"]


@pytest.mark.parametrize(
    ("precedence", "rank"),
    [(1 / 41, Rank(0, -40.0)), (1.5, Rank(1, 0.5 * 255**2)), (2.25, Rank(2, 0.25 * 255**2))],
)
def test_progress_of_earlier_adversarial_runs_is_read(precedence: float, rank: Rank) -> None:
    figures = {"precedence": precedence, "mse": 12.0}
    progress = Progress.from_json({"step": 9, "best": precedence, "figures": figures}, "state.json")
    assert progress.rank is not None
    assert progress.rank.tier == rank.tier
    assert progress.rank.value == pytest.approx(rank.value)
    assert progress.best == 12.0


def test_progress_of_earlier_runs_is_read() -> None:
    old = {"step": 9, "best": 1.5, "best_step": 8, "figures": {"bits_per_dim": 1.5}}
    assert Progress.from_json(old, "state.json").rank == Rank(0, 1.5)
    assert Progress.from_json({"step": 1, "best": None}, "state.json").rank is None


def mutations(record: dict[str, Any], count: int) -> list[Callable[[], dict[str, Any]]]:
    """Ways to change one value somewhere in a record."""
    generator = np.random.default_rng(0)
    values: list[Any] = [None, [], {}, 5, -1, 1e300, "x", True, [None], {"a": []}, 2**70]

    def changed() -> dict[str, Any]:
        copy: dict[str, Any] = json.loads(json.dumps(record))
        place: Any = copy
        while True:
            key = list(place)[generator.integers(len(place))]
            deeper = isinstance(place[key], dict) and place[key]
            if not deeper or generator.random() < 0.3:
                place[key] = values[generator.integers(len(values))]
                return copy
            place = place[key]

    return [changed] * count


def test_no_change_of_a_record_is_a_defect_of_ours(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    for change in mutations(record, 20):
        files.write_json(run / "run.json", change())
        with contextlib.suppress(TessellaError):
            train(run, resume=True)
        with contextlib.suppress(TessellaError):
            data_config(run)
