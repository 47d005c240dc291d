"""The command line: ``tessella VERB``. Importing it does not import torch."""

from tessella.cli.entry import main

__all__ = ["main"]
