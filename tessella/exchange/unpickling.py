"""Read a checkpoint that torch wrote, in a process of its own: ``python -m
tessella.exchange.unpickling SOURCE TARGET``.

Such files are pickles. torch's ``weights_only`` reader knows tensors and plain containers, and
refuses every other name, so nothing in a file is executed. What remains are files that are made to
take memory or time, and faults of the reader. So it runs in a process with limits, which hands the
tensors over as a safetensors file. Errors go to the caller as one line of JSON.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

STATUS_REFUSED = 3
"""Exit status when a file is refused; the reason stands in the output."""

SPARE_BYTES = 1 << 29
"""Memory beyond three times the file that reading may take."""

SPARE_SECONDS = 60
BYTES_PER_SECOND = 10_000_000
"""Processor time that reading may take: a minute, and a second for so many bytes."""

MOST_TENSORS = 200_000

CONTAINERS = ("ema", "model_ema", "model", "module", "state_dict")
"""Keys under which training scripts keep the weights, best first."""

SETTINGS = ("args", "hyper_parameters", "config")
"""Keys under which training scripts keep what the model was built with."""


class StandIn:
    """Takes the place of an object that has nothing to do with weights; does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


STAND_INS = (
    "argparse.Namespace",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Names that checkpoints of training frameworks hold beside the weights. They become stand-ins:
the classes themselves are never imported."""

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


class RefusedError(Exception):
    """A file that is not read, and why."""


def limit_resources(file_bytes: int) -> None:
    """Bound the memory, time and output of this process, in proportion to a file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    used = pages * resource.getpagesize()
    # Elsewhere than on Linux the use so far is unknown, and only time is limited.
    if used:
        _limit(resource.RLIMIT_AS, used + 3 * file_bytes + SPARE_BYTES)
    _limit(resource.RLIMIT_CPU, SPARE_SECONDS + file_bytes // BYTES_PER_SECOND)
    _limit(resource.RLIMIT_FSIZE, 2 * file_bytes + SPARE_BYTES)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


def read_pickled(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The tensors of a checkpoint by name, and the plain settings that stand beside them.

    Raises:
        RefusedError: when it is no such file, asks for anything but tensors, or holds none.
    """
    allowed: list[object] = []
    for name in STAND_INS:
        allowed.append((StandIn, name))
    try:
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            content = torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise RefusedError("it takes more memory than its size justifies") from error
    except Exception as error:
        # The reader reports damage as errors of many kinds, of C++ code too.
        raise RefusedError(_reason(error)) from error
    if not isinstance(content, Mapping):
        raise RefusedError(f"it holds a {type(content).__name__}, and no tensors by name")
    settings: dict[str, object] = {}
    for key in SETTINGS:
        settings.update(_plain(content.get(key)))
    state: Mapping[object, object] = content
    for key in CONTAINERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            state = inner
            break
    return _tensors(state), settings


def _tensors(state: Mapping[object, object]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_meta or value.dtype not in DTYPES:
                raise RefusedError(f"the tensor {name} is {value.layout}, {value.dtype}")
            tensors[name] = value.detach()
    if not tensors:
        raise RefusedError("it holds no tensors by name")
    if len(tensors) > MOST_TENSORS:
        raise RefusedError(f"it holds {len(tensors):,} tensors")
    return tensors


def _plain(settings: object) -> dict[str, object]:
    """Numbers, words and lists of them in settings, by name."""
    values = vars(settings) if isinstance(settings, StandIn) else settings
    plain: dict[str, object] = {}
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(name, str) and isinstance(value, (bool, int, float, str, list)):
                plain[name] = value
    return plain


def _reason(error: Exception) -> str:
    """One line on why the reader gave up."""
    text = str(error)
    refused = re.search(r"(?:GLOBAL|global) `?([\w.]+)`?", text)
    if refused is not None:
        return f"it asks for {refused[1]}, and a pickle that is given such things can run programs"
    if "DefaultCPUAllocator" in text or "allocate memory" in text:
        return "it takes more memory than its size justifies"
    # The first line says it; the others are advice to turn the checks off.
    first = text.split("\n", 1)[0].strip()
    return f"it is damaged, or no checkpoint that torch wrote ({first[:160]})"


def convert_file(source: Path, target: Path) -> None:
    """Write the tensors of a checkpoint to a safetensors file, settings in its metadata.

    Raises:
        RefusedError: see :func:`read_pickled`.
    """
    size = source.stat().st_size
    limit_resources(size)
    tensors, settings = read_pickled(source)
    # A tensor can repeat the few numbers that a file holds, as often as its shape says.
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > 2 * size + SPARE_BYTES // 8:
        raise RefusedError(f"its tensors take {total:,} bytes, the file has {size:,}")
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, target, metadata={"config": json.dumps(settings)})


def main(arguments: list[str]) -> int:
    """Convert the file that the arguments name."""
    source, target = arguments
    try:
        convert_file(Path(source), Path(target))
    except RefusedError as error:
        print(json.dumps({"refused": str(error)}))
        return STATUS_REFUSED
    except (MemoryError, RuntimeError, OSError) as error:
        print(json.dumps({"refused": f"it could not be read: {str(error)[:160]}"}))
        return STATUS_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
