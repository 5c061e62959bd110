#!/usr/bin/env python3
"""The framework's own kernels on the shapes of bench/fused_cuda.cc, timed in the same way: one CUDA graph
of 200 dependent operations, weights rotating beyond the second cache.

    torch_linear.py [NxK ...]

An operation is residual add + RMSNorm (torch.compile) and a product: int4, torch's own kernel for
group 128 (_weight_int4pack_mm, bf16), or fp16, cuBLAS. Prints microseconds an operation, the median of 15
launches of the graph. Needs torch and a CUDA device.
"""
import statistics
import sys
import time

import torch

OPS, BEYOND_CACHE, GROUP, LAUNCHES = 200, 256 << 20, 128, 15


@torch.compile(dynamic=False)
def add_norm(residual, delta, weight):
    h = residual + delta
    return h, h * torch.rsqrt(h.square().mean() + 1e-6) * weight


def weights(n, k, kind):
    each = n * k // 2 if kind == "int4" else 2 * n * k
    count = min(OPS, -(-BEYOND_CACHE // each))
    if kind == "fp16":
        return [torch.randn(k, n, device="cuda", dtype=torch.half) for _ in range(count)]
    codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = torch.randn(k // GROUP, n, 2, device="cuda", dtype=torch.bfloat16) * 0.01
    return [(packed.clone(), scales.clone()) for _ in range(count)]


def product(x, w, kind):
    if kind == "fp16":
        return torch.matmul(x.to(torch.half), w)
    return torch.ops.aten._weight_int4pack_mm(x.to(torch.bfloat16), w[0], GROUP, w[1])


def measure(n, k, kind):
    ws = weights(n, k, kind)
    start = torch.randn(1, k, device="cuda")
    delta = torch.full_like(start, 1e-3)
    norm = torch.ones(k, device="cuda")

    def chain():
        residual = start
        for i in range(OPS):
            residual, x = add_norm(residual, delta, norm)
            y = product(x, ws[i % len(ws)], kind)
        return y

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    times = []
    for _ in range(LAUNCHES + 2):  # the first two warm up
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / OPS * 1e6)
    times = sorted(times[2:])
    print(f"{n:6} x {k:5}  {kind}  {statistics.median(times):7.2f} us ({times[0]:.2f} to {times[-1]:.2f})",
          flush=True)


def main():
    shapes = sys.argv[1:] or ["34816x5120", "8704x5120", "256x2048"]
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for shape in shapes:
        n, k = map(int, shape.split("x"))
        for kind in ("int4", "fp16"):
            measure(n, k, kind)


if __name__ == "__main__":
    main()
