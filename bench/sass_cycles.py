"""Cycles that one warp alone would take for a stretch of SASS, from the stall counts and scoreboards
in its control codes (guessed latencies for what is variable): where a kernel waits, without a GPU.

  cuobjdump --dump-sass FILE.o > FILE.sass
  python3 bench/sass_cycles.py FILE.sass FUNCTION            # loops of functions that match
  python3 bench/sass_cycles.py FILE.sass FUNCTION BEGIN END  # every instruction: wait, stall

Branches are taken as not there, predicated instructions as executed; other warps, caches and pipes
do not exist: H200 kernels took 2 to 4 times as long. Good for comparing two versions of a loop.
"""

import re
import sys

LATENCY = {"LDG": 450, "LDS": 30, "LDL": 40, "LD": 40, "LDC": 30, "SHFL": 25, "MUFU": 20}
LATENCY_ELSE = 20


def read(path, function):
    """[(address, text, high word)] of the functions whose name matches."""
    found, current = [], ""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    for line, following in zip(lines, lines[1:]):
        if name := re.search(r"Function : (\S+)", line):
            current = name.group(1)
        code = re.match(r"\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;?\s*/\* 0x[0-9a-f]+ \*/", line)
        if code and re.search(function, current):
            high = int(re.search(r"/\* (0x[0-9a-f]+) \*/", following).group(1), 16)
            found.append((int(code.group(1), 16), code.group(2), high))
    return found


def walk(code, begin, end):
    """[(address, text, wait, stall)] in order."""
    now, free, rows = 0, [0] * 6, []
    for address, text, high in code:
        if not begin <= address < end:
            continue
        stall, write, read_, mask = (high >> shift & bits for shift, bits in
                                     ((41, 15), (46, 7), (49, 7), (52, 63)))
        ready = max([now] + [free[i] for i in range(6) if mask >> i & 1])
        op = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]
        if write != 7:
            free[write] = max(free[write], ready + LATENCY.get(op, LATENCY_ELSE))
        if read_ != 7:
            free[read_] = max(free[read_], ready + 12)
        rows.append((address, text, ready - now, max(stall, 1)))
        now = ready + max(stall, 1)
    return rows


def main():
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    code = read(sys.argv[1], sys.argv[2])
    if len(sys.argv) == 5:
        for address, text, wait, stall in walk(code, int(sys.argv[3], 16), int(sys.argv[4], 16)):
            print(f"{address:05x} wait {wait:4} stall {stall:2}  {text}")
        return
    for address, text, _ in code:
        target = re.search(r"BRA\S* .*0x([0-9a-f]+)", text)
        if target and int(target.group(1), 16) < address:
            rows = walk(code, int(target.group(1), 16), address + 16)
            print(f"{target.group(1)} to {address:x}: {len(rows)} instructions, "
                  f"{sum(r[2] + r[3] for r in rows)} cycles, {sum(r[2] for r in rows)} of them waits")


main()
