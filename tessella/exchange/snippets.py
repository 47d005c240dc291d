"""The text beside an export: what each file takes and gives, and lines of Python that use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUNNING = {
    "onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
names = [item.name for item in session.get_inputs()]
inputs = {{{inputs}}}
results = session.run(None, {{name: inputs[name] for name in names}})
for item, result in zip(session.get_outputs(), results):
    print(item.name, result.dtype, result.shape)""",
    "torch-export": """\
import numpy as np
import torch

module = torch.export.load("{file}").module()
inputs = {{{inputs}}}
results = module(*(torch.from_numpy(np.asarray(value)) for value in inputs.values()))
for result in results if isinstance(results, tuple) else [results]:
    print(result.dtype, tuple(result.shape))""",
    "safetensors": """\
from safetensors.numpy import load_file

for name, tensor in load_file("{file}").items():
    print(name, tensor.dtype, tensor.shape)""",
}
"""Lines of Python that run a file, by format; ``{inputs}`` makes inputs of zeros."""

MOST_SHOWN = 40
"""Tensors of a safetensors file that are listed."""

NOTES = {
    "encoder": "Images are `uint8`, rows first, channels last, as Pillow and NumPy have them.",
    "decoder": "Images come back as floats: `(255 * images).round().astype(np.uint8)`.",
    "_forward": (
        "The log-probabilities of an image add up to its exact log-probability in nats. Symbols "
        "are in the order in which they are generated: row by row."
    ),
    "_step": (
        "Begin with caches of zeros at place 0, draw a symbol from the parameters, and call again "
        "with that symbol, the next place, and the caches that came back. Parameters of the head "
        "`categorical` are logits."
    ),
}
"""Sentences about a file, by what its name ends in."""


@dataclass(frozen=True)
class Written:
    """A file that was written and compared.

    Args:
        file: its name.
        about: what it does.
        inputs, outputs: type and shape of each, ``n`` for the number of images.
        difference: the largest one from the model.
    """

    file: str
    about: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: float


def readme(format: str, written: Sequence[Written]) -> str:
    """The text of a ``README.md``.

    Args:
        format: a key of :data:`RUNNING`.
        written: the files.
    """
    lines = [
        "# Exported by tessella",
        "",
        f"Format: {format}. `n` stands for any number of images.",
    ]
    for item in written:
        lines += ["", f"## `{item.file}`", "", f"{item.about[0].upper()}{item.about[1:]}."]
        stem = item.file.split(".", maxsplit=1)[0]
        for ending, note in NOTES.items():
            if stem.endswith(ending):
                lines += ["", note]
        lines += ["", *_table("input", item.inputs), *_table("output", item.outputs)]
        if format != "safetensors":
            lines += ["", f"Its results differ from the model's by at most {item.difference:.1e}."]
        inputs = ", ".join(f'"{name}": {_zeros(kind)}' for name, kind in item.inputs.items())
        code = RUNNING[format].format(file=item.file, inputs=inputs)
        lines += ["", "```python", code, "```"]
    return "\n".join(lines) + "\n"


def _table(what: str, tensors: Mapping[str, str]) -> list[str]:
    """Names, types and shapes, as a table."""
    if not tensors:
        return []
    lines = [f"| {what} | type and shape |", "|---|---|"]
    for name, described in list(tensors.items())[:MOST_SHOWN]:
        lines.append(f"| `{name}` | {described} |")
    if len(tensors) > MOST_SHOWN:
        lines.append(f"| and {len(tensors) - MOST_SHOWN} more | |")
    return [*lines, ""]


def _zeros(described: str) -> str:
    """Python that makes an input of zeros, for one image."""
    kind, _, shape = described.partition(" ")
    sizes = shape.strip("[]").replace("n", "1")
    comma = "," if sizes and "," not in sizes else ""
    return f"np.zeros(({sizes}{comma}), np.{kind})"
