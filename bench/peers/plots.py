"""The plots of ``bench/peers.py``, as SVG and PNG: ``python -m bench.peers.plots RESULTS.json FOLDER``.

Runs in an environment of its own, which has matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from bench.peers.contestants import named
from bench.peers.results import Results, growth, label

OURS = ("#0b5394", "#6fa8dc")
PEERS = ("#b45f06", "#7f6000", "#cc0000", "#a64d79", "#38761d")
YARDSTICK = "#999999"
PANELS = (
    ("starts", "calls started a second"),
    ("drain", "one-step calls a second,\nfrom a backlog"),
    ("end_to_end", "one-step calls a second,\nstart to end"),
    ("five", "steps a second,\ncalls of five steps"),
)


def main() -> None:
    results, folder = Results.load(Path(sys.argv[1])), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "peers", "axes.spines.top": False, "axes.spines.right": False})
    for name, draw in (("throughput", throughput), ("latency", latency), ("growth", growing)):
        figure = draw(results)
        if figure is None:
            print(f"no plot of {name}: nothing was measured", file=sys.stderr)
            continue
        # Without a date, the same results give the same file.
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})


def colours(results: Results) -> dict[str, str]:
    found, ours, peers = {}, iter(OURS), iter(PEERS)
    for name in results.measured():
        if name == "pgbench":
            found[name] = YARDSTICK
        else:
            found[name] = next(ours if named(name).ours else peers)
    return found


def throughput(results: Results) -> Any:
    """Bars of the medians, with the range of the rounds."""
    panels = [
        each for each in PANELS if any(results.by_round(name, each[0], "per second") for name in results.measured())
    ]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.2), layout="constrained", squeeze=False)
    colour = colours(results)
    for axis, (measurement, title) in zip(axes[0], panels, strict=True):
        rounds = {name: list(results.by_round(name, measurement, "per second").values()) for name in colour}
        names = [name for name in colour if rounds[name]][::-1]
        medians = [results.median(name, measurement, "per second") or 0 for name in names]
        low = [median - min(rounds[name]) for name, median in zip(names, medians, strict=True)]
        high = [max(rounds[name]) - median for name, median in zip(names, medians, strict=True)]
        axis.barh([label(name) for name in names], medians, color=[colour[name] for name in names])
        axis.errorbar(
            medians, range(len(names)), xerr=[low, high], fmt="none", ecolor="#333333", elinewidth=1, capsize=2
        )
        axis.set_title(title, fontsize=9)
    figure.supxlabel("median of the rounds, and their range; longer is faster", fontsize=8)
    return figure


def latency(results: Results) -> Any:
    """The share of calls whose body had begun after so many milliseconds."""
    names = [name for name in results.measured() if results.samples(name)]
    if not names:
        return None
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    colour = colours(results)
    for name in names:
        samples = sorted(results.samples(name))
        p50, p99 = (results.median(name, "latency", each) or 0 for each in ("p50 ms", "p99 ms"))
        shares = [100 * (number + 1) / len(samples) for number in range(len(samples))]
        axis.plot(samples, shares, color=colour[name], label=f"{label(name)}: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    axis.set_xscale("log")
    axis.set_xlabel("ms from the call to its body in an idle worker")
    axis.set_ylabel("% of calls")
    for share in (50, 99):
        axis.axhline(share, color="#cccccc", linewidth=0.8, zorder=0)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def growing(results: Results) -> Any:
    """One-step calls a second among finished calls."""
    sizes = results.sizes()
    if len(sizes) < 2:
        return None
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, colour in colours(results).items():
        found = [(size, results.median(name, growth(size), "per second")) for size in sizes]
        points = [(size, value) for size, value in found if value is not None]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=label(name))
    axis.set_xscale("symlog", linthresh=max(1, sizes[1] / 10))
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("finished calls in the tables")
    axis.set_ylabel("one-step calls a second")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    main()
