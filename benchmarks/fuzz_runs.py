"""Run directories that were tampered with: every one is refused with an error of ours, or works.

    python benchmarks/fuzz_runs.py                                     # 500 mutations
    python benchmarks/fuzz_runs.py --mutations 5000 --json results/fuzz.json

Runs, a checkpoint and a set of codes are made, one file in them is changed at a time (a value of
its JSON, a key, a byte, the end cut off, a header of safetensors), and whatever reads the file is
called: a model is loaded and draws, a run is described and evaluated, a checkpoint is taken up,
codes are read. All of it happens in child processes whose memory is limited. *Refused* is an error
of ours, *used* no error, *unexplained* another exception, *slow* a call past its time, *killed* a
child that is gone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space that a child may take beyond those of its start."""

SECONDS = 15
"""Time of one call."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    1e300,
    2**31,
    10**9,
    65537,
    10**200,
    "",
    "x",
    "categorical",
    "../../etc",
    "é\ud800",
    "a" * 10_000,
    [],
    [1, 2],
    [[]],
    {},
    {"name": "x"},
    {"height": 10**6, "width": 10**6, "channels": 1, "levels": 17},
)
"""Values that take the place of others."""

Action = Callable[[Path], object]


def prepare(folder: Path) -> dict[str, list[str]]:
    """Make what is tampered with in a folder; the files by the kind of what reads them."""
    import tessella as ts
    from tessella import data
    from tessella.config import DataConfig, load_recipe
    from tessella.pipeline import locate, save_model
    from tessella.training import train_recipe

    for name in ("digits", "digits-codes", "digits-vqvae"):
        shutil.copytree(locate(name), folder / name)
    save_model(ts.create_vae(image_size=(4, 4), channels=1, hidden=4, latent=2), folder / "vae")
    small = ["train.minutes=0", "train.steps=3", "train.batch=8", "train.checkpoint_every=1"]
    recipe = load_recipe("digits", [*small, "model.layers=1", "model.hidden=4"])
    train_recipe(recipe, folder / "trained", say=lambda line: None)
    images = data.load(DataConfig("digits", limit=20), "test")
    ts.tokenize(ts.load("digits-vqvae"), images, folder / "codes")
    checkpoints = [
        str(path.relative_to(folder))
        for path in sorted((folder / "trained" / "checkpoints").rglob("*.json"))
    ]
    return {
        "model": [
            "digits/config.json",
            "digits-codes/config.json",
            "digits-codes/prior/config.json",
            "digits-codes/tokenizer/config.json",
            "digits-vqvae/config.json",
            "vae/config.json",
        ],
        "weights": ["digits/model.safetensors", "digits-vqvae/model.safetensors"],
        "record": ["digits/run.json", "trained/run.json", "trained/log.jsonl"],
        "baseline": ["digits/baseline/config.json", "digits/baseline/model.safetensors"],
        "codes": ["codes/config.json"],
        "checkpoint": checkpoints,
    }


def actions() -> dict[str, Action]:
    """What reads a file of each kind, given the run directory."""
    import torch

    import tessella as ts
    from tessella.evaluation import data_config
    from tessella.pipeline import DrawsImages, load_saved
    from tessella.report import run_summary
    from tessella.storage.code_store import open_codes
    from tessella.training import checkpoint

    images = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)

    def draw(run: Path) -> object:
        model = load_saved(run)
        if isinstance(model, DrawsImages):
            return model.sample(1)
        return model.tokenizer.decode(model.tokenizer.encode(images))

    def describe(run: Path) -> object:
        run_summary.render(run_summary.describe(run))
        data_config(run)
        return ts.evaluate(run, images, split="valid")

    def read_codes(run: Path) -> object:
        codes = open_codes(run)
        codes.check()
        return codes[0:2]

    return {
        "model": draw,
        "weights": draw,
        "record": describe,
        "baseline": lambda run: ts.evaluate(run, images),
        "codes": read_codes,
        "checkpoint": checkpoint.newest,
    }


def mutated(original: bytes, name: str, dice: random.Random) -> bytes:
    """A file with one change."""
    if name.endswith(".safetensors"):
        length = int.from_bytes(original[:8], "little")
        if dice.random() < 0.2:
            return dice.randrange(2**40).to_bytes(8, "little") + original[8:]
        header = _mutated_json(original[8 : 8 + length], dice)
        return len(header).to_bytes(8, "little") + header + original[8 + length :]
    return _mutated_json(original, dice)


def _mutated_json(text: bytes, dice: random.Random) -> bytes:
    way = dice.choice(("value", "value", "value", "key", "byte", "cut", "nest"))
    if way == "byte":
        changed = bytearray(text)
        changed[dice.randrange(len(text))] = dice.randrange(256)
        return bytes(changed)
    if way == "cut":
        return text[: dice.randrange(len(text))]
    if way == "nest":
        depth = dice.choice((70, 1_000, 200_000))
        return b"[" * depth + b"]" * depth
    try:
        whole = json.loads(text)
    except ValueError:  # a log, of which each line is JSON
        whole = [json.loads(line) for line in text.splitlines()]
        _change(whole, way, dice)
        return b"\n".join(json.dumps(line).encode() for line in whole)
    return json.dumps(_change(whole, way, dice)).encode()


def _change(whole: Any, way: str, dice: random.Random) -> Any:
    """Change one value, or one key, somewhere in plain values."""
    places: list[tuple[Any, Any]] = []
    waiting = [whole]
    while waiting:
        item = waiting.pop()
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        for key, value in list(entries):
            places.append((item, key))
            if isinstance(value, (dict, list)):
                waiting.append(value)
    parent, key = dice.choice(places)
    if way == "key":
        del parent[key]
        if isinstance(parent, dict) and dice.random() < 0.5:
            parent["unknown"] = dice.choice(VALUES)
    else:
        parent[key] = dice.choice(VALUES)
    return whole


def child(folder: Path, first: int, last: int, seed: int) -> None:
    """Try mutations ``first`` to ``last``; a line of JSON for each goes to standard output."""
    from tessella.errors import TessellaError

    warnings.simplefilter("ignore")
    kinds = json.loads((folder / "files.json").read_text())
    readers = actions()
    targets = [(kind, name) for kind, names in kinds.items() for name in names]
    for kind, name in targets:
        readers[kind](folder / name.split("/")[0])  # nothing may be refused that is whole
    signal.signal(signal.SIGALRM, _too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, last):
        dice = random.Random(seed * 1_000_003 + number)
        kind, name = dice.choice(targets)
        path = folder / name
        original = path.read_bytes()
        path.write_bytes(mutated(original, name, dice))
        # The run of `digits/baseline/config.json` is `digits`.
        run = folder / name.split("/")[0]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        outcome = "used"
        detail = ""
        signal.alarm(SECONDS)
        try:
            readers[kind](run)
        except TessellaError:
            outcome = "refused"
        except TimeoutError:
            outcome = "slow"
        except Exception as error:  # noqa: BLE001 - everything that is not ours is what is looked for
            outcome = "unexplained"
            detail = f"{type(error).__name__}: {error!s:.100}"
        finally:
            signal.alarm(0)
            path.write_bytes(original)
        row = {
            "number": number,
            "kind": kind,
            "file": name,
            "outcome": outcome,
            "detail": detail,
            "seconds": time.perf_counter() - started,
            "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
        }
        print(json.dumps(row), flush=True)


def _too_slow(*_: object) -> None:
    raise TimeoutError


def run(mutations: int, seed: int) -> dict[str, Any]:
    """Try all mutations, in as many children as it takes; the counts and what was unexplained."""
    rows: list[dict[str, Any]] = []
    killed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files.json").write_text(json.dumps(prepare(folder)))
        number = 0
        while number < mutations:
            command = [sys.executable, __file__, "--child", name, str(number), str(mutations)]
            done = subprocess.run(
                [*command, "--seed", str(seed)], capture_output=True, text=True, check=False
            )
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            if not lines and done.returncode == 1:
                raise SystemExit(f"nothing could be tried:\n{done.stderr[-2000:]}")
            rows += lines
            number += len(lines)
            if number < mutations:
                killed.append(
                    {"number": number, "status": done.returncode, "said": done.stderr[-300:]}
                )
                number += 1
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["kind"], Counter())[row["outcome"]] += 1
    unexplained = [row for row in rows if row["outcome"] in ("unexplained", "slow")]
    return {
        "mutations": mutations,
        "seed": seed,
        "outcomes": {kind: dict(counter) for kind, counter in sorted(counts.items())},
        "unexplained": unexplained[:20],
        "unexplained_count": len(unexplained),
        "killed": killed,
        "slowest_seconds": round(max(row["seconds"] for row in rows), 3),
        "most_memory_of_a_call_mb": round(max(row["grown"] for row in rows) / 1024, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "FIRST", "LAST"), help="internal")
    chosen = parser.parse_args()
    if chosen.child:
        folder, first, last = chosen.child
        child(Path(folder), int(first), int(last), chosen.seed)
        return 0
    result = run(chosen.mutations, chosen.seed)
    print(json.dumps(result, indent=2))
    if chosen.json:
        import harness

        harness.write("fuzz", [result], chosen.json)
    return 1 if result["unexplained_count"] or result["killed"] else 0


if __name__ == "__main__":
    sys.exit(main())
