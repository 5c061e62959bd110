"""Microseconds of every kernel in a CSV file of ncu (gpu__time_duration.sum), by kernel and grid."""

import csv
import sys

SCALE = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3}

with open(sys.argv[1], encoding="utf-8") as file:
    lines = [line for line in file if line.startswith('"')]
times = {}
for row in csv.DictReader(lines):
    if row["Metric Name"] != "gpu__time_duration.sum":
        continue
    kernel = row["Kernel Name"].split("(")[0].split("::")[-1]
    time = float(row["Metric Value"].replace(",", "")) * SCALE[row["Metric Unit"]]
    times.setdefault((kernel, row["Grid Size"]), []).append(time)
for (kernel, grid), all_ in sorted(times.items(), key=lambda item: -sum(item[1])):
    print(f"{kernel:24} {grid:16} x {len(all_):3}  {sum(all_) / len(all_):9.2f} us each")
