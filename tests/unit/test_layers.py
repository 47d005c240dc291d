"""The shape of the house, read from the source: which room may import which, where a library
belongs, how long is long.

Every rule is a function from sources (module name to text) to a list of faults. It is run on the
package, where it must find none, and on small modules that break it, where it must find the fault.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

VOCABULARY = {"errors", "grid", "config", "noise", "files", "registry", "names", "progress_bars"}
LAYERS = (
    VOCABULARY,
    {"kernel", "distributed"},
    {"nn"},
    {"heads"},
    {"models", "tokenizers"},
    {"vae"},
    {"sampling"},
    {"exact"},
    {"data"},
    {"codec"},
    {"pipeline"},
    {"storage"},
    {"evaluation"},
    {"bulk"},
    {"training", "report", "contracts", "exchange"},
    {"planning"},
    {"web"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Rooms (modules and folders right under the package), lowest first. A room imports itself and
lower layers; rooms of the same layer never meet, but for the vocabulary."""

ONLY_VOCABULARY = {"data"}
BASES_ONLY = {"sampling", "codec"}
"""Rooms that know the bases (and the condition) of models and tokenizers, never a concrete one."""

TORCH_FREE = ["tessella"]
TORCH_FREE += [
    f"tessella.{name}"
    for name in (
        "cli",
        "cli.verb_options",
        "config",
        "data",
        "errors",
        "files",
        "grid",
        "registry",
        "sampling",
    )
]
"""What the command line needs before a verb runs."""

HOME_OF_LIBRARY = {
    "tyro": {"cli"},
    "rich": {"cli"},
    "textual_image": {"cli"},
    "tqdm": {"progress_bars"},
    "constriction": {"codec"},
    "lightning": {"training"},
    "lightning_fabric": {"training"},
    "pickle": {"data"},
    "huggingface_hub": {"exchange"},
    "onnx": {"exchange"},
    "onnxruntime": {"exchange"},
    "onnxscript": {"exchange"},
    "ray": {"bulk"},
}
NEVER = {
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "torchvision",
    "lpips",
    "piq",
    "cleanfid",
    "torch_fidelity",
}
ROOM_OF_EXTRA = {"web": "web"}
"""Rooms that their verb alone imports, when it runs: the libraries of the extra may stand at the
top of their modules."""
DISTRIBUTION = {
    "PIL": "pillow",
    "lightning": "lightning-fabric",
    "textual_image": "textual-image",
}
REPORT_LIBRARIES = {"numpy", "PIL", "matplotlib"}
UNPICKLING = "tessella.exchange.unpickling"
"""The one module that reads what torch pickled, in a process with limits: it may call torch.load
with ``weights_only=True``."""
PICKLING = re.compile(
    r"torch\.(load|save|hub)\b|pickle\.(load|dump)s?\b|(.*\.)?_?fabric\.(load|save)(_raw)?$"
)

Sources = Mapping[str, str]


@dataclass(frozen=True)
class Import:
    """One imported name, absolute and dotted; ``eager`` if importing the module is enough to run
    it."""

    name: str
    line: int
    eager: bool


def python_files() -> dict[str, str]:
    """Sources of the repository by path."""
    folders = [ROOT / name for name in ("tessella", "tests", "scripts", "benchmarks")]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def package() -> dict[str, str]:
    """Sources of the package by module name; a package goes by the name of its folder."""
    named = {
        re.sub(r"(/__init__)?\.py$", "", path).replace("/", "."): text
        for path, text in python_files().items()
    }
    return {module: text for module, text in named.items() if module.split(".")[0] == "tessella"}


def room(name: str) -> str:
    """The room of a dotted name; what the package offers at its top is the room ``__init__``."""
    parts = name.split(".")
    known = {room for layer in LAYERS for room in layer}
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


def imports(source: str) -> list[Import]:
    """Every name that a module imports, and every use of ``tessella.name`` on the package
    itself."""
    return list(_imports(ast.parse(source), eager=True))


def _imports(node: ast.AST, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield from (
                Import(f"{base}.{alias.name}", child.lineno, eager) for alias in child.names
            )
        elif isinstance(child, ast.Attribute) and dotted(child).startswith("tessella."):
            yield Import(dotted(child), child.lineno, False)
        elif isinstance(child, ast.If) and dotted(child.test).endswith("TYPE_CHECKING"):
            for part in child.body:
                yield from _imports(ast.Module([part], []), eager=False)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), eager)
        else:
            deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, eager and not deferred)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, empty for any other."""
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return node.id if isinstance(node, ast.Name) else ""


def layers(sources: Sources) -> list[str]:
    """Imports that point upwards, sideways, or at a concrete model."""
    rank = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    faults = []
    for module, source in sources.items():
        here = room(module)
        if here == "__init__" and module != "tessella":
            faults.append(f"{module} has no place in LAYERS")
        for item in imports(source):
            place, there = f"{module}:{item.line} imports {item.name}", room(item.name)
            if item.name.startswith("."):
                faults.append(f"{place}: imports are absolute")
            if item.name.split(".")[0] != "tessella" or item.name in (
                "tessella",
                "tessella.__version__",
            ):
                continue
            if here in BASES_ONLY and re.match(
                r"tessella\.(models|tokenizers)\b(?!\.(density_model|masked_model|pixel_window|tokenizer|condition)\b)",
                item.name,
            ):
                faults.append(f"{place}: {here} knows only the base class")
            if there == here or {here, there} <= VOCABULARY:
                continue
            if module == "tessella.models.density_model" and there == "exact" and not item.eager:
                continue  # model.exact() is a short name for what the room above does
            if module == "tessella.nn.pretrained" and there == "exchange" and not item.eager:
                continue  # from_pretrained() and the like are short names, too
            if rank[there] >= rank[here]:
                faults.append(f"{place}: {here} may not know {there}")
            elif here in ONLY_VOCABULARY and there not in VOCABULARY:
                faults.append(f"{place}: {here} knows only the vocabulary")
    return faults


def libraries(sources: Sources) -> list[str]:
    """Third-party imports in the wrong room, or that no dependency declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {_distribution(line) for line in project["dependencies"]}
    optional = {
        _distribution(line) for extra in project["optional-dependencies"].values() for line in extra
    }
    faults = []
    for module, source in sources.items():
        at_the_top = needed
        if room(module) in ROOM_OF_EXTRA:
            extra = project["optional-dependencies"][ROOM_OF_EXTRA[room(module)]]
            at_the_top = needed | {_distribution(line) for line in extra}
        for item in imports(source):
            library, place = item.name.split(".")[0], f"{module}:{item.line} imports {item.name}"
            if item.eager and room(item.name) in ROOM_OF_EXTRA and room(item.name) != room(module):
                faults.append(f"{place}: it needs an extra, so it is imported when it is used")
            if library in NEVER or room(module) not in HOME_OF_LIBRARY.get(library, {room(module)}):
                faults.append(f"{place}: not here")
            if library in sys.stdlib_module_names or library in ("tessella", ""):
                continue
            if module == "tessella.files.pictures" and library not in REPORT_LIBRARIES:
                faults.append(
                    f"{place}: pictures are made with {', '.join(sorted(REPORT_LIBRARIES))} alone"
                )
            if _distribution(DISTRIBUTION.get(library, library)) not in (
                at_the_top if item.eager else needed | optional
            ):
                faults.append(
                    f"{place}: pyproject.toml does not {'require' if item.eager else 'know'} it"
                )
    return faults


def _distribution(requirement: str) -> str:
    """The normalized name of a requirement."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].replace("_", "-").lower()


def pickles(sources: Sources) -> list[str]:
    """Ways to load or write a pickle, but for an unpickler that says which names it allows."""
    faults = []
    for module, source in sources.items():
        named = [(item.name, item.line) for item in imports(source)]
        faults += [
            f"{module}:{line} hides where {name} is from"
            for name, line in named
            if name.startswith("pickle.")
        ]
        for node in ast.walk(ast.parse(source)):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Attribute):
                named.append((dotted(node), line))
            elif isinstance(node, ast.Call) and dotted(node.func) == "pickle.Unpickler":
                faults.append(f"{module}:{line} calls pickle.Unpickler, which allows every name")
            elif (
                isinstance(node, ast.keyword)
                and node.arg == "allow_pickle"
                and ast.unparse(node.value) != "False"
            ):
                faults.append(f"{module}:{line} allow_pickle={ast.unparse(node.value)}")
            elif isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(dotted, node.bases):
                if "find_class" not in {getattr(part, "name", "") for part in node.body}:
                    faults.append(f"{module}:{line} {node.name} does not override find_class")
            elif isinstance(node, ast.alias) and node.asname and node.name in ("torch", "pickle"):
                faults.append(f"{module}:{line} hides {node.name} behind {node.asname}")
        if module == UNPICKLING:
            named, careless = [], _loads_anything(source)
            faults += [f"{module}:{line} loads more than weights" for line in careless]
        faults += [f"{module}:{line} uses {name}" for name, line in named if PICKLING.match(name)]
    return faults


def _loads_anything(source: str) -> list[int]:
    """Lines that use torch.load in another way than ``torch.load(..., weights_only=True)``."""
    careful = set()
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if options.get("weights_only") == "True":
                careful.add(node.func)
        elif isinstance(node, ast.Attribute) and PICKLING.match(dotted(node)):
            lines.append((node, node.lineno))
    return [line for node, line in lines if node not in careful]


def torch_free(sources: Sources) -> list[str]:
    """Chains of imports that reach torch from a module that must do without it."""
    faults = []
    for start in TORCH_FREE:
        chains, seen = [[start]], {start}
        while chains:
            chain = chains.pop()
            for item in imports(sources.get(chain[-1], "")):
                if not item.eager:
                    continue
                if item.name.split(".")[0] == "torch":
                    faults.append(f"{' -> '.join(chain)} imports torch in line {item.line}")
                parts = item.name.split(".")
                steps = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
                fresh = [step for step in steps if step in sources and step not in seen]
                seen.update(fresh)
                chains += [[*chain, step] for step in fresh]
    return faults


def lengths(sources: Sources) -> list[str]:
    """Files of 600 lines or more (tests: 900), long functions, rooms whose name says nothing."""
    faults = [
        f"{name}: a name should say what is inside"
        for name in sources
        if re.search(r"\butils?\b", name)
    ]
    for name, source in sources.items():
        count = len(source.splitlines())
        limit = 900 if name.startswith("tests/") else 600
        if count >= limit:
            faults.append(f"{name} has {count} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > 80:
                    faults.append(f"{name}:{node.lineno} {node.name} has {count} lines")
    return faults


Rule = Callable[[Sources], list[str]]


@pytest.mark.parametrize("rule", [layers, libraries, pickles, torch_free])
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert rule(package()) == []


def test_files_and_functions_stay_short() -> None:
    assert lengths(python_files()) == []


def test_the_package_is_found() -> None:
    assert {
        "tessella",
        "tessella.grid",
        "tessella.models.density_model",
        "tessella.cli.entry",
    } <= set(package())


def test_the_command_line_answers_without_torch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


VIOLATIONS: list[tuple[Rule, str, str]] = [
    (layers, "tessella.nn.attention", "from tessella.models.density_model import DensityModel"),
    (layers, "tessella.nn.attention", "def f():\n    from tessella import sampling"),
    (layers, "tessella.models.transformer", "from tessella.tokenizers.tokenizer import Tokenizer"),
    (layers, "tessella.tokenizers.vqvae", "import tessella.models"),
    (layers, "tessella.sampling", "from tessella.models.gated_pixelcnn import GatedPixelCNN"),
    (layers, "tessella.sampling", "from tessella.models import create"),
    (layers, "tessella.codec.container", "from tessella.tokenizers import identity"),
    (layers, "tessella.pipeline", "import tessella\ndef f():\n    return tessella.train"),
    (layers, "tessella.data.digits", "from tessella.nn import state"),
    (layers, "tessella.heads", "from tessella import create"),
    (layers, "tessella.grid", "from .heads import HEADS"),
    (
        layers,
        "tessella.grid",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tessella.heads import Head",
    ),
    (layers, "tessella.nn.pretrained", "from tessella.exchange import hub"),
    (layers, "tessella.helpers", ""),
    (libraries, "tessella.pipeline", "def f():\n    import tyro"),
    (libraries, "tessella.evaluation", "from lightning.fabric import Fabric"),
    (libraries, "tessella.files", "import pickle"),
    (libraries, "tessella.data.npz", "from torchvision import datasets"),
    (libraries, "tessella.files.pictures", "import torch"),
    (libraries, "tessella.nn.attention", "import einops"),
    (libraries, "tessella.training.run_directory", "import matplotlib.pyplot"),
    (libraries, "tessella.cli.verbs.serve", "import uvicorn"),
    (libraries, "tessella.cli.verbs.serve", "from tessella.web import server"),
    (libraries, "tessella.web.server", "import matplotlib.pyplot"),
    (pickles, "tessella.pipeline", "import torch\ntorch.load('x', weights_only=True)"),
    (pickles, "tessella.exchange.unpickling", "import torch\ntorch.load('x')"),
    (
        pickles,
        "tessella.exchange.unpickling",
        "import torch\nf = torch.load\nf('x', weights_only=True)",
    ),
    (pickles, "tessella.training.checkpoint", "import torch\ntorch.save({}, 'x')"),
    (pickles, "tessella.pipeline", "from torch import load"),
    (pickles, "tessella.pipeline", "import torch as t\nt.load('x')"),
    (pickles, "tessella.data.cifar", "import pickle\npickle.loads(b'')"),
    (pickles, "tessella.data.cifar", "from pickle import Unpickler\nUnpickler(file).load()"),
    (pickles, "tessella.data.cifar", "import pickle\npickle.Unpickler(file).load()"),
    (pickles, "tessella.data.cifar", "import pickle\nclass Open(pickle.Unpickler):\n    pass"),
    (pickles, "tessella.data.npz", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    (pickles, "tessella.training.loop", "def f(self):\n    self.fabric.save('x', {})"),
    (
        torch_free,
        "tessella.config",
        "try:\n    from torch import nn\nexcept ImportError:\n    nn = None",
    ),
    (torch_free, "tessella.grid", "class Grid:\n    import torch"),
    (lengths, "tessella.models.long", "x = 1\n" * 600),
    (lengths, "tessella.models.long", "def f():\n" + "    x = 1\n" * 80),
    (lengths, "tessella.nn.utils", ""),
]


@pytest.mark.parametrize(("rule", "module", "source"), VIOLATIONS)
def test_a_violation_is_found(rule: Rule, module: str, source: str) -> None:
    faults = rule({module: source})
    assert faults
    assert all(fault.startswith(module) for fault in faults)


def test_torch_is_found_through_other_modules() -> None:
    sources = {
        "tessella.cli": "from tessella.a import b",
        "tessella.a": "",
        "tessella.a.b": "import torch.nn",
    }
    assert torch_free(sources) == ["tessella.cli -> tessella.a.b imports torch in line 1"]


def test_what_is_allowed_is_not_a_fault() -> None:
    torch_later = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import torch"
    )
    assert torch_free({"tessella.grid": torch_later}) == []
    assert (
        layers(
            {
                "tessella.sampling": (
                    "import tessella\nfrom tessella.models.density_model import DensityModel"
                )
            }
        )
        == []
    )
    assert layers({"tessella.pipeline": "import tessella\nVERSION = tessella.__version__"}) == []
    assert (
        libraries({"tessella.files.pictures": "def f():\n    import matplotlib.pyplot as plt"})
        == []
    )
    restricted = (
        "import pickle\n"
        "class Restricted(pickle.Unpickler):\n    def find_class(self, module, name): ..."
    )
    assert pickles({"tessella.data.cifar": restricted}) == []
    careful = "import torch\ntorch.load('x', weights_only=True)"
    assert pickles({"tessella.exchange.unpickling": careful}) == []
    assert lengths({"tessella.models.long": "def f():\n" + "    x = 1\n" * 79}) == []
