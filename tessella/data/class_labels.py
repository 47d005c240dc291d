"""Turn the labels of any data set into the classes 0, 1, 2, ... of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tessella.errors import InputError

MAX_CLASSES = 65_536
"""Most classes that labels may have; a conditional model has an embedding for each."""
DENSE_UP_TO = 100
"""Labels below this are kept as they are, even if some numbers do not occur."""
_SHOWN = 8  # most labels that a message lists


def check_labels(labels: np.ndarray, count: int, title: str) -> np.ndarray:
    """Check labels and return them as ``int64 [count]``, with the data set's own numbers.

    Args:
        labels: integers ``[count]`` or ``[count, 1]``.
        count: number of images.
        title: what the labels are called in messages.

    Raises:
        InputError: for another type, shape or number of labels, and for values outside 0..2^63 - 1.
    """
    # MATLAB and some archives of CIFAR-10 store labels as a column.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{title} is {labels.dtype} {list(labels.shape)}; labels must be integers [n]"
            f"{_conversion_hint(labels)}"
        )
    if len(labels) != count:
        raise InputError(f"{title} holds {len(labels)} labels for {count} images")
    if not count:
        return labels.astype(np.int64)
    # Compared as Python numbers, since numpy would convert uint64 to a type that loses digits.
    low = labels.min().item()
    high = labels.max().item()
    if low < 0:
        raise InputError(f"{title} has negative labels (down to {low}); classes count from 0")
    if high > np.iinfo(np.int64).max:
        # A cast to int64 would wrap around to a negative number.
        raise InputError(
            f"{title} has the label {high}, which is beyond 64 bits with a sign; number the "
            "classes 0, 1, 2, ... (np.unique(labels, return_inverse=True)[1] does)"
        )
    return labels.astype(np.int64)


def check_held_out(labels: Mapping[str, np.ndarray], titles: Mapping[str, str]) -> None:
    """Refuse held-out images of classes that no training image has.

    A model cannot learn these, so figures on such images would mean nothing.

    Args:
        labels: for each split that the data set itself defines and that has labels, the checked
            labels of its images.
        titles: for each of these splits, what its labels are called in messages.

    Raises:
        InputError: when a held-out split has labels that train lacks.
    """
    # Held-out images alone, or beside training images without labels, can be of any class.
    training = labels.get("train")
    if training is None or not len(training):
        return
    known = np.unique(training)
    for split, values in labels.items():
        foreign = np.setdiff1d(values, known)
        if len(foreign):
            raise InputError(
                f"the split {split} has labels that train lacks: {titles[split]} has "
                f"{_listed(foreign)}; {titles['train']} has {_listed(known)}. A model cannot learn "
                "these: number the classes alike in all splits, or leave their images out"
            )


def _listed(labels: np.ndarray) -> str:
    """The first of the sorted labels, for messages."""
    shown = ", ".join(map(str, labels[:_SHOWN].tolist()))
    if len(labels) > _SHOWN:
        shown += f" and {len(labels) - _SHOWN} more"
    return shown


def _conversion_hint(labels: np.ndarray) -> str:
    """The line of numpy that turns labels of another kind into integers, for messages."""
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        return "; if each row marks its class by a 1 or by scores, store labels.argmax(1)"
    if labels.dtype.kind == "f":
        if labels.size and not np.isfinite(labels).all():
            return "; some are NaN or infinite: leave those images out"
        if labels.size and (labels != np.floor(labels)).any():
            return "; these have fractions, so they are measurements and no classes: leave them out"
        return "; store labels.astype(np.int64)"
    if labels.dtype.kind == "b":
        return "; store labels.astype(np.int64)"
    if labels.dtype.kind in "US":
        return "; store np.unique(labels, return_inverse=True)[1]"
    return ""


def sparse_ids(labels: Sequence[np.ndarray], title: str) -> np.ndarray | None:
    """The distinct labels if they are sparse ids, not class numbers; else None.

    The number of classes of a model is the largest label plus one, so ids such as 7, 1300 and 90000
    would give it thousands of classes that never occur. If more than half of the classes would be
    empty, the caller renumbers the labels by rank instead.

    Args:
        labels: checked labels ``int64 [n]`` of every split, so that all splits agree.
        title: what the labels are called in messages.

    Returns:
        the ids in increasing order, ``int64 [classes]``; None if the labels can stay as they are.

    Raises:
        InputError: when there are more than :data:`MAX_CLASSES` classes.
    """
    distinct = np.unique(np.concatenate([np.empty(0, np.int64), *labels]))
    if len(distinct) > MAX_CLASSES:
        raise InputError(
            f"{title} has {len(distinct):,} different labels, up to {distinct[-1]}; at most "
            f"{MAX_CLASSES:,} classes are possible. Labels that number the images are none: leave "
            "them out"
        )
    if not len(distinct):
        return None
    # A subset of ten digits, or of CIFAR-100's classes, still consists of class numbers: a run that
    # was trained on all classes must find them under the same numbers.
    classes = int(distinct[-1]) + 1
    if classes <= DENSE_UP_TO:
        return None
    if classes > 2 * len(distinct) or classes > MAX_CLASSES:
        return distinct
    return None


def renumbered(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The rank of each label among the sorted ``ids``: ``int64 [n]``.

    >>> renumbered(np.array([90000, 7, 7]), np.array([7, 1300, 90000])).tolist()
    [2, 0, 0]
    """
    return np.searchsorted(ids, labels).astype(np.int64)


def names_of_ids(ids: np.ndarray) -> tuple[str, ...]:
    """The ids as class names, so that the numbering of the data set is not lost."""
    return tuple(str(number) for number in ids.tolist())
