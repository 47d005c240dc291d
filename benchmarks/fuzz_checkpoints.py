"""Checkpoints of others that were tampered with: refused with an error of ours, or imported.

    python benchmarks/fuzz_checkpoints.py --references ../shared/parity
    python benchmarks/fuzz_checkpoints.py --mutations 200 --json results/fuzz_checkpoints.json

A reference file of each kind (and those under ``tests/golden``) is changed in one way at a time and
imported: names, shapes, types and bytes of a safetensors file; the pickle inside a file that torch
wrote, its archive, what its tensors claim to be, and pickles that would run a program. All of it
happens in a child process whose memory is limited. *Refused* is an error of ours that left nothing
behind, *imported* no error, *unexplained* another exception or a half-written run, *slow* an import
past its time, *killed* a child that is gone, *executed* a program that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

MEMORY = 2 << 30
"""Bytes of address space that the child may take beyond those of its start."""

SECONDS = 180
"""Time of one import; most of it goes to starting the process that reads a pickle."""

PICKLED = 4
"""One of so many files is a pickle."""

FILES = {
    "taming-vqgan": "taming_vqgan",
    "taming-gpt": "taming_gpt",
    "llamagen-vq": "llamagen_vq",
    "llamagen-gpt": "llamagen_gpt",
    "diffusers-vqmodel": "diffusers_vqmodel",
    "var-vqvae": "var_vqvae",
    "vq-vae-2-pytorch": "rosinality_vqvae2",
}
"""Reference files, by the kind of checkpoint."""

GOLDEN = harness.ROOT / "tests" / "golden" / "pixel_cnn_pp_grey.safetensors"

Tensors = dict[str, Any]
Change = Callable[[Tensors, random.Random], None]


class Program:
    """Writes a file when it is unpickled: what no import may do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def references(folder: Path) -> dict[str, tuple[Tensors, dict[str, Any]]]:
    """The tensors of each kind, and what they do not show."""
    from safetensors import safe_open

    from tessella.exchange.checkpoints import flattened

    paths = {kind: folder / f"{name}.safetensors" for kind, name in FILES.items()}
    paths["pixel-cnn-pp"] = GOLDEN
    found = {}
    for kind, path in paths.items():
        if not path.is_file():
            continue
        with safe_open(path, framework="pt") as file:
            facts = flattened(json.loads(file.metadata()["config"]))
            names = [name for name in list(file.keys()) if name.startswith("state.")]
            tensors = {name.removeprefix("state."): file.get_tensor(name) for name in names}
        found[kind] = (tensors, facts)
    return found


# ---- Changes of tensors


def rename(tensors: Tensors, dice: random.Random) -> None:
    name = dice.choice(sorted(tensors))
    other = dice.choice(["x", "", name + ".weight", "encoder.down.999999999.x", "é" * 300])
    tensors[other] = tensors.pop(name)


def remove(tensors: Tensors, dice: random.Random) -> None:
    del tensors[dice.choice(sorted(tensors))]


def reshape(tensors: Tensors, dice: random.Random) -> None:
    name = dice.choice(sorted(tensors))
    value = tensors[name]
    ways = [value.flatten(), value[None], value[:0], value[..., :1], value.sum()]
    tensors[name] = dice.choice(ways).clone()


def retype(tensors: Tensors, dice: random.Random) -> None:
    import torch

    name = dice.choice(sorted(tensors))
    kind = dice.choice([torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8])
    tensors[name] = tensors[name].to(kind)


def spoil(tensors: Tensors, dice: random.Random) -> None:
    name = dice.choice(sorted(tensors))
    tensors[name] = tensors[name].float() * dice.choice([float("nan"), float("inf"), 1e38])


def count_far(tensors: Tensors, dice: random.Random) -> None:
    """Names that speak of many layers."""
    name = dice.choice(sorted(tensors))
    digits = [part for part in name.split(".") if part.isdigit()]
    if digits:
        number = dice.choice(["9998", "77", "123456", "99999999999999999999"])
        tensors[name.replace(f".{digits[0]}.", f".{number}.", 1)] = tensors[name].clone()


CHANGES: list[Change] = [rename, remove, reshape, retype, spoil, count_far]


def write_safetensors(
    path: Path, tensors: Tensors, facts: dict[str, Any], dice: random.Random
) -> str:
    """A safetensors file with one change; the name of the change."""
    from safetensors.torch import save_file

    change = dice.choice([*CHANGES, None, None, None])
    if change is not None:
        change(tensors, dice)
    if dice.random() < 0.1:
        key = dice.choice(sorted(facts))
        facts[key] = dice.choice([-1, 0, 10**12, "x", None, [], [10**9, 10**9], 3.5])
    save_file(tensors, path, metadata={"config": json.dumps(facts)})
    if change is not None:
        return change.__name__
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    way = dice.choice(["header byte", "cut", "length", "byte"])
    if way == "cut":
        data = data[: dice.randrange(len(data))]
    elif way == "length":
        data[:8] = dice.randrange(2**40).to_bytes(8, "little")
    else:
        end = 8 + length if way == "header byte" else len(data)
        data[dice.randrange(8, end)] = dice.randrange(256)
    path.write_bytes(bytes(data))
    return way


def write_pickled(
    path: Path, tensors: Tensors, facts: dict[str, Any], dice: random.Random, mark: Path
) -> str:
    """A file as torch writes it, with one change; the name of the change."""
    import torch

    ways = ["program", "program in settings", "byte", "cut", "huge", "nested", "bomb", "old"]
    way = dice.choice([*ways, "tensors"])
    content: dict[str, Any] = {"state_dict": tensors, "config": facts, "epoch": 1}
    if way == "program":
        tensors[dice.choice(sorted(tensors))] = Program(mark)
    elif way == "program in settings":
        content["hyper_parameters"] = {"x": Program(mark)}
    elif way == "huge":
        tensors[dice.choice(sorted(tensors))] = torch.zeros(1).expand(2 ** dice.randrange(20, 45))
    elif way == "nested":
        inner: Any = 0
        for _ in range(dice.choice([50, 200])):
            inner = [inner]
        content["args"] = inner
    elif way == "tensors":
        dice.choice(CHANGES)(tensors, dice)
    torch.save(content, path, _use_new_zipfile_serialization=way != "old")
    if way == "bomb":
        _compress_zeros(path)
    if way in ("byte", "old", "cut"):
        data = bytearray(path.read_bytes())
        if way == "cut":
            data = data[: dice.randrange(len(data))]
        else:
            data[dice.randrange(min(len(data), 4000))] = dice.randrange(256)
        path.write_bytes(bytes(data))
    return way


def _compress_zeros(path: Path) -> None:
    """Put gigabytes of zeros, compressed, in the place of the archive's largest record."""
    with zipfile.ZipFile(path) as archive:
        records = {item.filename: archive.read(item) for item in archive.infolist()}
    largest = max(records, key=lambda name: len(records[name]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            if name == largest:
                with archive.open(name, "w", force_zip64=True) as stream:
                    for _ in range(256):
                        stream.write(bytes(1 << 22))
            else:
                archive.writestr(name, data)


# ---- Trying them


def child(folder: Path, given: Path, first: int, last: int, seed: int) -> None:
    """Try mutations ``first`` to ``last``; a line of JSON for each goes to standard output."""
    from tessella.errors import TessellaError
    from tessella.exchange.importing import import_checkpoint

    sources = references(given)
    limit_memory()
    start = _resident()
    for number in range(first, last):
        dice = random.Random(seed * 1_000_003 + number)
        kind = dice.choice(sorted(sources))
        tensors, facts = dict(sources[kind][0]), dict(sources[kind][1])
        pickled = number % PICKLED == 0
        file = folder / ("x.ckpt" if pickled else "x.safetensors")
        mark = folder / "executed"
        if pickled:
            way = write_pickled(file, tensors, facts, dice, mark)
        else:
            way = write_safetensors(file, tensors, facts, dice)
        row = {"number": number, "kind": kind, "pickled": pickled, "way": way, "detail": ""}
        print(json.dumps({**row, "outcome": "killed"}), flush=True)
        out = folder / "run"
        began = time.monotonic()
        try:
            import_checkpoint(kind, file, out, facts={})
            outcome = "imported"
        except TessellaError as error:
            outcome = "refused" if not out.exists() else "unexplained"
            row["detail"] = str(error)[:300]
        except Exception as error:  # noqa: BLE001 - which it is, is the question
            outcome = "unexplained"
            row["detail"] = f"{type(error).__name__}: {error}"[:300]
        row["seconds"] = round(time.monotonic() - began, 2)
        if row["seconds"] > SECONDS:
            outcome = "slow"
        if mark.exists():
            outcome = "executed"
            mark.unlink()
        row |= {"outcome": outcome, "grown_mib": (_resident() - start) >> 20}
        print(json.dumps(row), flush=True)
        shutil.rmtree(out, ignore_errors=True)
        file.unlink()


def limit_memory() -> None:
    """Let this process, and those that it starts, take no more than ``MEMORY`` beyond now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(given: Path, mutations: int, seed: int) -> list[dict[str, Any]]:
    """Try all mutations, in a new child where one is gone."""
    rows: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while len(rows) < mutations:
            command = [sys.executable, __file__, "--child", folder, "--references", str(given)]
            command += ["--first", str(len(rows)), "--mutations", str(mutations)]
            command += ["--seed", str(seed)]
            before = len(rows)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            # The second line about a mutation, if there is one, takes the place of the first.
            for line in process.stdout:
                row = json.loads(line)
                rows[row["number"]] = row
            if process.wait() and len(rows) == before:
                raise SystemExit("the child does not start")
    return [rows[number] for number in sorted(rows)]


def main() -> None:
    """Try mutations, print what became of them, and write a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--references", type=Path, default=harness.ROOT.parent / "shared/parity")
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.references, options.first, options.mutations, options.seed)
        return
    rows = attempt(options.references, options.mutations, options.seed)
    outcomes = Counter(row["outcome"] for row in rows)
    bad = [row for row in rows if row["outcome"] not in ("refused", "imported")]
    for row in bad:
        print(json.dumps(row))
    print(dict(outcomes), f"of {len(rows)}; memory grew by {max_grown(rows)} MiB")
    if options.json:
        by_way: dict[str, dict[str, int]] = {}
        for row in rows:
            label = f"{'pickle' if row['pickled'] else 'safetensors'}: {row['way']}"
            counts = by_way.setdefault(label, {})
            counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
        summary = {
            "mutations": len(rows),
            "seed": options.seed,
            "kinds": sorted({row["kind"] for row in rows}),
            "outcomes": dict(outcomes),
            "by_way": by_way,
            "memory_grown_mib": max_grown(rows),
            "slowest_seconds": max(row.get("seconds", 0) for row in rows),
            "unexplained": bad,
        }
        harness.write("fuzz_checkpoints", [summary], options.json)
    raise SystemExit(1 if bad else 0)


def max_grown(rows: list[dict[str, Any]]) -> int:
    """Largest growth of the child's memory, in MiB."""
    return max(row.get("grown_mib", 0) for row in rows)


if __name__ == "__main__":
    main()
