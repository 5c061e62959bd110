#!/usr/bin/env python3
"""Compares nibble with Hugging Face transformers on your own checkpoint, token for token.

    compare_hf.py MODEL_DIR [--nibble PATH] [--text TEXT | --tokens 1,2,3] [--activations fp32]

Both compute the logits of the same ids at every position. Prints the largest and the RMS error,
and how often the most probable token is the same; exits 1 when that is below --agree or the
median RMS error above --rms. Needs torch, transformers and numpy, and compressed-tensors
for INT4 checkpoints: pip install torch transformers numpy compressed-tensors
"""
import argparse
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

TEXT = ("The quick brown fox jumps over the lazy dog. In 1969, two people walked on the Moon, and "
        "the computer that took them there had four kilobytes of memory.")


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as e:
        sys.exit(f"compare_hf.py needs the Python package {name} ({e}):\n"
                 "  pip install torch transformers numpy")


def token_ids(args, vocab, transformers):
    if args.tokens:
        return [int(t) for t in args.tokens.split(",")]
    if any((args.model / f).exists() for f in ("tokenizer.json", "tokenizer_config.json")):
        return transformers.AutoTokenizer.from_pretrained(args.model)(args.text)["input_ids"]
    print("no tokenizer in the checkpoint: using 64 fixed ids; --tokens gives others")
    return [(i * 7919 + 13) % vocab for i in range(64)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=pathlib.Path, help="a Hugging Face folder")
    p.add_argument("--nibble", default=pathlib.Path(__file__).resolve().parent / "../build/nibble")
    p.add_argument("--text", default=TEXT)
    p.add_argument("--tokens", help="comma-separated ids instead of a text")
    p.add_argument("--activations", default="fp32", choices=["int16", "int8", "fp32"])
    p.add_argument("--agree", type=float, default=0.95, help="least top-1 agreement (0.95)")
    p.add_argument("--rms", type=float, help="largest median RMS error (default: not checked)")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    np, torch, transformers = load("numpy"), load("torch"), load("transformers")

    model = transformers.AutoModelForCausalLM.from_pretrained(args.model).float().eval()
    ids = token_ids(args, model.config.vocab_size, transformers)
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].float().numpy()
    del model
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.npy"
        done = subprocess.run([args.nibble, "logits", args.model, "--tokens",
                               ",".join(map(str, ids)), "--activations", args.activations,
                               "--out", out], stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"nibble logits failed ({done.returncode})")
        got = np.load(out)
    if got.shape != want.shape:
        sys.exit(f"shapes differ: nibble {got.shape}, transformers {want.shape}")

    error = got.astype(np.float64) - want
    rms = np.sqrt((error ** 2).mean(axis=1))
    same = got.argmax(axis=1) == want.argmax(axis=1)
    top = np.sort(want, axis=1)[:, -2:]
    # A tie broken the other way is no disagreement: margins smaller than twice the error there.
    close = (top[:, 1] - top[:, 0]) <= 2 * np.abs(error).max(axis=1)
    result = {"positions": len(ids), "activations": args.activations,
              "max_error": float(np.abs(error).max()), "median_rms_error": float(np.median(rms)),
              "worst_rms_error": float(rms.max()), "logit_rms": float(np.sqrt((want ** 2).mean())),
              "top1_agreement": float(same.mean()),
              "top1_agreement_beyond_ties": float((same | close).mean())}
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28} {value if isinstance(value, (int, str)) else format(value, '.6g')}")
    finite = bool(np.isfinite(got).all())
    if not finite:
        print("nibble's logits are not finite", file=sys.stderr)
    bad = (not finite or result["top1_agreement"] < args.agree or
           (args.rms is not None and result["median_rms_error"] > args.rms))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
