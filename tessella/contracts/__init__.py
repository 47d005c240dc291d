"""The proofs as a library: what every registered model, head, tokenizer, quantizer or source keeps.

A contract is a sentence and a function that raises when the sentence is false. The contracts run on
anything that is registered, also from a file outside the package, and need neither data nor
training: models are built on tiny grids, in float64, with every parameter moved::

    tessella check mine --plugin mine.py layers=2

    import tessella as ts
    from tessella.contracts import check
    for outcome in check("mine", layers=2):
        assert outcome.held, outcome

The package's test suite proves the same of the models that it ships, on more grids.
"""

from tessella.contracts.checking import check, kinds_of
from tessella.contracts.contract import BrokenContractError, Contract, Outcome

__all__ = ["BrokenContractError", "Contract", "Outcome", "check", "kinds_of"]
