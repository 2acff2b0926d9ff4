"""The plots of docs/performance.md: ratios over the number of connections, and troubles over time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.contenders import BARE, DIRECT, INKWELL, INKWELL_8, INKWELL_202, NAIVE
from bench.results import Results, Series, times
from bench.scenarios import SCENARIOS, Cell
from bench.troubles import BEFORE_SECONDS, TROUBLE_SECONDS, TROUBLES

COLOURS = {
    DIRECT: "#888888",
    INKWELL: "#1f4e9c",
    INKWELL_202: "#3aa6a0",
    INKWELL_8: "#7a6fbe",
    NAIVE: "#c44536",
    BARE: "#d9a441",
}
STATUS_COLOURS = {201: "#1f4e9c", 202: "#3aa6a0", 500: "#c44536", 503: "#d9a441", 504: "#7b3f9d"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def draw(results: Results, folder: Path) -> None:
    """Write every plot for which there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "inkwell", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}):
        ratios(results, "requests_per_second", "requests/s, ratio to direct", folder / "throughput.svg")
        ratios(results, "cpu_seconds_per_1000", "CPU of a request, ratio to direct", folder / "cpu.svg")
        for trouble in TROUBLES:
            if series := [each for each in results.troubles if each.trouble == trouble]:
                over_time(trouble, series, folder / f"{trouble}.svg")


@contextmanager
def figure(path: Path, rows: int, columns: int) -> Iterator[list[list[Axes]]]:
    """Axes saved as SVG, with the same bytes for the same figures."""
    drawing, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.7 * rows), sharey="row", squeeze=False, layout="constrained"
    )
    yield axes.tolist()
    drawing.savefig(path, metadata={"Date": None})
    plt.close(drawing)


def ratios(results: Results, metric: str, label: str, path: Path) -> None:
    """A panel for each scenario with several numbers of connections."""
    scenarios = [name for name in SCENARIOS if len({c.connections for c in results.cells() if c.scenario == name}) > 1]
    if not scenarios:
        return
    with figure(path, 1, len(scenarios)) as [row]:
        row[0].set_ylabel(label)
        for axes, scenario in zip(row, scenarios, strict=True):
            axes.set(title=SCENARIOS[scenario].title, xlabel="connections", xscale="log", yscale="log")
            axes.axhline(1, color=COLOURS[DIRECT], linewidth=1)
            _lines(axes, results, [cell for cell in results.cells() if cell.scenario == scenario], metric)
        row[0].figure.legend(*row[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)


def _lines(axes: Axes, results: Results, cells: list[Cell], metric: str) -> None:
    ticks = sorted({cell.connections for cell in cells})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks(TICKS, [times(tick) for tick in TICKS])
    axes.minorticks_off()
    for contender, owners in dict.fromkeys((cell.contender, cell.owners) for cell in cells):
        if contender == DIRECT:
            continue
        spreads = {
            cell.connections: spread
            for cell in cells
            if (cell.contender, cell.owners) == (contender, owners) and (spread := results.ratio(cell, metric))
        }
        errors = [[s.median - s.low for s in spreads.values()], [s.high - s.median for s in spreads.values()]]
        axes.errorbar(
            list(spreads),
            [spread.median for spread in spreads.values()],
            errors,
            label=f"{contender}, {owners} owners" if owners > 1 else contender,
            color=COLOURS[contender],
            linestyle="--" if owners > 1 else "-",
            marker=".",
            capsize=2,
        )


def over_time(trouble: str, contenders: list[Series], path: Path) -> None:
    """Answers by status above their latency; a column for each contender."""
    with figure(path, 2, len(contenders)) as [above, below]:
        above[0].set_ylabel("answers/s")
        below[0].set_ylabel("latency, ms")
        for answers, latency, series in zip(above, below, contenders, strict=True):
            answers.set_title(series.contender)
            _answers(answers, series)
            _latency(latency, series)
            for axes in (answers, latency):
                end = BEFORE_SECONDS + (TROUBLE_SECONDS if trouble != "burst" else 0)
                axes.axvspan(BEFORE_SECONDS, end, color="#eeeeee", zorder=0)
        below[0].legend(fontsize=7, frameon=False)


def _answers(axes: Axes, series: Series) -> None:
    axes.stackplot(
        series.seconds,
        list(series.answers.values()),
        labels=[str(status) for status in series.answers],
        colors=[STATUS_COLOURS.get(status, "#000000") for status in series.answers],
        step="post",
    )
    axes.legend(fontsize=7, frameon=False, loc="upper right")


def _latency(axes: Axes, series: Series) -> None:
    axes.set(yscale="log", xlabel="seconds")
    for name, values, style in (("p50", series.p50_ms, "-"), ("p99", series.p99_ms, ":")):
        known = [float("nan") if value is None else value for value in values]
        axes.plot(series.seconds, known, style, marker=".", markersize=2, color=COLOURS[series.contender], label=name)
