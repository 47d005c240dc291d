"""The curves of training as plots of a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from tessella.report.curves import Curves, after_start, panels, thinned
from tessella.report.svg import Axes, Plotter, svg

SMOOTH_POINTS = 80
"""Points of the smoothed curve of training."""

MISSING_MATPLOTLIB = 'plots need matplotlib: pip install "tessella[plots]"'

EXTRA_PLOTS = {
    "learning rate": {"learning_rate": "training"},
    "squared error of training batches, scale 0..1": {"mse": "training"},
    "perplexity of the codes": {
        "perplexity": "training",
        "valid/code_perplexity": "validation",
    },
    "codes used on the validation images": {"valid/codebook_used": "validation"},
    "share of the most frequent code": {"valid/code_top_share": "validation"},
    "change of the codes' use between validations": {"valid/usage_drift": "validation"},
    "gradient norm": {"gradient_norm": "training"},
}
"""Plots beside those of loss and validation, where their curves are there: title to curves."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # there, but emptied
        return False


def curve_plots(curves: Curves, of_codes: bool = False) -> list[str]:
    """The curves of training as SVG elements; ``of_codes`` as of :func:`panels`."""
    plots = []
    for title, labels in (*panels(curves, of_codes), *EXTRA_PLOTS.items()):
        drawable = {}
        for name, label in labels.items():
            # A single point does not make a curve.
            if name in curves and len(curves[name]["step"]) > 1:
                drawable[name] = label
        if drawable:
            plots.append(svg(title, _plotter(curves, drawable)))
    return plots


def _plotter(curves: Curves, labels: Mapping[str, str]) -> Plotter:
    """A function that draws some curves onto axes."""

    def plot(axes: Axes) -> None:
        heights: list[float] = []
        for name, label in labels.items():
            curve = curves[name]
            smooth = thinned(curve, SMOOTH_POINTS)
            if label == "validation":
                steps = curve["step"]
                values = curve["value"]
                colour = "#cc6611"
                axes.plot(steps, values, "o-", label=label, color=colour, markersize=3, linewidth=1)
            else:
                axes.plot(curve["step"], curve["value"], color="#4477aa", alpha=0.35, linewidth=0.8)
                # The curve itself is pale behind its means.
                steps = smooth["step"]
                values = smooth["value"]
                axes.plot(steps, values, label=label, color="#4477aa", linewidth=1.5)
            heights += after_start(smooth)["value"]
        low = min(heights)
        high = max(heights)
        # A flat curve has no height to take a share of.
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("step")
        if len(labels) > 1:
            axes.legend(frameon=False)

    return plot
