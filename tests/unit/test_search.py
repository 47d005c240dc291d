"""The search for the nearest code: in torch and compiled, against brute force."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from tessella import kernel
from tessella.tokenizers.quantizers import search

Search = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(params=["torch", "compiled"])
def find(request: pytest.FixtureRequest) -> Search:
    if request.param == "torch":
        return search._nearest_in_torch
    if not kernel.available():
        pytest.skip("no C++ compiler")
    return search._nearest_compiled


def some(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 3, 16, 65])
@pytest.mark.parametrize("codes", [2, 31, 32, 33, 257, 384])
@pytest.mark.parametrize("n", [0, 1, 11, 12, 13, 200])
def test_the_nearest_code_is_that_of_brute_force(
    find: Search, n: int, codes: int, dim: int
) -> None:
    vectors, codebook = some(n, dim), some(codes, dim, seed=1)
    symbols, scores = find(vectors, codebook)
    exact = codebook.double().square().sum(1) - 2 * vectors.double() @ codebook.double().T
    assert symbols.dtype == torch.int64
    assert symbols.shape == scores.shape == (n,)
    if n:
        chosen = exact.gather(1, symbols[:, None])[:, 0]
        best = exact.min(1).values
        assert ((chosen - best) <= 1e-5 * (best.abs() + 1)).all(), (
            "a code that is farther by more than rounding"
        )
        torch.testing.assert_close(scores.double(), best, rtol=1e-4, atol=1e-4)


def test_a_disagreement_with_float64_is_a_near_tie(find: Search) -> None:
    vectors, codebook = some(3000, 8), some(2000, 8, seed=1)
    exact = (vectors.double()[:, None] - codebook.double()).square().sum(2)
    symbols, truth = find(vectors, codebook)[0], exact.argmin(1)
    gap = exact.gather(1, symbols[:, None])[:, 0] - exact.min(1).values
    assert (symbols != truth).sum() <= 3
    assert (gap <= 1e-5 * vectors.double().square().sum(1)).all()


def test_the_lowest_of_equal_codes_wins(find: Search) -> None:
    codebook = some(5, 4).repeat(40, 1)  # each code forty times, in all lanes and panels
    symbols, _ = find(some(300, 4, seed=2), codebook)
    assert int(symbols.max()) < 5


def test_a_tie_between_two_different_codes_goes_to_the_lower(find: Search) -> None:
    codebook = torch.tensor([[5.0], [3.0], [1.0], [-1.0]])
    assert find(torch.tensor([[2.0], [4.0], [0.0]]), codebook)[0].tolist() == [1, 0, 2]


def test_of_equal_scores_in_several_groups_and_blocks_the_first_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "CODES", 16)
    monkeypatch.setattr(search, "GROUP", 4)
    codebook = torch.tensor([5.0, 3.0, 1.0, -1.0]).repeat_interleave(10)[:, None]
    assert search._nearest_in_torch(torch.tensor([[2.0], [4.0], [0.0], [-9.0]]), codebook)[
        0
    ].tolist() == [
        10,
        0,
        20,
        30,
    ]


def test_vectors_that_are_not_finite_get_some_code(find: Search) -> None:
    vectors = some(20, 4)
    vectors[3] = torch.nan
    vectors[5, 1] = torch.inf
    symbols, _ = find(vectors, some(40, 4, seed=1))
    assert 0 <= int(symbols.min()) <= int(symbols.max()) < 40
    rest = [i for i in range(20) if i not in (3, 5)]
    assert torch.equal(symbols[rest], find(vectors[rest], some(40, 4, seed=1))[0]), (
        "others must not notice"
    )


def test_any_layout_of_memory_gives_the_same() -> None:
    vectors, codebook = some(50, 12), some(70, 12, seed=1)
    expected, _ = search.nearest(vectors, codebook)
    assert torch.equal(
        search.nearest(vectors.T.contiguous().T, codebook.T.contiguous().T)[0], expected
    )
    assert torch.equal(search.nearest(vectors[::2], codebook)[0], expected[::2])


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
def test_compiled_and_torch_differ_at_near_ties_alone() -> None:
    vectors, codebook = some(5000, 32), some(1000, 32, seed=1)
    plain, scores = search._nearest_in_torch(vectors, codebook)
    compiled, others = search._nearest_compiled(vectors, codebook)
    torch.testing.assert_close(scores, others, rtol=1e-5, atol=1e-4)
    assert (plain != compiled).sum() <= 2


@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_sums_by_code_are_those_of_a_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "torch":
        monkeypatch.setenv("TESSELLA_KERNEL", "0")
    elif not kernel.available():
        pytest.skip("no C++ compiler")
    vectors, symbols = (
        some(500, 7),
        torch.randint(9, (500,), generator=torch.Generator().manual_seed(0)),
    )
    counts, sums = search.cluster(vectors, symbols, 11)
    for code in range(11):
        assert counts[code] == (symbols == code).sum()
        torch.testing.assert_close(
            sums[code], vectors[symbols == code].sum(0), rtol=1e-5, atol=1e-5
        )


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
def test_the_number_of_threads_changes_nothing() -> None:
    vectors, codebook, before = some(3000, 24), some(100, 24, seed=1), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            symbols, scores = search.nearest(vectors, codebook)
            results.append((symbols, scores, *search.cluster(vectors, symbols, 100)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_float64_stays_float64() -> None:
    vectors, codebook = some(40, 3).double(), some(9, 3, seed=1).double()
    symbols, scores = search.nearest(vectors, codebook)
    exact = codebook.square().sum(1) - 2 * vectors @ codebook.T
    torch.testing.assert_close(scores, exact.min(1).values, rtol=0, atol=1e-12)
    assert torch.equal(symbols, exact.argmin(1))


@pytest.mark.parametrize("kind", ["0", "1"])
def test_a_codebook_that_learns_by_gradients_can_be_searched(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_KERNEL", kind)
    vectors, codebook = some(20, 4), some(10, 4, seed=1)
    symbols, scores = search.nearest(vectors, torch.nn.Parameter(codebook))
    assert torch.equal(symbols, search.nearest(vectors, codebook)[0])
    assert not scores.requires_grad


def test_torch_compile_leaves_search_and_sums_alone() -> None:
    vectors, codebook = some(100, 6), some(20, 6, seed=1)

    def sums(vectors: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = search.cluster(
            2 * vectors, search.nearest(2 * vectors, codebook)[0], 20
        )[1]
        return total + 1

    torch.testing.assert_close(torch.compile(sums, backend="aot_eager")(vectors), sums(vectors))


def test_importing_the_search_does_not_import_the_compiler_of_torch() -> None:
    code = "import sys, tessella.tokenizers; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_compiled_search_is_one_graph() -> None:
    vectors = some(100, 6)
    codebook = some(20, 6, seed=1)

    def symbols(vectors: torch.Tensor) -> torch.Tensor:
        return search.nearest(2 * vectors, codebook)[0] + 1

    compiled = torch.compile(symbols, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(vectors), symbols(vectors))
