"""Exports: the same results in other programs, for any number of images, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.cli.entry import main
from tessella.errors import ArtifactError, InputError
from tessella.exchange import exporting
from tessella.exchange.graphs import Encoding, GPTStep, TransformerStep, graph_of_step
from tessella.files import read_json, read_tensors

SMALL: dict[str, Any] = {"image_size": (8, 8), "codebook_size": 16, "code_dim": 4, "hidden": 8}
VQGAN: dict[str, Any] = {"multipliers": (1, 2), "latent": 8, "residual_blocks": 1}


@pytest.fixture(scope="module")
def two_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved VQ-VAE with a transformer of classes on its codes."""
    tokenizer = ts.create_tokenizer("vqvae", channels=1, residual_blocks=1, **SMALL)
    prior = ts.create("transformer", tokenizer.grid(), classes=3, layers=1, width=8, heads=2)
    folder = tmp_path_factory.mktemp("models") / "two-stage"
    ts.Generator(tokenizer, prior).save(folder)
    return folder


def images(channels: int = 1, n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)


def onnx_session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["vqvae", "vqvae2", "vqgan"])
def test_symbols_of_a_graph_are_those_of_the_tokenizer(name: str) -> None:
    sizes = {"vqgan": VQGAN, "vqvae2": {"residual_hidden": 4}}.get(name, {})
    tokenizer = ts.create_tokenizer(name, channels=1, **SMALL, **sizes)
    graph = Encoding(tokenizer)  # type: ignore[arg-type]
    given = torch.from_numpy(images())
    with torch.no_grad():
        found = graph(given)
    expected = tokenizer.encode(given)
    parts = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(found, parts, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize(("name", "classes"), [("transformer", 3), ("transformer", 0), ("gpt", 2)])
def test_a_step_with_its_caches_is_the_step_of_the_model(name: str, classes: int) -> None:
    sizes: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2}
    if name == "transformer":
        sizes["kv_heads"] = 1
    model = ts.create(name, ts.Grid(3, 4, 1, 5), classes=classes, **sizes)
    graph = graph_of_step(model, "step")
    assert graph is not None
    assert isinstance(graph.module, (TransformerStep, GPTStep))
    _, _, keys, values, _ = graph.example()
    labels = torch.tensor([1, 0])
    x = torch.randint(5, (2, 12), generator=torch.Generator().manual_seed(0))
    state, previous = model.init_state(2, labels if classes else None), x[:, 0]
    for place in range(12):
        expected, state = model.step(previous, place, state)
        found, keys, values = graph.module(previous, torch.tensor(place), keys, values, labels)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        previous = x[:, place]


def test_models_without_a_cached_step_have_no_such_graph() -> None:
    colour = ts.create("transformer", ts.Grid(2, 2, 3, 4), layers=1, width=8, heads=2)
    assert graph_of_step(colour, "step") is None
    assert graph_of_step(ts.create("nade", ts.Grid(2, 2, 1, 4)), "step") is None


def test_onnx_files_of_a_two_stage_model(
    two_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    out = tmp_path / "exported"
    assert main(["export", str(two_stage), "--out", str(out)]) == 0
    assert "prior_step.onnx" in capsys.readouterr().out
    made = read_json(out / "made.json")
    assert {item["file"] for item in made["files"]} == {
        f"{name}.onnx" for name in ("encoder", "decoder", "prior_forward", "prior_step")
    }
    model = ts.load(two_stage, expect=ts.Generator)
    (codes,) = onnx_session(out / "encoder.onnx").run(None, {"images": images()})
    assert np.array_equal(codes, model.encode(images()).numpy())
    (decoded,) = onnx_session(out / "decoder.onnx").run(None, {"symbols": codes})
    expected = model.tokenizer.decode(codes).numpy()
    assert np.abs(decoded * 255 - expected).max() < 0.51
    labels = np.array([0, 1, 2])
    feed = {"symbols": codes, "labels": labels}
    _, nats = onnx_session(out / "prior_forward.onnx").run(None, feed)
    exact = model.log_prob(images(), torch.from_numpy(labels)).detach().numpy()
    assert np.abs(nats.sum((1, 2, 3)) - exact).max() < 1e-4
    # The lines of Python in the README run as they stand.
    text = (out / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        for snippet in snippets:
            exec(compile(snippet, "README.md", "exec"), {})
    # Exported again, the folder is one that was made here.
    assert main(["export", str(two_stage), "--format", "safetensors", "--out", str(out)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqgan", "gated-pixelcnn"])
def test_onnx_files_of_other_networks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    if name == "vqgan":
        ts.create_tokenizer("vqgan", channels=3, **SMALL, **VQGAN).save_pretrained(tmp_path / "run")
    else:
        grid = ts.Grid(4, 4, 3, 256)
        model = ts.create(name, grid, "logistic-mixture", layers=2, hidden=8)
        model.save_pretrained(tmp_path / "run")
    written = exporting.export(tmp_path / "run", tmp_path / "out")
    # Compared with the model in onnxruntime before they were kept.
    assert written
    assert all(item.difference <= exporting.TOLERANCE for item in written)


@pytest.mark.slow
def test_exported_programs_of_a_two_stage_model(two_stage: Path, tmp_path: Path) -> None:
    written = exporting.export(two_stage, tmp_path / "out", "torch-export")
    assert {item.file for item in written} == {
        f"{name}.pt2" for name in ("encoder", "decoder", "prior_forward", "prior_step")
    }
    module = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    model = ts.load(two_stage, expect=ts.Generator)
    given = torch.from_numpy(images(n=5))
    (codes,) = module(given)
    assert torch.equal(codes, model.encode(given))


def test_weights_are_written_as_they_are(two_stage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(two_stage), "--format", "safetensors", "--out", str(out)]) == 0
    model = ts.load(two_stage, expect=ts.Generator)
    for role, network in model.components().items():
        tensors = read_tensors(out / f"{role}.safetensors")
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensors[name], tensor)
    assert 'load_file("prior.safetensors")' in (out / "README.md").read_text()


def test_a_file_with_other_results_is_not_kept(
    two_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, graph: Any) -> exporting.Runner:
        def run(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: tensor + 1 for name, tensor in graph.run(*inputs).items()}

        return run

    monkeypatch.setattr(exporting, "_torch_runner", wrong)
    monkeypatch.setattr(exporting, "_traced", lambda graph: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: Path(path).touch())
    with pytest.raises(ArtifactError, match=r"encoder\.pt2 gives other symbols than the model"):
        exporting.export(two_stage, tmp_path / "out", "torch-export")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("Dear all")
    words = ["export", "digits", "--format", "safetensors", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "was not made by tessella" in capsys.readouterr().err
    ts.create_vae(image_size=(8, 8), channels=1, hidden=8).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match="holds no network that can be exported"):
        exporting.export(tmp_path / "vae", tmp_path / "out", "torch-export")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "digits", "--out", str(tmp_path / "out")]) == 2
    assert 'pip install "tessella[export]"' in capsys.readouterr().err
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["letter.txt", "vae"]'
