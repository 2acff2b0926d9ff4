"""The plot of docs/reliability.md: how long recovery from each fault took."""

from pathlib import Path
from statistics import median

import structlog

from dev.backend import ROOT
from tests.faults.runs import Total

PLOT = ROOT / "docs" / "reliability" / "recoveries.svg"
IMAGE = "![The seconds of each recovery, by fault](reliability/recoveries.svg)"
COLOUR, MEDIAN_COLOUR = "#1f4e9c", "#c44536"
INCHES_PER_FAULT = 0.17

log = structlog.get_logger()


def draw(total: Total, path: Path = PLOT) -> None:
    """Draw each recovery as a dot, and the median of each fault as a line; needs matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - needs a group of its own
        from matplotlib import pyplot as plt  # noqa: PLC0415 - the same
    except ImportError:
        log.warning("not drawn: matplotlib is missing", path=str(path))
        return
    recoveries = sorted(total.recoveries.items(), key=lambda each: (median(each[1]), each[0]))
    with mpl.rc_context({"svg.hashsalt": "inkwell", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(7, 1 + INCHES_PER_FAULT * len(recoveries)), layout="constrained")
        for place, (_, seconds) in enumerate(recoveries):
            axes.plot(seconds, [place] * len(seconds), ".", color=COLOUR, alpha=0.4, markersize=4)
            axes.plot([median(seconds)], [place], "|", color=MEDIAN_COLOUR, markersize=9)
        axes.set_yticks(range(len(recoveries)), [name for name, _ in recoveries])
        axes.set(xlabel="seconds until everything is served again", ylim=(-1, len(recoveries)))
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#eeeeee")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
