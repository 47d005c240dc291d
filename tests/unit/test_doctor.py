"""The codebook doctor: facts against direct computation, a sentence for each fault, and silence
where nothing can be said."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import files
from tessella.data import ImageSet
from tessella.errors import TessellaWarning
from tessella.report.codebook_figures import codebooks
from tessella.tokenizers import Tokenizer, codebook_health
from tessella.tokenizers.codebook_health import Facts
from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, QuantizerOutput, Remedies

HEALTHY = Facts(
    grid=0,
    depth=0,
    grids=1,
    depths=1,
    codes=512,
    vectors=100_000,
    used=512,
    entropy_bits=8.7,
    top_share=0.02,
    quantizer="vq-ema",
    twins=0,
    reviving=True,
)


def tokenizer(**sizes: object) -> Tokenizer:
    torch.manual_seed(0)
    given = {
        "image_size": [8, 8],
        "channels": 1,
        "hidden": 8,
        "code_dim": 4,
        "codebook_size": 8,
        **sizes,
    }
    return ts.create_tokenizer("vqvae", **given)


def test_facts_are_those_of_the_counts() -> None:
    counts = torch.tensor([6, 3, 0, 0, 1, 0, 0, 0])
    (facts,) = codebook_health.examine(tokenizer(), [counts])
    shares = [0.6, 0.3, 0.1]
    assert (facts.codes, facts.vectors, facts.used, facts.dead) == (8, 10, 3, 5)
    assert facts.top_share == pytest.approx(0.6)
    assert facts.entropy_bits == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert facts.perplexity == pytest.approx(2**facts.entropy_bits)
    assert (facts.quantizer, facts.reviving) == ("vq-ema", True)


def test_counts_of_nothing_are_told_as_too_few() -> None:
    (facts,) = codebook_health.examine(tokenizer(), [torch.zeros(8)])
    assert (facts.used, facts.top_share, facts.entropy_bits) == (0, 0.0, 0.0)
    assert "too few images" in codebook_health.diagnose([facts])[0]


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_twins_are_found_among_codes_in_general_position(noise: float) -> None:
    torch.manual_seed(0)
    codes = torch.randn(600, 8, dtype=torch.float64)
    assert codebook_health.twins(codes) == 0
    codes[300:310] = codes[:10] + noise
    assert codebook_health.twins(codes) == 20


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_codes_that_all_have_twins_are_all_found(noise: float) -> None:
    torch.manual_seed(0)
    codes = torch.randn(50, 4, dtype=torch.float64)
    assert codebook_health.twins(torch.cat([codes, codes + noise])) == 100


def test_twins_do_not_depend_on_scale_and_place() -> None:
    torch.manual_seed(0)
    codes = torch.randn(300, 4, dtype=torch.float64)
    codes[1] = codes[0]
    assert codebook_health.twins(1e-3 * codes + 100) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["healthy", "512 of 512", "0.81"]),
        ({"used": 300}, ["212 of 512 codes are dead (41%)", "decay"]),
        ({"used": 300, "reviving": False}, ["dead", "set revive = 0.1"]),
        ({"used": 300, "quantizer": "vq"}, ["dead", "cosine = true"]),
        (
            {"used": 300, "quantizer": "fsq", "reviving": None, "twins": None},
            ["dead", "fewer levels"],
        ),
        (
            {"used": 300, "quantizer": "lfq", "reviving": None, "twins": None},
            ["dead", "raise entropy"],
        ),
        ({"used": 300, "quantizer": "simvq", "reviving": None}, ["dead", "higher learning rate"]),
        (
            {"top_share": 0.93, "used": 9, "entropy_bits": 0.5},
            ["collapsed", "93%", "beta", "scale 0..1"],
        ),
        ({"top_share": 0.93, "quantizer": "lfq"}, ["collapsed", "entropy"]),
        ({"twins": 100}, ["100 of 512 codes have a twin", "smaller revive"]),
        (
            {"entropy_bits": 5.0, "top_share": 0.4},
            ["uneven", "perplexity 32.0", "take about 32 codes"],
        ),
        ({"usage_drift": 0.5}, ["not settled", "50%"]),
        ({"depth": 2, "depths": 3, "variance_share": 0.001}, ["depth 2", "0.1%", "depth = 2"]),
        (
            {"vectors": 1000, "used": 200},
            ["too few images", "1,000 vectors for 512 codes", "6 times"],
        ),
    ],
)
def test_the_diagnosis_says_what_is_wrong_and_what_to_change(
    changes: dict[str, object], words: list[str]
) -> None:
    lines = codebook_health.diagnose([replace(HEALTHY, **changes)])  # type: ignore[arg-type]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert ("healthy" in lines[0]) == (not changes)


@pytest.mark.parametrize(
    ("name", "fault", "good"),
    [
        (
            "used",
            round(512 * codebook_health.MIN_USED_SHARE) - 1,
            round(512 * codebook_health.MIN_USED_SHARE) + 1,
        ),
        ("top_share", codebook_health.COLLAPSED_SHARE, codebook_health.COLLAPSED_SHARE - 0.01),
        (
            "entropy_bits",
            math.log2(512 * Quantizer.healthy_perplexity) - 0.01,
            math.log2(512 * Quantizer.healthy_perplexity) + 0.01,
        ),
        ("twins", 26, 25),
        ("usage_drift", codebook_health.MAX_DRIFT + 0.01, codebook_health.MAX_DRIFT),
        (
            "vectors",
            512 * codebook_health.MIN_VECTORS_PER_CODE - 1,
            512 * codebook_health.MIN_VECTORS_PER_CODE,
        ),
    ],
)
def test_a_fault_begins_at_its_threshold(name: str, fault: float, good: float) -> None:
    given: list[Facts] = [replace(HEALTHY, **{name: value}) for value in (fault, good)]  # type: ignore[arg-type]
    assert ["healthy" in codebook_health.diagnose([facts])[0] for facts in given] == [False, True]


def test_a_collapse_is_one_also_with_few_vectors_a_code_but_not_with_few_at_all() -> None:
    few = replace(HEALTHY, codes=4096, vectors=5000, top_share=0.95, used=5)
    assert "collapsed" in codebook_health.diagnose([few])[0]
    assert (
        "too few images"
        in codebook_health.diagnose(
            [replace(few, vectors=codebook_health.MIN_VECTORS_FOR_COLLAPSE - 1)]
        )[0]
    )


def test_a_top_grid_that_is_not_used_is_put_down_to_the_finer_one() -> None:
    top = replace(HEALTHY, grids=2, top_share=0.99, used=3, entropy_bits=0.1)
    bottom = replace(HEALTHY, grids=2, grid=1)
    lines = codebook_health.diagnose([top, bottom])
    assert lines[0].startswith("grid 0: collapsed")
    assert "the finer codes carry all" in lines[0]
    assert lines[1].startswith("grid 1: healthy")
    both = codebook_health.diagnose([top, replace(bottom, top_share=0.99)])
    assert not any("carry all" in line for line in both)


BAD = torch.tensor([5000, 1, 0, 0, 0, 0, 0, 0])
"""Counts of a collapsed codebook of 8."""
GOOD = torch.full((8,), 100)


def trained_for(steps: int, vectors: float = 1000.0, quantizer: str = "vq-ema") -> Tokenizer:
    """A tokenizer that says it has learned from so many batches of so many vectors."""
    options = {"levels": [8]} if quantizer == "fsq" else {}
    model = tokenizer(quantizer=quantizer, options=options)
    for name, buffer in model.named_buffers():
        if name.endswith("counts"):
            buffer.fill_(vectors / len(buffer))
        if name.endswith("steps"):
            buffer.fill_(steps)
    return model


def warned(
    watch: codebook_health.CodebookMonitor, model: Tokenizer, counts: torch.Tensor
) -> list[str]:
    """The warnings of a look at a codebook."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.figures(model, [counts])
    return [str(warning.message) for warning in caught if warning.category is TessellaWarning]


def test_a_codebook_that_stays_collapsed_is_warned_of_once() -> None:
    model = trained_for(10_000)
    watch = codebook_health.CodebookMonitor()
    looks = (BAD, GOOD, BAD, BAD, BAD, GOOD, BAD, BAD)
    lines = [warned(watch, model, counts) for counts in looks]
    assert [len(found) for found in lines] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert lines[3][0].startswith("codebook collapsed: one code takes 100% of the vectors")


def test_no_collapse_is_warned_of_while_training_has_just_begun() -> None:
    watch = codebook_health.CodebookMonitor()
    assert [warned(watch, trained_for(15), BAD) for _ in range(4)] == [[]] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"top_share": 0.93, "used": 9, "entropy_bits": 0.5},
        {"used": 300},
        {"twins": 100},
        {"entropy_bits": 5.0, "top_share": 0.4},
        {"usage_drift": 0.5},
        {"depth": 2, "depths": 3, "variance_share": 0.001},
    ],
)
@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"steps": 15}, "learned from 15 batches only"),
        ({"steps": 1}, "learned from 1 batch only"),
        ({"steps": 500, "vectors_seen": 1000.0}, "learned from about 1,000 vectors only"),
    ],
)
def test_a_codebook_of_a_run_just_begun_is_called_undertrained_and_nothing_else_is_advised(
    changes: dict[str, object], training: dict[str, object], words: str
) -> None:
    facts = replace(HEALTHY, **{**changes, **training})  # type: ignore[arg-type]
    lines = codebook_health.diagnose([facts])
    assert len(lines) == 1
    assert "undertrained: " in lines[0]
    assert words in lines[0]
    for advice in ("take ", "learning rate", "revive", "beta", "collapsed", "dead"):
        assert advice not in lines[0]


@pytest.mark.parametrize("steps", [None, codebook_health.MIN_STEPS, 10_000])
def test_a_fault_is_named_where_training_was_long_or_its_length_is_unknown(
    steps: int | None,
) -> None:
    facts = replace(HEALTHY, used=300, steps=steps, vectors_seen=1e6)
    assert "codes are dead" in codebook_health.diagnose([facts])[0]


def test_good_codes_are_called_healthy_however_short_the_training() -> None:
    assert "healthy" in codebook_health.diagnose([replace(HEALTHY, steps=15)])[0]


@pytest.mark.parametrize("quantizer", ["vq-ema", "rotation", "vq", "simvq"])
def test_a_quantizer_says_itself_how_long_it_learned(quantizer: str) -> None:
    (facts,) = codebook_health.examine(trained_for(15, quantizer=quantizer), [BAD], steps=7)
    assert facts.steps == 15
    assert facts.vectors_seen == pytest.approx(15_000)


def test_the_caller_says_how_long_a_quantizer_without_steps_learned() -> None:
    model = trained_for(15, quantizer="fsq")
    (facts,) = codebook_health.examine(model, [BAD], steps=7)
    assert facts.steps == 7
    (facts,) = codebook_health.examine(model, [BAD])
    assert facts.steps is None


def test_codes_that_were_converted_do_not_count_as_undertrained() -> None:
    (facts,) = codebook_health.examine(trained_for(1, vectors=0), [BAD])
    assert facts.steps is None
    assert "collapsed" in codebook_health.diagnose([facts])[0]


@pytest.mark.parametrize("quantizer", ["vq-ema", "fsq"])
def test_an_evaluation_of_a_run_of_few_steps_says_that_it_is_undertrained(
    quantizer: str, tmp_path: Path
) -> None:
    options = {"levels": [32]} if quantizer == "fsq" else {}
    model = tokenizer(quantizer=quantizer, options=options, codebook_size=32)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    ts.train(model, images, out=tmp_path / "run", steps=3, batch=8, say=lambda _: None)
    # Black images have one code, which looks like a collapse.
    figures = ts.evaluate(tmp_path / "run", np.zeros((400, 8, 8, 1), np.uint8))
    assert len(figures["diagnosis"]) == 1
    assert "undertrained: the codes learned from 3 batches only" in figures["diagnosis"][0]


def test_a_two_stage_run_says_that_its_tokenizer_is_undertrained(tmp_path: Path) -> None:
    # This quantizer does not count its batches, so only the run of the tokenizer knows them.
    model = tokenizer(quantizer="fsq", options={"levels": [8]})
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    short = {"batch": 8, "say": lambda _: None}
    ts.train(model, images, out=tmp_path / "tokenizer", steps=3, **short)  # type: ignore[arg-type]
    prior = ts.create("gated-pixelcnn", model.grid(), layers=1, hidden=4)
    run = tmp_path / "prior"
    ts.train(prior, images, out=run, tokenizer=model, steps=2, **short)  # type: ignore[arg-type]
    # As the command line records it.
    record = files.read_json_object(run / "run.json")
    record["recipe"] = {"prior_of": str(tmp_path / "tokenizer")}
    files.write_json(run / "run.json", record)
    black = np.zeros((400, 8, 8, 1), np.uint8)
    diagnosis = ts.evaluate(run, black)["diagnosis"]
    assert len(diagnosis) == 1
    assert "undertrained: the codes learned from 3 batches only" in diagnosis[0]
    section = codebooks(model, ImageSet(black), steps=3)
    assert section is not None
    assert "undertrained" in section["diagnosis"][0]


def test_advice_on_depth_is_conditional_where_the_length_of_training_is_unknown() -> None:
    second = replace(HEALTHY, depth=1, depths=2, used=1, top_share=1.0, steps=None)
    first = replace(HEALTHY, depths=2)
    (line,) = codebook_health.diagnose([first, second])[1:]
    assert "unless training has just begun, the codes before it leave nothing" in line
    (line,) = codebook_health.diagnose([first, replace(second, steps=5)])[1:]
    assert "undertrained" in line
    assert "set depth" not in line
    (line,) = codebook_health.diagnose([first, replace(second, steps=5000)])[1:]
    assert "are used; the codes before it leave nothing, so set depth = 1" in line


class OneCode(Quantizer):
    """A quantizer from outside, which brings its advice along."""

    depth = 1
    remedies = Remedies(collapse="pray", dead_codes="sing, or {fewer}")
    healthy_perplexity = 0.9

    def __init__(self, dim: int = 4, codebook_size: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.levels = codebook_size

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        symbols = self.encode(z)
        return QuantizerOutput(symbols, 0 * z, {}, {})

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*z.shape[:-1], 1, dtype=torch.int64)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*symbols.shape[:-1], self.dim)


def test_a_quantizer_from_outside_brings_its_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests build every registered quantizer, so this one is taken out again.
    monkeypatch.setattr(QUANTIZERS, "_entries", dict(QUANTIZERS._entries))
    ts.register_quantizer("one-code")(OneCode)
    assert tokenizer(quantizer="one-code").grid().levels == 8
    outside = replace(HEALTHY, quantizer="one-code")
    lines = codebook_health.diagnose(
        [
            replace(outside, top_share=0.9),
            replace(outside, used=200),
            replace(outside, entropy_bits=8.0),
        ]
    )
    assert "pray" in lines[0]
    assert "sing, or take about 256 codes" in lines[1]
    assert "use is uneven" in lines[2]


def test_logged_figures_are_finite_numbers_with_known_names() -> None:
    figures = codebook_health.CodebookMonitor().figures(tokenizer(), [torch.arange(8)])
    assert {
        "code_usage",
        "code_perplexity_share",
        "codes_dead",
        "codes_twin",
        "code_top_share",
    } == set(figures)
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    assert figures["code_usage"] == pytest.approx(7 / 8)


def test_drift_is_told_from_the_second_look_on() -> None:
    watch, model = codebook_health.CodebookMonitor(drift=True), tokenizer()
    first = watch.figures(model, [torch.tensor([4, 4, 0, 0, 0, 0, 0, 0])])
    second = watch.figures(model, [torch.tensor([4, 0, 4, 0, 0, 0, 0, 0])])
    assert "usage_drift" not in first
    assert second["usage_drift"] == pytest.approx(0.5)


def test_the_quantizers_of_residual_codes_are_one() -> None:
    quantizer = ts.create_quantizer("residual-vq", dim=4, codebook_size=8, depth=3)
    model = tokenizer()
    model.quantizer = quantizer
    assert codebook_health.quantizers_of(model) == [quantizer]


def test_each_depth_carries_the_variance_of_its_codes() -> None:
    quantizer = ts.create_quantizer("residual-vq", dim=1, codebook_size=2, depth=2)
    for stage, width in zip(quantizer.stages, (3.0, 1.0), strict=True):  # type: ignore[call-overload]
        stage.codebook.copy_(torch.tensor([[-width], [width]]))
    model = tokenizer()
    model.quantizer = quantizer
    facts = codebook_health.examine(model, [torch.tensor([5, 5]), torch.tensor([9, 9])])
    assert [book.variance_share for book in facts] == pytest.approx([0.9, 0.1])
    assert [book.name for book in facts] == ["depth 0", "depth 1"]


def test_codes_that_are_hardly_used_carry_little_variance() -> None:
    quantizer = ts.create_quantizer("residual-vq", dim=1, codebook_size=2, depth=2)
    for stage, width in zip(quantizer.stages, (3.0, 1.0), strict=True):  # type: ignore[call-overload]
        stage.codebook.copy_(torch.tensor([[-width], [width]]))
    model = tokenizer()
    model.quantizer = quantizer
    facts = codebook_health.examine(model, [torch.tensor([9, 1]), torch.tensor([5, 5])])
    # Two values 2 w apart, one with the share p, have the variance 4 p (1 - p) w^2.
    coarse = 4 * 0.9 * 0.1 * 3.0**2
    total = coarse + 1.0
    assert [book.variance_share for book in facts] == pytest.approx([coarse / total, 1 / total])


@pytest.mark.parametrize("name", ["fsq", "lfq"])
def test_lattices_have_no_twins(name: str) -> None:
    model = tokenizer()
    model.quantizer = ts.create_quantizer(name, dim=4, codebook_size=256)
    (facts,) = codebook_health.examine(model, [torch.ones(256)])
    assert (facts.twins, facts.quantizer) == (None, name)


def test_a_report_has_lists_for_several_codebooks() -> None:
    told = codebook_health.summarize(
        [replace(HEALTHY, grids=2), replace(HEALTHY, grids=2, grid=1, used=500)]
    )
    assert told["codes_dead"] == [0, 12]
    assert len(told["diagnosis"]) == 2
    assert codebook_health.summarize([HEALTHY])["codes_dead"] == 0


def test_an_evaluation_tells_the_diagnosis() -> None:
    images = torch.randint(256, (4, 8, 8, 1), dtype=torch.uint8)
    figures = ts.evaluate(tokenizer(), images)
    assert (
        figures["diagnosis"]
        == [line for line in figures["diagnosis"] if "too few images" in line]
        != []
    )
    assert figures["codes_dead"] == 8 - figures["codebook_used"]
