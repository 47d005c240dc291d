"""Read and write the files of the package.

Every file goes through here. It is written completely or not at all
(:mod:`~tessella.files.writing`), checked before it is used (:mod:`~tessella.files.reading`,
:mod:`~tessella.files.tensors`), and never replaces something that the package did not write
(:mod:`~tessella.files.replacing`).
"""

from tessella.files.json_values import JSONValue
from tessella.files.reading import (
    JSON_BYTES,
    byte_count,
    parse_json,
    read_beginning,
    read_bytes,
    read_json,
    read_json_object,
    reason,
    sha256,
)
from tessella.files.replacing import (
    COMPRESSED_MARK,
    HTML_MARK,
    PNG_KEY,
    check_free_space,
    check_replaceable,
    check_writable,
    existing_parent,
    made_here,
)
from tessella.files.tensors import (
    StoredTensor,
    TensorsHeader,
    read_tensors,
    read_tensors_header,
    write_tensors,
)
from tessella.files.writing import (
    append_line,
    atomic_batch,
    atomic_directory,
    atomic_file,
    cache_folder,
    flush,
    json_text,
    make_directory,
    remove_directory,
    sweep,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "COMPRESSED_MARK",
    "HTML_MARK",
    "JSON_BYTES",
    "JSONValue",
    "PNG_KEY",
    "StoredTensor",
    "TensorsHeader",
    "append_line",
    "atomic_batch",
    "atomic_directory",
    "atomic_file",
    "byte_count",
    "cache_folder",
    "check_free_space",
    "check_replaceable",
    "check_writable",
    "existing_parent",
    "flush",
    "json_text",
    "made_here",
    "make_directory",
    "parse_json",
    "read_beginning",
    "read_bytes",
    "read_json",
    "read_json_object",
    "read_tensors",
    "read_tensors_header",
    "reason",
    "remove_directory",
    "sha256",
    "sweep",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]
