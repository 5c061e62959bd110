#!/usr/bin/env python3
"""Times nibble against llama.cpp's llama-bench on the identical GGUF file, in one run.

    compare_llama_cpp.py MODEL.gguf --llama-bench PATH --nibble PATH [--threads 1,2] [--rounds 5]

Rounds alternate the two programs (and which goes first), so that a machine that slows down slows
both. Prints the median, the range, and the ratio nibble / llama.cpp with its range over rounds;
writes all of it, with the machine and the commit, to bench/results/. Standard library only.

Bytes a token: for llama.cpp, the file's tensors that one decoded token reads (an embedding only
where it is also the head; routed experts by the share used), without the KV cache; for nibble,
what `nibble bench model` counts.
"""
import argparse
import datetime
import hashlib
import json
import pathlib
import platform
import re
import statistics
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIMD = ("sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
        "avx_vnni amx_tile amx_int8 asimd asimddp i8mm sve sve2 bf16").split()
# GGUF tensor type -> (elements, bytes) of a block.
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
          10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
          30: (1, 2)}


def gguf_bytes_per_token(path):
    """Bytes of weights that one decoded token reads, or None for a file of unknown types."""
    with open(path, "rb") as f:
        def take(fmt):
            return struct.unpack("<" + fmt, f.read(struct.calcsize("<" + fmt)))[0]

        def text():
            return f.read(take("Q")).decode("utf-8", "replace")

        def value(kind):
            if kind == 8:
                return text()
            if kind == 9:
                inner, count = take("I"), take("Q")
                return [value(inner) for _ in range(count)]
            return take("BbHhIif?__Qqd"[kind])

        if f.read(4) != b"GGUF" or take("I") not in (2, 3):
            sys.exit(f"{path}: not a GGUF file of version 2 or 3")
        tensors, keys = take("Q"), take("Q")
        meta = {}
        for _ in range(keys):
            key = text()
            meta[key] = value(take("I"))
        sizes = {}
        for _ in range(tensors):
            name = text()
            elements = 1
            for _ in range(take("I")):
                elements *= take("Q")
            kind = take("I")
            take("Q")
            if kind not in BLOCKS:
                return None
            sizes[name] = elements // BLOCKS[kind][0] * BLOCKS[kind][1]
    arch = meta.get("general.architecture", "")
    used, experts = (meta.get(f"{arch}.expert_{k}", 0) for k in ("used_count", "count"))
    total = 0
    for name, size in sizes.items():
        if name == "token_embd.weight" and "output.weight" in sizes:
            continue
        total += size * used // experts if "_exps." in name else size
    return total


def machine():
    info = {"arch": platform.machine(), "kernel": platform.release(), "cpu": platform.processor()}
    text = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(map(str.strip, line.split(":", 1)) for line in text.splitlines() if ":" in line)
    info["cpu"] = fields.get("model name", info["cpu"])
    info["cores"] = text.count("processor\t")
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    info["simd"] = [f for f in SIMD if f in flags]
    return info


def output_of(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def run_llama(args, threads):
    rows = json.loads(output_of([args.llama_bench, "-m", args.model, "-p", str(args.prompt), "-n",
                                 str(args.generate), "-t", str(threads), "-r", "1", "-o", "json"]))
    speeds = {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["avg_ts"]
              for r in rows}
    return speeds, {"commit": rows[0]["build_commit"], "build": rows[0]["build_number"]}


def run_nibble(args, threads):
    rows = json.loads(output_of([args.nibble, "bench", "model", args.model, "--prompt",
                                 str(args.prompt), "--generate", str(args.generate), "--threads",
                                 str(threads), *args.nibble_args.split(), "--json"]))
    return {r["test"]: r["tokens_per_second"] for r in rows}, {r["test"]: r for r in rows}


def summary(values):
    values = [round(v, 4) for v in values]
    return {"median": round(statistics.median(values), 4), "min": min(values), "max": max(values),
            "rounds": values}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--llama-bench", type=pathlib.Path, required=True)
    p.add_argument("--nibble", type=pathlib.Path, required=True)
    p.add_argument("--threads", default="1,2", help="comma-separated counts (default 1,2)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--prompt", type=int, default=256)
    p.add_argument("--generate", type=int, default=64)
    p.add_argument("--nibble-args", default="--repeat 1",
                   help="more options for nibble bench model (default: one timed run a round)")
    p.add_argument("--out", type=pathlib.Path, help="result file (default: in bench/results/)")
    args = p.parse_args()
    if args.rounds < 1:
        p.error("--rounds must be at least 1")

    peer_bytes = gguf_bytes_per_token(args.model)
    results = []
    for threads in map(int, args.threads.split(",")):
        speeds = {"llama.cpp": [], "nibble": []}
        for i in range(args.rounds):
            print(f"\rthreads {threads}, round {i + 1} of {args.rounds} ", end="", file=sys.stderr)
            order = [("llama.cpp", run_llama), ("nibble", run_nibble)]
            for name, run in order if i % 2 == 0 else order[::-1]:
                speed, about = run(args, threads)
                speeds[name].append(speed)
                if name == "llama.cpp":
                    peer = about
                else:
                    ours = about
        print(file=sys.stderr)
        for test in speeds["nibble"][0]:
            a = [s[test] for s in speeds["nibble"]]
            b = [s[test] for s in speeds["llama.cpp"]]
            row = {"test": test, "threads": threads, "nibble": summary(a), "llama.cpp": summary(b),
                   "ratio": summary([x / y for x, y in zip(a, b)])}
            if test.startswith("tg"):
                row["nibble"]["bytes_per_token"] = ours[test]["bytes_per_token"]
                row["nibble"]["bandwidth_fraction"] = ours[test]["bandwidth_fraction"]
                row["llama.cpp"]["bytes_per_token"] = peer_bytes
            results.append(row)

    print(f"{'test':8} {'threads':>7} {'nibble tok/s':>22} {'llama.cpp tok/s':>22} {'ratio':>18} "
          f"{'MB/token':>15}")
    for r in results:
        def cell(key, digits):
            s = r[key]
            return f"{s['median']:.{digits}f} ({s['min']:.{digits}f}-{s['max']:.{digits}f})"
        per_token = "/".join(f"{r[k]['bytes_per_token'] / 1e6:.1f}" if r[k].get("bytes_per_token")
                             else "-" for k in ("nibble", "llama.cpp"))
        print(f"{r['test']:8} {r['threads']:7} {cell('nibble', 1):>22} {cell('llama.cpp', 1):>22} "
              f"{cell('ratio', 2):>18} {per_token:>15}")

    now = datetime.datetime.now(datetime.timezone.utc)
    out = args.out or ROOT / "bench" / "results" / f"llama_cpp-{args.model.stem}-{now:%Y%m%d}.json"
    with open(args.model, "rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    out.write_text(json.dumps({
        "date": now.isoformat(timespec="seconds"),
        "commit": re.search(r"^commit (\S+)", output_of([args.nibble, "--version"]), re.M)[1],
        "machine": machine(),
        "model": {"file": args.model.name, "sha256": digest.hexdigest()},
        "llama.cpp": peer,
        "nibble_args": args.nibble_args,
        "prompt": args.prompt, "generate": args.generate, "rounds": args.rounds,
        "results": results}, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
