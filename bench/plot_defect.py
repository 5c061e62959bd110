#!/usr/bin/env python3
"""Draws docs/published_defect.svg from what `nibble verify --explain --json` computes.

    build/nibble verify --explain --json | bench/plot_defect.py docs/published_defect.svg

Needs matplotlib. The picture depends on the figures alone: the same input gives the same file.
"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    story = json.load(sys.stdin)
    plt.rcParams.update({"svg.hashsalt": "nibble", "svg.fonttype": "none", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), width_ratios=(5, 6))

    first = story["lines"][0]
    late = [100 * p["late"] for p in story["curve"]]
    left.plot(late, [p["error"] for p in story["curve"]], color="C3", marker="o", markersize=3,
              label="in place")
    left.axhline(first["nibble"], color="C0", label="Nibble, any order")
    left.axhline(0.28, color="0.6", linestyle=":", label="published error, 0.28")
    left.set(xlabel="work-groups that start late, %", ylabel="relative RMS error of y",
             ylim=(0, 0.4), title=f"{first['n']} x {first['k']}")
    left.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.26), borderpad=0)

    series = (("in time", "in_order", "0.7"), ("in place", "in_place", "C3"),
              ("split above 512", "split_above_512", "C1"), ("Nibble", "nibble", "C0"))
    for i, (label, key, color) in enumerate(series):
        at = [x + 0.2 * (i - 1.5) for x in range(len(story["lines"]))]
        right.bar(at, [min(line[key], 0.4) for line in story["lines"]], 0.18, color=color,
                  label=label)
        for x, line in zip(at, story["lines"]):
            if line[key] > 0.4:  # drawn cut off
                right.text(x, 0.37, f"{line[key]:.2f}", rotation=90, ha="center", va="top",
                           color="white")
    right.set(xticks=range(len(story["lines"])), ylim=(0, 0.4),
              xticklabels=[f"{line['n']} x {line['k']}" for line in story["lines"]],
              title=f"{100 * story['late']:.0f} % late")
    right.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(sys.argv[1], metadata={"Date": None})


main()
