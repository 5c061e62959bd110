#!/usr/bin/env python3
"""Nibble's token ids against llama.cpp's own cases of a vocabulary.

    check_vocab.py models/ggml-vocab-qwen35.gguf [--nibble build/nibble]

llama.cpp's source (inside PyPI's `llama-cpp-python`) has vocabularies under models/, each with texts
(.inp) and their ids (.out). They hold no weights, so the vocabulary is first copied into a model of
nothing (needs the `gguf` package). llama.cpp leaves out the normalisation (NFC) that Qwen's own
tokenizer.json asks for: texts that it changes are counted and not compared. Exit code 0: all others
have equal ids.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import unicodedata

import gguf
import numpy as np

SEPARATOR = "\n__ggml_vocab_test__\n"


def field(reader, key):
    f = reader.get_field(key)
    return None if f is None else f.contents()


def with_weights(source, target):
    """The tokenizer of `source` in a one-layer model."""
    r = gguf.GGUFReader(source)
    tokens = field(r, "tokenizer.ggml.tokens")
    w = gguf.GGUFWriter(target, "qwen3")
    w.add_block_count(1), w.add_context_length(64), w.add_embedding_length(32)
    w.add_feed_forward_length(32), w.add_head_count(1), w.add_head_count_kv(1)
    w.add_tokenizer_model(field(r, "tokenizer.ggml.model"))
    w.add_tokenizer_pre(field(r, "tokenizer.ggml.pre"))
    w.add_token_list(tokens)
    w.add_token_types(field(r, "tokenizer.ggml.token_type"))
    w.add_token_merges(field(r, "tokenizer.ggml.merges"))
    w.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float16))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("vocabulary", type=pathlib.Path)
    p.add_argument("--nibble", default="build/nibble")
    a = p.parse_args()
    texts = pathlib.Path(f"{a.vocabulary}.inp").read_bytes().decode().split(SEPARATOR)
    lines = pathlib.Path(f"{a.vocabulary}.out").read_text().split("\n")
    wrong = compared = unnormalised = 0
    with tempfile.TemporaryDirectory() as folder:
        model, case = pathlib.Path(folder, "vocab.gguf"), pathlib.Path(folder, "case.txt")
        with_weights(a.vocabulary, model)
        for text, line in zip(texts, lines):
            if not text:
                continue
            if unicodedata.normalize("NFC", text) != text:
                unnormalised += 1
                continue
            compared += 1
            case.write_bytes(text.encode())
            r = subprocess.run([a.nibble, "tokenize", model, "--file", case, "--ids", "--no-special"],
                               capture_output=True, text=True, check=True)
            got = [int(x) for x in r.stdout.replace(",", " ").split()]
            if got != [int(x) for x in line.split()]:
                wrong += 1
                print(f"{text!r}\n  expected {line.strip()}\n  got      {' '.join(map(str, got))}")
    print(f"{a.vocabulary.name}: {compared} texts compared, {wrong} differ; "
          f"{unnormalised} not in NFC")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
