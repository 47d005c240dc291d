"""Images in tar files of the WebDataset convention: read, written, and as a data source.

A shard is a tar file ``NAME-train-000000.tar`` whose members ``00000000.jpg``, ``00000000.cls`` and
``00000000.json`` belong together, because they share what stands before the first dot.
:func:`open_shards` reads a set of them::

    shards = open_shards("photos")                            # a folder
    shards = open_shards("photos-train-{000000..000009}.tar")  # or a pattern
    for item in shards.items(0):
        item.key, item.label, item.data
"""

from tessella.data.shards.shard_set import Shard, ShardItem, ShardSet, open_shards

__all__ = ["Shard", "ShardItem", "ShardSet", "open_shards"]
