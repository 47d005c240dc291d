"""The Hub, as a fake on the loopback: downloads, revisions, the cache, uploads, cards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, running

import tessella as ts
from tessella.errors import ArtifactError, InputError
from tessella.pipeline.model_card import card

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

IMAGES = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with running() as (fake, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield fake


def model(seed: int = 0) -> ts.Generator:
    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(8, 8), channels=1, hidden=8, code_dim=4, codebook_size=16, seed=seed
    )
    prior = ts.create("gated-pixelcnn", tokenizer.grid(), layers=1, hidden=8, seed=seed)
    return ts.Generator(tokenizer, prior)


def files_of(generator: ts.Generator, folder: Path) -> dict[str, bytes]:
    generator.save_pretrained(folder)
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def unanswered(hub: FakeHub) -> list[str]:
    """What was asked about repositories that the fake does not know to answer."""
    return [request for request in hub.unknown if "/models/" in request or "/repos/" in request]


def test_a_repository_is_downloaded_and_cached(hub: FakeHub, tmp_path: Path) -> None:
    files = files_of(model(), tmp_path / "x")
    hub.commit("me/digits", {**files, "evil.pkl": b"cos\nsystem\n", "train.py": b"print()"})
    cache = tmp_path / "cache"
    loaded = ts.Generator.from_pretrained("me/digits", cache_dir=cache)
    assert torch.equal(loaded.log_prob(IMAGES), model().log_prob(IMAGES))
    assert not unanswered(hub)
    # Nothing but JSON, safetensors and the card was asked for.
    asked = " ".join(hub.requests)
    assert "evil.pkl" not in asked
    assert "train.py" not in asked
    before = len(hub.requests)
    again = ts.Generator.from_pretrained("me/digits", cache_dir=cache, local_files_only=True)
    assert torch.equal(again.log_prob(IMAGES), loaded.log_prob(IMAGES))
    assert len(hub.requests) == before


def test_a_revision_is_what_was_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    first = hub.commit("me/digits", files_of(model(1), tmp_path / "one"))
    hub.commit("me/digits", files_of(model(2), tmp_path / "two"))
    cache = tmp_path / "cache"
    for revision, seed in ((first, 1), (None, 2), ("main", 2)):
        loaded = ts.Generator.from_pretrained("me/digits", revision=revision, cache_dir=cache)
        assert torch.equal(loaded.log_prob(IMAGES), model(seed).log_prob(IMAGES))
    with pytest.raises(ArtifactError, match=r"me/digits at v9 cannot be had from the Hub"):
        ts.Generator.from_pretrained("me/digits", revision="v9", cache_dir=cache)


def test_what_cannot_be_had_is_one_error(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="me/none cannot be had from the Hub"):
        ts.Generator.from_pretrained("me/none", cache_dir=tmp_path)
    with pytest.raises(ArtifactError, match="no more than the cache was looked at"):
        ts.Generator.from_pretrained("me/none", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(InputError, match="there is no folder"):
        ts.Generator.from_pretrained("./runs/none")
    hub.commit("me/empty", {"README.md": b"nothing"})
    with pytest.raises(ArtifactError, match="is not a saved model"):
        ts.Generator.from_pretrained("me/empty", cache_dir=tmp_path)


def test_what_is_published_comes_back(hub: FakeHub, tmp_path: Path) -> None:
    figures = {"bits_per_dim": 2.5, "data": {"source": "digits", "split": "test"}}
    address = model(3).push_to_hub("me/new", figures=figures, token="hf_x")
    assert "/me/new/commit/" in address
    assert not unanswered(hub)
    loaded = ts.Generator.from_pretrained("me/new", cache_dir=tmp_path / "cache")
    assert torch.equal(loaded.log_prob(IMAGES), model(3).log_prob(IMAGES))
    newest = hub.commits[hub.branches["me/new"]["main"]]
    assert {"config.json", "prior/model.safetensors", "tokenizer/config.json"} <= set(newest)
    assert b"model-index" in newest["README.md"]


def test_a_branch_is_published_apart(hub: FakeHub, tmp_path: Path) -> None:
    model(3).push_to_hub("me/new", token="hf_x")
    model(4).push_to_hub("me/new", revision="wide", token="hf_x")
    for revision, seed in (("main", 3), ("wide", 4)):
        loaded = ts.Generator.from_pretrained("me/new", revision=revision, cache_dir=tmp_path)
        assert torch.equal(loaded.log_prob(IMAGES), model(seed).log_prob(IMAGES))


def test_a_token_is_sent_and_a_refusal_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit("me/secret", files_of(model(), tmp_path / "x"))
    hub.token = "hf_right"
    with pytest.raises(ArtifactError, match="me/secret cannot be had"):
        ts.Generator.from_pretrained("me/secret", cache_dir=tmp_path / "c", token="hf_wrong")
    loaded = ts.Generator.from_pretrained("me/secret", cache_dir=tmp_path / "c", token="hf_right")
    assert loaded.kind == "generator"
    with pytest.raises(ArtifactError, match="the Hub did not take me/other"):
        model().push_to_hub("me/other", token="hf_wrong")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "tessella\[hub\]"'):
        ts.Generator.from_pretrained("me/digits")


def test_a_card_is_read_by_the_parser_of_the_hub() -> None:
    from huggingface_hub import ModelCard

    data = {"source": "npz:photos.npz", "split": "test", "count": 7}
    measured = {"bits_per_dim": 3.25, "psnr_db": 24.5, "ssim": float("nan"), "data": data}
    figures = {"validation": {"bits_per_dim": 9.0}, "test": measured}
    parsed = ModelCard(card("generator", {"tokenizer": {}}, figures))
    assert parsed.data.library_name == "tessella"
    assert parsed.data.pipeline_tag == "unconditional-image-generation"
    results = parsed.data.eval_results
    # The validation does not say of which images it is, and what is no number is left out.
    found = {result.metric_type: result.metric_value for result in results}
    assert found == {"bits_per_dim": 3.25, "psnr_db": 24.5}
    assert {result.dataset_name for result in results} == {"npz:photos.npz"}
    assert {result.dataset_split for result in results} == {"test"}
    # What the library writes of it is what it read.
    again = ModelCard(f"---\n{parsed.data.to_yaml()}\n---\n")
    assert json.dumps(again.data.to_dict()) == json.dumps(parsed.data.to_dict())
    assert ModelCard(card("tokenizer", {}, None)).data.to_dict()["library_name"] == "tessella"
