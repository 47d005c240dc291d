"""Real images to complete and to look at: test images that ship with the package."""

from __future__ import annotations

import json

import numpy as np

from tessella import data
from tessella.config import DataConfig
from tessella.web.page_requests import as_text
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work

MOST = 24
"""Images that are offered, from the start of the test split."""

BUNDLED = "digits"
"""The one data source that ships. Others lie in files, which a client shall not cause to be read"""


def finding(served: ServedModel) -> Work:
    """The work of finding real images for a model: none, unless it models the bundled ones."""

    def find(job: Computation) -> bytes:
        found: list[str] = []
        images = data.load(DataConfig(BUNDLED), "test").images
        if images.shape[1:] == served.size:
            found = [as_text(image) for image in np.asarray(images[:MOST])]
        return json.dumps({"images": found}).encode()

    return find
