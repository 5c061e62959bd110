#!/usr/bin/env python3
"""Shows that another engine reads what `nibble quantize` writes.

    check_compressed_tensors.py MODEL [--nibble PATH] [--group 64] [-- QUANTIZE OPTIONS]

MODEL is a Hugging Face folder or a GGUF file. It is quantised into a temporary folder, which
transformers with compressed-tensors loads in float32. Compared are
  - every INT4 matrix: what compressed-tensors unpacks against a plain reading of the packed bits.
    It multiplies code and scale in fp16, the type of the scales, so the products are rounded to that;
  - the logits, against those of `nibble logits --activations fp32` for the same folder, whose
    products are exact, and where MODEL carries expected.json and expected.safetensors (an oracle
    whose weights lie on the INT4 grid and in fp16) against those.
Exits 1 when a matrix differs in any bit, or a logit by more than --tolerance. The tolerance suits
the oracles; the rounding of the products alone moves a real model's logits by more (0.05).
Needs pip install torch transformers compressed-tensors safetensors numpy
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file


def plain_reading(packed, scale, shape):
    """The matrix by the definition of the format, the products rounded to the scales' type."""
    words = packed.numpy().view(np.uint32)
    codes = (words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    n, k = shape.tolist()
    values = (codes.reshape(n, k).astype(np.float32) - 8).reshape(n, scale.shape[1], -1)
    exact = torch.from_numpy(values * scale.float().numpy()[:, :, None]).reshape(n, k)
    return exact.to(scale.dtype).float()


def check_matrices(folder, model):
    """Every packed matrix of the folder against the module transformers made of it."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            names = [n[: -len("_packed")] for n in f.keys() if n.endswith(".weight_packed")]
            for name in names:
                expected = plain_reading(*(f.get_tensor(name + p) for p in ("_packed", "_scale", "_shape")))
                module = model.get_submodule(name.rpartition(".")[0])
                if not torch.equal(module.weight.detach().float(), expected):
                    sys.exit(f"FAILED: {name} is not what its bits say")
                count += 1
    return count


def nibble_logits(nibble, folder, ids):
    with tempfile.TemporaryDirectory() as d:
        out = pathlib.Path(d) / "logits.npy"
        subprocess.run([nibble, "logits", folder, "--tokens", ",".join(map(str, ids)), "--out", out,
                        "--activations", "fp32"], check=True)
        return torch.from_numpy(np.load(out))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--nibble", default="nibble")
    p.add_argument("--group", default="64")
    p.add_argument("--tolerance", type=float, default=2e-3)
    p.add_argument("options", nargs="*", help="more options of `nibble quantize`, after --")
    args = p.parse_args()

    warnings.simplefilter("ignore")  # that the folder has a configuration of its own, as it must
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as d:
        folder = pathlib.Path(d) / "int4"
        subprocess.run([args.nibble, "quantize", args.model, folder, "--group", args.group,
                        *args.options], check=True, stdout=subprocess.DEVNULL)
        config = transformers.CompressedTensorsConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=config).eval()
        print(f"{check_matrices(folder, model)} INT4 matrices: unpacked alike, bit for bit")

        prompts, expected = [[(i * 7919 + 13) % model.config.vocab_size for i in range(64)]], [None]
        oracle = args.model / "expected.json"
        if oracle.exists():
            tensors = load_file(args.model / "expected.safetensors")
            cases = json.loads(oracle.read_text())["prompts"]
            prompts = [c["ids"] + c["greedy"] for c in cases]
            expected = [tensors[c["logits"]] for c in cases]
        worst = 0.0
        for ids, oracle_logits in zip(prompts, expected):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].float()
            others = {"nibble": nibble_logits(args.nibble, folder, ids)}
            if oracle_logits is not None:
                others["oracle"] = oracle_logits
            for name, other in others.items():
                error = (logits - other).abs().max().item()
                worst = max(worst, error)
                print(f"{len(ids):4} tokens, transformers against {name}: largest error {error:.2g}")
        if worst > args.tolerance:
            sys.exit(f"FAILED: {worst:.2g} is more than {args.tolerance:g}")
        print("passed")


if __name__ == "__main__":
    main()
