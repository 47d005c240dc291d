"""How many images a step takes: checked against the memory of the machine."""

from __future__ import annotations

import numpy as np

from tessella import files
from tessella.errors import ConfigError
from tessella.nn.outline import machine_memory
from tessella.training.prepare import TrainingData


def check_batch(train: TrainingData, batch: int) -> None:
    """Refuse a batch that does not fit into this machine's memory.

    Raises:
        ConfigError: naming what it takes and what there is.
    """
    # Symbols become int64, and an index stands beside each example.
    itemsize = 1 if train.examples.pixels else 8
    bytes_each = itemsize * int(np.prod(train.examples.example_shape)) + 8
    needed = batch * bytes_each
    memory = machine_memory()
    if needed > memory // 4:
        raise ConfigError(
            f"train.batch={batch} examples take {files.byte_count(needed)} before the"
            f" network sees them, and this machine has {files.byte_count(memory)}; there are"
            f" {len(train.examples)} training images: take a smaller batch"
        )
