"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, which every model has.

They are short names for :mod:`tessella.exchange.hub`, which is imported when one of them is called:
this module and the models that derive from it know nothing of saved models or of the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch


class Pretrained:
    """Base of everything that can be saved and published: models, tokenizers, generators."""

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: Path | str | None = None,
        token: str | bool | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a saved model from a folder, or from the Hugging Face Hub.

        Only JSON and safetensors are downloaded and read, and every tensor must fit. Of a two-stage
        model a tokenizer class takes the tokenizer, and a density model class the prior.

        Args:
            name: path of a folder, or a repository ``OWNER/NAME`` on the Hub.
            revision: branch, tag or commit of the repository (default: its main branch).
            local_files_only: take what was downloaded before, and do not look for more.
            cache_dir: folder of downloads instead of the Hub's own.
            token: of a user, for private repositories; True for the one that is stored.
            device: where to put the model.

        Raises:
            ArtifactError: when it is not there, damaged, or cannot be downloaded.
            InputError: when it is a model of another class, or huggingface_hub is missing.
        """
        from tessella.exchange import hub

        place = hub.Place(revision, local_files_only, cache_dir, token)
        return hub.load_as(cls, name, place, device)

    def save_pretrained(
        self,
        directory: Path | str,
        *,
        figures: Mapping[str, object] | None = None,
        force: bool = False,
    ) -> None:
        """Save to a folder that :meth:`from_pretrained` loads, on the Hub too.

        Args:
            directory: new, empty, or made here.
            figures: measured numbers for the card, as :func:`tessella.evaluate` returns them.
            force: also write into a directory that holds something else.

        Raises:
            InputError: when the directory holds something that was not made here.
            ArtifactError: when it cannot be written.
        """
        from tessella.exchange import hub

        hub.save(self, directory, figures, force)

    def push_to_hub(
        self,
        repository: str,
        *,
        figures: Mapping[str, object] | None = None,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Upload a model of tessella",
        token: str | bool | None = None,
    ) -> str:
        """Publish on the Hugging Face Hub; the repository is created where there is none.

        Args:
            repository: ``OWNER/NAME``.
            figures: measured numbers for the card, as :func:`tessella.evaluate` returns them.
            private: whether a new repository is private (default: as the owner's settings say).
            revision: branch to commit to (default: the main branch).
            message: of the commit.
            token: of a user who may write there; by default the one that is stored.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: when the Hub refuses.
            InputError: when huggingface_hub is missing.
        """
        from tessella.exchange import hub

        upload = hub.Upload(repository, private, revision, message, token)
        return hub.push(self, upload, figures)
