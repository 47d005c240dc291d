"""Explain files in formats that are not read, with a line of code that converts them.

A format is recognized by its first bytes if it has a signature, and otherwise by its extension. The
code writes an ``.npz`` file that ``npz:PATH`` reads, and uses libraries that this package does not
need.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from tessella.data.paths import READ_ERRORS

HEAD = 256
"""Number of bytes at the beginning of a file that are examined."""


def describe(path: Path) -> str:
    """The format of a file and how to convert it, in one line; empty if it is unknown.

    Args:
        path: an existing file or folder.
    """
    try:
        if path.is_dir():
            return _describe_folder(path)
        # A signature is at the very beginning of a file, the directory of a zip file at the end.
        with path.open("rb") as file:
            head = file.read(HEAD)
        names = _members(path) if head.startswith(b"PK") else []
    except READ_ERRORS:
        # The description would only have improved the message of another error.
        return ""
    return describe_content(path.name, head, names)


def with_advice(message: str, described: str) -> str:
    """An error message, followed by the description of a file if there is one."""
    return f"{message}: {described}" if described else message


def describe_content(name: str, head: bytes, members: list[str] | None = None) -> str:
    """:func:`describe` for a file that may be inside an archive.

    Args:
        name: its name.
        head: its first bytes.
        members: the names in it, for a zip file.
    """
    extension = Path(name).suffix.lower()
    # Signatures before extensions: files of MATLAB 7.3 are also named .mat, but are HDF5.
    if head.startswith((b"MATLAB 7.3", b"\x89HDF")):
        return (
            f"{name} is an HDF5 file; convert it with h5py: f = h5py.File({name!r}); "
            "np.savez_compressed('new.npz', images=f['images'][:], labels=f['labels'][:]), where "
            "list(f) lists the names of the arrays (MATLAB writes their axes in reverse order: "
            "append .transpose())"
        )
    if head.startswith(b"MATLAB 5.0") or extension == ".mat":
        return (
            f"{name} is a MATLAB file; convert it with scipy, if it is SVHN (X [h, w, c, n], digit "
            f"0 labelled 10): m = scipy.io.loadmat({name!r}); "
            "np.savez_compressed('new.npz', images=m['X'].transpose(3, 0, 1, 2), "
            "labels=m['y'].ravel() % 10)"
        )
    # Data sets of the Hugging Face Hub: a row holds an encoded image and its label.
    if head.startswith(b"PAR1") or extension == ".parquet":
        return f"{name} is a Parquet file: --data hf:PATH reads it, or the folder that it is in"
    if extension == ".amat":
        return _describe_amat(name)
    if head.startswith(b"\x93NUMPY") or extension == ".npy":
        return (
            f"{name} is a single array; put it into an .npz file: "
            f"np.savez_compressed('new.npz', images=np.load({name!r}))"
        )
    if extension in (".tfrecord", ".tfrecords"):
        return f"{name} is a TFRecord file; write its images to files and name their folder"
    if extension == ".lmdb" or name in ("data.mdb", "lock.mdb"):
        return f"{name} is an LMDB database; write its images to files and name their folder"
    if extension == ".tar":
        return (
            f"{name} is a tar file: --data shards:PATH reads one of WebDataset, of others unpack it"
            " and name the folder with --data folder:PATH"
        )
    if extension in (".tgz", ".7z", ".rar") or name.lower().endswith(".tar.gz"):
        return f"{name} is an archive; unpack it and name the folder: --data folder:PATH"
    if extension in (".pkl", ".pickle"):
        return (
            f"{name} is a Python pickle, which can run any code; load it yourself if you trust it, "
            "and np.savez_compressed('new.npz', images=...)"
        )
    return _describe_ours(name, members or [])


def _describe_amat(name: str) -> str:
    """The text files of H. Larochelle's binarized MNIST, with 784 zeros and ones per row."""
    says = f"{name} is a text of numbers; convert it with "
    published = re.fullmatch(r"(.*)_(train|valid|test)\.amat", name)
    # Three files make one data set, so one line converts all of them.
    if not published:
        return (
            f"{says}np.savez_compressed('new.npz', "
            f"images=np.loadtxt({name!r}, dtype=np.uint8).astype(bool).reshape(-1, 28, 28))"
        )
    return (
        f"{says}np.savez_compressed('new.npz', **{{s: np.loadtxt(f'{published[1]}_{{s}}.amat', "
        "dtype=np.uint8).astype(bool).reshape(-1, 28, 28) for s in ('train', 'valid', 'test')})"
    )


def _describe_ours(name: str, members: list[str]) -> str:
    """Describe a file that another source reads."""
    # Only the file name: the user knows which folder it is in.
    if re.search(r"[.-]idx[13]-ubyte(\.gz)?$", name):
        return f"{name} is an idx file: name its folder with --data mnist:FOLDER"
    if re.fullmatch(r"(data_batch_[1-5]|test_batch)", name):
        return f"{name} is a batch of CIFAR-10: name its folder with --data cifar10:FOLDER"
    if any(member.endswith(".npy") for member in members) or name.endswith(".npz"):
        return f"{name} is an npz archive: --data npz:PATH"
    if members:
        return f"{name} is a zip file: --data folder:PATH reads the images in it"
    return ""


def _describe_folder(path: Path) -> str:
    """:func:`describe` for a folder, judged by the first file in it that is of a known kind."""
    names = []
    batches = []
    for file in path.iterdir():
        names.append(file.name)
        if re.fullmatch(r"train_data_batch_\d+\.npz", file.name):
            batches.append(file.name)
    if batches:
        # 10 batches of ImageNet-32 are 4 GB; joined once, they are one source with all splits.
        return (
            f"{path} holds batches of downsampled ImageNet; each is read by npz:PATH, and they are "
            "joined with p = [np.load(f'train_data_batch_{i}.npz') for i in range(1, "
            f"{len(batches) + 1})]; np.savez('imagenet.npz', data=np.concatenate([b['data'] for b "
            "in p]), labels=np.concatenate([b['labels'] for b in p]))"
        )
    for name in sorted(names):
        file = path / name
        if file.is_file():
            described = describe(file)
            if described:
                return described
    return ""


def _members(path: Path) -> list[str]:
    """The names of the members of a zip file; none if it is damaged."""
    # A zip file that is cut short has the same first two bytes.
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
