"""Where a token's time goes: every launch of the tokens in a trace (the CSV file that a build with
NIBBLE_CUDA_TRACE writes where the variable of that name says), by kernel and by place in a layer.

A launch takes from when it may begin to when the next one may: all of its cost in the chain. Times
are means of the middle half over all tokens (the clock may be coarse). `early`: how long before that
the first block was there. Tokens begin with `embedding`; those of the commonest sequence count.
"""

import csv
import math
import statistics
import sys
from collections import Counter


def typical(values):
    values = sorted(values)
    cut = len(values) // 4
    return statistics.fmean(values[cut:len(values) - cut])


def tokens_of(rows):
    """(launches, [microseconds a launch], [the same of early]): a row of times a token."""
    begins = [i for i, row in enumerate(rows) if row["name"] == "embedding"]
    spans = list(zip(begins, begins[1:]))  # the last one's end is not known
    if not spans:
        sys.exit("no two launches of embedding: no token is whole")

    def launches(span):
        return tuple((r["name"], int(r["grid"]), int(r["threads"])) for r in rows[slice(*span)])

    common = Counter(map(launches, spans)).most_common(1)[0][0]
    at = [int(row["await_ns"]) for row in rows]
    alike = [span for span in spans if launches(span) == common]
    times = [[(at[i + 1] - at[i]) / 1e3 for i in range(*span)] for span in alike]
    early = [[int(rows[i]["early_ns"]) / 1e3 for i in range(*span)] for span in alike]
    return common, times, early


def layers_of(launches):
    """(begin, launches of a period, periods): what repeats through most of a token."""
    n = len(launches)
    for period in range(1, n // 2 + 1):
        begin = best_begin = best = 0
        for i in range(n - period + 1):
            if i == n - period or launches[i] != launches[i + period]:
                if i - begin > best:
                    best_begin, best = begin, i - begin
                begin = i + 1
        if best + period >= 0.7 * n:
            return best_begin, period, (best + period) // period
    return 0, n, 1


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    launches, times, early = tokens_of(rows)
    step = math.gcd(*(int(row["await_ns"]) for row in rows))
    total = typical([sum(token) for token in times])
    print(f"{len(times)} tokens of {len(launches)} launches: {total:.1f} us a token; "
          f"the clock's step: {step} ns")

    def line(places, *, last=False):
        """Of launches that are alike, by their places in a token."""
        sum_ = sum(typical([token[i] for token in times]) for i in places)
        name, grid, threads = launches[places[0]]
        before = typical([token[i] for token in early for i in places])
        print(f"{name:14} {grid:6} x {threads:4}  x {len(places):3}  {sum_ / len(places):8.2f} us each"
              f"  {sum_:9.1f} us  {100 * sum_ / total:5.1f} %  early {before:6.2f}"
              + ("  with the gap to the next token" if last else ""))
        return sum_

    def group(places):
        """Sorted by cost; the last launch, which has the gap in its time, by itself."""
        alike = {}
        for i in places:
            alike.setdefault((launches[i], i == len(launches) - 1), []).append(i)
        return sorted(alike.values(), key=lambda p: -sum(typical([t[i] for t in times]) for i in p))

    print("-- by kernel, grid and threads")
    all_ = sum(line(p, last=len(launches) - 1 in p) for p in group(range(len(launches))))
    print(f"sum {all_:.1f} us")
    begin, period, periods = layers_of(launches)
    end = begin + period * periods
    parts = (("before", range(begin), 1),
             (f"{periods} times these {period} launches", range(begin, begin + period), periods),
             ("after", range(end, len(launches)), 1))
    for title, places, repeats in parts:
        if not places:
            continue
        print(f"-- {title}, in order")
        of_part = sum(line([i + period * r for r in range(repeats)],
                           last=i + period * (repeats - 1) == len(launches) - 1) for i in places)
        print(f"sum {of_part:.1f} us, {of_part / repeats:.1f} us each time")


main()
