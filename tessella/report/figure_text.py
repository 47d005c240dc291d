"""Measured figures as text: names, units, and digits that their errors allow."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tessella.tokenizers import codebook_health

UNITS: dict[str, tuple[str, str]] = {
    "images": ("images", ""),
    "bits_per_dim": ("code length", "bits/dim"),
    "bits_per_code": ("code length", "bits/code"),
    "bits_per_image": ("code length", "bits/image"),
    "bits_per_image_dim": ("code length by image dimension", "bits/dim of the image"),
    "nats_per_image": ("code length", "nats/image"),
    "bound_bits_per_dim": ("bits of the images, at most", "bits/dim"),
    "bound_bits_per_code": ("code length, at most", "bits/code"),
    "bound_masks": ("masks of each image in the bound", ""),
    "pixel_bits_per_dim": ("pixels given the codes", "bits/dim"),
    "code_bits_per_dim": ("codes", "bits/dim of the image"),
    "baseline_bits_per_dim": ("independent symbols", "bits/dim"),
    "mse": ("squared error", "(0..255)²"),
    "psnr_db": ("PSNR", "dB"),
    "mean_image_psnr_db": ("PSNR of the mean image", "dB"),
    "ssim": ("SSIM", ""),
    **codebook_health.UNITS,
    "scored_grid": ("scored grid", ""),
    "condition": ("condition", ""),
    "rounded_to": ("weights rounded to", ""),
}
"""Label and unit of each figure. Figures that are not listed are shown under their names."""

WITHOUT_ROW = ("weights", "diagnosis")
"""Figures that are shown elsewhere."""

SIGNIFICANT_DIGITS = 7
"""Digits of a value, at most, however small its error is."""

Row = tuple[str, str, str]
"""Name, value with its error, unit."""


def figure_rows(figures: Mapping[str, object]) -> list[Row]:
    """Measured figures as rows ``(name, value ± standard error, unit)``.

    Values are rounded to the digits that their errors allow.

    >>> figure_rows({"psnr_db": 25.2845, "psnr_db_se": 0.0218, "images": 10000})
    [('PSNR', '25.285 ± 0.022', 'dB'), ('images', '10,000', '')]
    """
    rows: list[Row] = []
    for name, value in figures.items():
        if value is None or name in WITHOUT_ROW or _stands_beside_another(name, figures):
            continue
        if name == "overlap" and isinstance(value, Mapping):
            rows.append(_overlap_row(value))
        elif isinstance(value, Mapping):
            rows += _comparison_rows(value, "bits_per_code" in figures)
        else:
            label, unit = _label_and_unit(name, figures)
            rows.append((label, shown(value, figures.get(f"{name}_se")), unit))
    return rows


def shown(value: object, error: object = None) -> str:
    """A number for people: with its standard error to two digits of that, else to four digits.

    No value gets more than seven significant digits, however small its error is.

    >>> shown(84.8512, 0.2013), shown(4253), shown(0.15737), shown(433.2)
    ('84.85 ± 0.20', '4,253', '0.1574', '433.2')
    >>> shown(46.4613248125209992, 1e-15), shown(46.4613248125209992, 0.0)
    ('46.46132 ± 0.00000', '46.46 ± 0')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(error, (int, float)) and math.isfinite(error) and error > 0:
        digits = _digits(float(value), float(error))
        return f"{value:,.{digits}f} ± {error:,.{digits}f}"
    without_error = _without_error(value)
    if isinstance(error, (int, float)) and error == 0:
        return f"{without_error} ± 0"
    return without_error


def _digits(value: float, error: float) -> int:
    """Digits after the point: two of the error, and no more than make sense of the value."""
    # An error of 0.0218 has its first digit at 10^-2, so two digits of it end at 10^-3.
    error_digits = 1 - math.floor(math.log10(error))
    if value == 0 or not math.isfinite(value):
        return max(0, min(error_digits, SIGNIFICANT_DIGITS))
    value_digits = SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))
    return max(0, min(error_digits, value_digits))


def _without_error(value: float) -> str:
    # Counts, and beyond 1e15 floats that only look like counts.
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    # Four digits, except that digits before the point are never cut off.
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _stands_beside_another(name: str, figures: Mapping[str, object]) -> bool:
    """Whether a figure is shown in the row of another one: errors, and two figures of codes."""
    # An error stands behind ±.
    if name.endswith("_se") and name.removesuffix("_se") in figures:
        return True
    if name == "codebook_size":
        return "codebook_used" in figures
    # Of codes, the bits per symbol are the bits per code.
    return name == "bits_per_dim" and "bits_per_code" in figures


def _label_and_unit(name: str, figures: Mapping[str, object]) -> tuple[str, str]:
    kind, _, number = name.partition("/")
    label, unit = UNITS.get(kind, (kind.replace("_", " "), ""))
    if number:
        label += f", codebook {number}"
    of_codes = "bits_per_code" in figures or "bound_bits_per_code" in figures
    if name == "baseline_bits_per_dim" and of_codes:
        return "independent codes", "bits/code"
    size = figures.get("codebook_size")
    if name == "codebook_used" and size:
        # Of several codebooks it is a list.
        if isinstance(size, int):
            unit = f"of {size:,}"
        else:
            unit = f"of {size}"
    return label, unit


def _overlap_row(overlap: Mapping[str, object]) -> Row:
    """The images that the run was trained on.

    >>> _overlap_row({"identical": 3, "mirrored": 0, "first": [0, 1, 5]})
    ('of these trained on', '3', 'images, and 0 mirrored')
    """
    mirrored = shown(overlap.get("mirrored"))
    return (
        "of these trained on",
        shown(overlap.get("identical")),
        f"images, and {mirrored} mirrored",
    )


def _comparison_rows(comparison: Mapping[str, object], of_codes: bool) -> list[Row]:
    """The differences to another run.

    >>> ssim = {"difference": 0.0213, "difference_se": 0.0012}
    >>> _comparison_rows({"run": "b", "ssim": ssim}, of_codes=False)
    [('SSIM minus b', '0.0213 ± 0.0012', '')]
    """
    other = str(comparison.get("run", ""))
    rows: list[Row] = []
    # Comparisons hold figures and words; figures have a difference.
    for metric, entry in comparison.items():
        if not isinstance(entry, Mapping) or "difference" not in entry:
            continue
        name = metric
        # In a two-stage model a dimension of the prior is a code.
        if of_codes and metric == "bits_per_dim":
            name = "bits_per_code"
        label, unit = UNITS.get(name, (name.replace("_", " "), ""))
        difference = shown(entry["difference"], entry.get("difference_se"))
        rows.append((f"{label} minus {other}", difference, unit))
    overlap = comparison.get("overlap")
    if isinstance(overlap, Mapping):
        rows.append((f"of these {other} trained on", shown(overlap.get("identical")), "images"))
    if "bits" in comparison:
        rows.append(("bits", "not compared", f"({comparison['bits']})"))
    if "conditions" in comparison:
        rows.append(("conditions", "not the same", f"({comparison['conditions']})"))
    return rows
