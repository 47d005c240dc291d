"""Write a saved model for other programs: ONNX files, exported programs of torch, safetensors.

Every file is read back after it is written, and its results are compared with those of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import tessella
from tessella import files
from tessella.errors import ArtifactError, InputError
from tessella.exchange.graphs import Decoding, Graph, Scoring, graphs_of
from tessella.exchange.snippets import Written, readme
from tessella.models import Hierarchy
from tessella.pipeline import fingerprint, load_saved
from tessella.tokenizers.quantizers import search

Format = Literal["onnx", "torch-export", "safetensors"]

TOLERANCE = 1e-4
"""Largest difference of a result from that of the model, in units of one or, of larger results, of
their size."""

STEPS_CHECKED = 8
"""Places at which a cached step is compared, in order."""

CACHES = frozenset({"keys", "values", "new_keys", "new_values"})
"""Inputs and results that have the layers in front of the images."""

MISSING = 'ONNX files need onnx, onnxruntime and onnxscript: pip install "tessella[export]"'

Runner = Callable[..., dict[str, torch.Tensor]]
"""Runs a file that was written, with inputs in order; results by name."""


def export(
    run: Path | str, out: Path | str, format: Format = "onnx", force: bool = False
) -> list[Written]:
    """Export a saved model to a folder.

    Args:
        run: a run directory, or the name of a bundled model.
        out: folder to write; a new one, or one that was made here.
        format: what to write.
        force: replace a folder that holds something else.

    Returns:
        What was written. The folder also holds a ``README.md`` that shows how to use it, and a
        ``made.json`` that says what it was made of.

    Raises:
        InputError: for a model that has nothing to export, or an output that must not be replaced.
        ArtifactError: when a file that was written gives other results than the model.
    """
    if format == "onnx":
        _require_onnx()
    model = load_saved(run)
    files.check_replaceable(out, force)
    networks = _networks(model.components())
    with files.atomic_directory(out) as folder:
        if format == "safetensors":
            written = [_write_weights(role, network, folder) for role, network in networks.items()]
        else:
            written = _write_graphs(networks, folder, format)
        if not written:
            raise InputError(f"{run} holds no network that can be exported as {format}")
        made = {
            "made": {"tessella": tessella.__version__, "torch": str(torch.__version__)},
            "format": format,
            "weights": fingerprint(model),
            "files": [vars(item) for item in written],
        }
        files.write_json(folder / "made.json", made)
        files.write_text(folder / "README.md", readme(format, written))
    return written


def _networks(components: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks of a saved model; of a hierarchy, the model of each grid."""
    networks: dict[str, nn.Module] = {}
    for role, network in components.items():
        if isinstance(network, Hierarchy):
            for level, part in enumerate(network):
                networks[f"{role}_{level}"] = part
        else:
            networks[role] = network
    return networks


def _write_weights(role: str, network: nn.Module, folder: Path) -> Written:
    """Write the weights of a network, and read them back."""
    name = f"{role}.safetensors"
    weights = network.state_dict()
    files.write_tensors(folder / name, weights)
    again = files.read_tensors(folder / name)
    shapes = {key: _described(key, tensor, False) for key, tensor in weights.items()}
    for key, tensor in weights.items():
        if not torch.equal(again[key], tensor.cpu()):
            raise ArtifactError(f"{name} does not hold {key} as it was written")
    return Written(name, f"the {len(weights)} tensors of the {role}", {}, shapes, 0.0)


def _write_graphs(networks: Mapping[str, nn.Module], folder: Path, format: Format) -> list[Written]:
    """Write every graph of some networks to a file of its own, and compare it."""
    written = []
    for role, network in networks.items():
        for graph in graphs_of(role, network):
            graph.module.eval()
            name = f"{graph.name}.onnx" if format == "onnx" else f"{graph.name}.pt2"
            program = _traced(graph)
            with files.atomic_file(folder / name) as temporary:
                if format == "onnx":
                    _save_onnx(program, graph, temporary)
                else:
                    torch.export.save(program, temporary)
            runner = _onnx_runner if format == "onnx" else _torch_runner
            difference = _compared(graph, runner(folder / name, graph), name)
            outputs = graph.run(*graph.example())
            described = {key: _described(key, tensor, True) for key, tensor in outputs.items()}
            inputs = {
                key: _described(key, tensor, key in graph.batched)
                for key, tensor in graph.inputs.items()
            }
            written.append(Written(name, graph.about, inputs, described, difference))
    return written


def _traced(graph: Graph) -> torch.export.ExportedProgram:
    """The graph without Python, for any number of images."""
    count = torch.export.Dim("n", min=1, max=1 << 20)
    shapes = []
    for name in graph.inputs:
        # The caches of a step have the layers in front.
        dimension = 1 if name in CACHES else 0
        shapes.append({dimension: count} if name in graph.batched else {})
    arguments: Any = tuple(shapes)
    # A module that takes *symbols has all its inputs in one tuple.
    if isinstance(graph.module, Decoding):
        arguments = (tuple(shapes),)
    elif isinstance(graph.module, Scoring) and len(shapes) > 1:
        arguments = (shapes[0], tuple(shapes[1:]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph.module, graph.example(), dynamic_shapes=arguments)
        # The search for the nearest code is an operation of ours, which other programs lack.
        table = {**torch.export.default_decompositions()}
        table[torch.ops.tessella.nearest.default] = search.nearest_at_once
        return program.run_decompositions(table)


def _save_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(path)


def _onnx_runner(path: Path, graph: Graph) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # Inputs that a graph does not look at, such as classes of a model without any, are left out.
    wanted = {item.name for item in session.get_inputs()}

    def run(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        named = zip(graph.inputs, inputs, strict=True)
        feed = {name: tensor.numpy() for name, tensor in named if name in wanted}
        results = session.run(list(graph.outputs), feed)
        return {
            name: torch.from_numpy(value)
            for name, value in zip(graph.outputs, results, strict=True)
        }

    return run


def _torch_runner(path: Path, graph: Graph) -> Runner:
    module = torch.export.load(path).module()

    def run(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        results = module(*inputs)
        given = results if isinstance(results, tuple) else (results,)
        return dict(zip(graph.outputs, given, strict=True))

    return run


@torch.no_grad()
def _compared(graph: Graph, runner: Runner, file: str) -> float:
    """The largest difference between a file and the model.

    Raises:
        ArtifactError: when it is more than rounding.
    """
    largest = 0.0
    if "keys" not in graph.inputs:
        largest = _difference(graph, runner, graph.example(), file)
        # Another number of images than the one that was traced.
        single = [
            tensor[:1] if name in graph.batched else tensor for name, tensor in graph.inputs.items()
        ]
        return max(largest, _difference(graph, runner, tuple(single), file))
    previous, _, keys, values, labels = graph.example()
    for place in range(min(STEPS_CHECKED, keys.shape[3])):
        inputs = (previous, torch.tensor(place), keys, values, labels)
        largest = max(largest, _difference(graph, runner, inputs, file))
        results = graph.run(*inputs)
        keys, values = results["new_keys"], results["new_values"]
    return largest


def _difference(graph: Graph, runner: Runner, inputs: tuple[torch.Tensor, ...], file: str) -> float:
    """The largest difference of the results of one run.

    Raises:
        ArtifactError: when it is more than rounding.
    """
    expected = graph.run(*inputs)
    found = runner(*inputs)
    largest = 0.0
    for name, tensor in expected.items():
        gap = (found[name].double() - tensor.double()).abs()
        allowed = 0.0 if name in graph.exact else TOLERANCE
        relative = gap / tensor.double().abs().clamp_min(1.0)
        worst = float(relative.max()) if gap.numel() else 0.0
        if not worst <= allowed:
            raise ArtifactError(
                f"{file} gives other {name} than the model: the largest difference is {worst:.2g}, "
                f"and {allowed:g} is allowed; the file was not kept"
            )
        largest = max(largest, worst)
    return largest


def _described(name: str, tensor: torch.Tensor, batched: bool) -> str:
    """Type and shape in words, ``n`` for the number of images."""
    sizes = [str(size) for size in tensor.shape]
    if batched and sizes:
        sizes[1 if name in CACHES else 0] = "n"
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} [{', '.join(sizes)}]"


def _require_onnx() -> None:
    """Refuse early where a library is missing.

    Raises:
        InputError: with the line that installs them.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise InputError(MISSING) from error
    assert onnx
    assert onnxruntime
    assert onnxscript
