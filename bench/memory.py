"""Draws the memory that processes took while notes were exported and imported: `make million` measures it."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

from bench.plots import figure

COLOURS = {"gateway": "#1f4e9c", "worker": "#3aa6a0", "client": "#d9a441"}


def main() -> int:
    """Read the samples of a file, and write an SVG beside it."""
    path = Path(sys.argv[1])
    results = json.loads(path.read_text())
    phases = results["phases"]
    with (
        mpl.rc_context({"svg.hashsalt": "inkwell", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}),
        figure(path.with_suffix(".svg"), 1, len(phases)) as [row],
    ):
        row[0].set_ylabel("resident memory, MiB")
        for axes, (phase, samples) in zip(row, phases.items(), strict=True):
            axes.set(title=f"{phase} of {results['notes']:,} notes", xlabel="seconds", ylim=(0, 250))
            for name, values in samples.items():
                seconds, mebibytes = zip(*values, strict=True)
                axes.scatter(seconds, mebibytes, s=1, color=COLOURS[name], label=name)
        row[0].legend(markerscale=5, frameon=False)
    print(path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
