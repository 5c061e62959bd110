#!/usr/bin/env python3
"""Writes a GGUF file with random Q4_0 weights in the exact shapes of a model, to time engines on.

    make_gguf.py MODEL OUT.gguf        MODEL: one of those in MODELS below

Needs numpy and gguf (PyPI). The file has no tokenizer: benchmarks only.
"""
import sys

import gguf
import numpy as np

# L layers, H hidden, F feed-forward, nh/nkv heads, hd head size, V vocabulary; Qwen3.5: vk/vv key
# and value heads of the delta net; E/k/Fs experts, chosen, shared width.
MODELS = {
    "smollm2-135m": dict(arch="llama", L=30, H=576, F=1536, nh=9, nkv=3, hd=64, V=49152, theta=1e5,
                         tied=True),
    "llama-3.2-1b": dict(arch="llama", L=16, H=2048, F=8192, nh=32, nkv=8, hd=64, V=128256,
                         theta=5e5, tied=True),
    "qwen3.5-0.8b": dict(arch="qwen35", L=24, H=1024, F=3584, nh=8, nkv=2, hd=256, vk=16, vv=16,
                         V=248320, theta=1e7),
    "qwen3.6-27b": dict(arch="qwen35", L=64, H=5120, F=17408, nh=24, nkv=4, hd=256, vk=16, vv=48,
                        V=248320, theta=1e7),
    "qwen3.6-35b-a3b": dict(arch="qwen35moe", L=40, H=2048, F=512, nh=16, nkv=2, hd=256, vk=16,
                            vv=32, V=248320, E=256, k=8, Fs=512, theta=1e7),
}
POOL = 32 << 20  # blocks of random codes; larger tensors repeat them


class Writer:
    def __init__(self, path, c):
        self.c, self.gguf = c, gguf.GGUFWriter(path, c["arch"])
        self.rng = np.random.default_rng(0)
        self.pool = self.rng.integers(0, 256, (POOL, 18), dtype=np.uint8)
        scales = self.rng.normal(0, 0.004, POOL).astype(np.float16)
        self.pool[:, :2] = scales.view(np.uint8).reshape(POOL, 2)

    def q4(self, name, *shape):  # (..., N, K)
        blocks = int(np.prod(shape)) // 32
        flat = self.pool[:blocks] if blocks <= POOL else np.resize(self.pool, (blocks, 18))
        self.gguf.add_tensor(name, flat.reshape(*shape[:-1], shape[-1] // 32 * 18),
                             raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def f32(self, name, *shape, value=None):
        data = np.full(shape, value) if value is not None else self.rng.normal(0, .02, shape)
        self.gguf.add_tensor(name, data.astype(np.float32))


def metadata(w):
    c, g = w.c, w.gguf
    g.add_block_count(c["L"])
    g.add_context_length(131072)
    g.add_embedding_length(c["H"])
    g.add_feed_forward_length(c["F"])
    g.add_head_count(c["nh"])
    g.add_head_count_kv(c["nkv"])
    g.add_layer_norm_rms_eps(1e-6)
    g.add_rope_freq_base(c["theta"])
    g.add_vocab_size(c["V"])
    g.add_tokenizer_model("none")
    if c["arch"] == "llama":
        g.add_rope_dimension_count(c["hd"])
        return
    g.add_key_length(c["hd"])
    g.add_value_length(c["hd"])
    g.add_rope_dimension_count(c["hd"] // 4)
    pairs = c["hd"] // 8
    third = pairs * 11 // 32
    g.add_rope_dimension_sections([third, third, pairs - 2 * third, 0])
    g.add_ssm_conv_kernel(4)
    g.add_ssm_inner_size(128 * c["vv"])
    g.add_ssm_state_size(128)
    g.add_ssm_time_step_rank(c["vv"])
    g.add_ssm_group_count(c["vk"])
    g.add_uint32(f"{c['arch']}.full_attention_interval", 4)
    if "E" in c:
        g.add_expert_count(c["E"])
        g.add_expert_used_count(c["k"])
        g.add_expert_feed_forward_length(c["F"])
        g.add_expert_shared_feed_forward_length(c["Fs"])


def attention(w, b):
    c, h = w.c, w.c["H"]
    gate = 1 if c["arch"] == "llama" else 2  # Qwen3.5: a query and a gate a head
    w.q4(b + "attn_q.weight", c["nh"] * c["hd"] * gate, h)
    w.q4(b + "attn_k.weight", c["nkv"] * c["hd"], h)
    w.q4(b + "attn_v.weight", c["nkv"] * c["hd"], h)
    w.q4(b + "attn_output.weight", h, c["nh"] * c["hd"])
    if gate == 2:
        w.f32(b + "attn_q_norm.weight", c["hd"], value=1)
        w.f32(b + "attn_k_norm.weight", c["hd"], value=1)


def delta_net(w, b):
    c, h = w.c, w.c["H"]
    kd, vd = 128 * c["vk"], 128 * c["vv"]
    w.q4(b + "attn_qkv.weight", 2 * kd + vd, h)
    w.q4(b + "attn_gate.weight", vd, h)
    w.f32(b + "ssm_conv1d.weight", 2 * kd + vd, 4)
    w.f32(b + "ssm_dt.bias", c["vv"])
    w.f32(b + "ssm_a", c["vv"], value=-1)
    w.f32(b + "ssm_norm.weight", 128, value=1)
    w.f32(b + "ssm_beta.weight", c["vv"], h)
    w.f32(b + "ssm_alpha.weight", c["vv"], h)
    w.q4(b + "ssm_out.weight", h, vd)


def feed_forward(w, b):
    c, h, f = w.c, w.c["H"], w.c["F"]
    if "E" not in c:
        w.q4(b + "ffn_gate.weight", f, h)
        w.q4(b + "ffn_up.weight", f, h)
        w.q4(b + "ffn_down.weight", h, f)
        return
    w.f32(b + "ffn_gate_inp.weight", c["E"], h)
    w.q4(b + "ffn_gate_exps.weight", c["E"], f, h)
    w.q4(b + "ffn_up_exps.weight", c["E"], f, h)
    w.q4(b + "ffn_down_exps.weight", c["E"], h, f)
    w.f32(b + "ffn_gate_inp_shexp.weight", h)
    w.q4(b + "ffn_gate_shexp.weight", c["Fs"], h)
    w.q4(b + "ffn_up_shexp.weight", c["Fs"], h)
    w.q4(b + "ffn_down_shexp.weight", h, c["Fs"])


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(f"usage: make_gguf.py MODEL OUT.gguf, MODEL one of {', '.join(MODELS)}")
    c = MODELS[sys.argv[1]]
    w = Writer(sys.argv[2], c)
    metadata(w)
    w.q4("token_embd.weight", c["V"], c["H"])
    w.f32("output_norm.weight", c["H"], value=1)
    if not c.get("tied"):
        w.q4("output.weight", c["V"], c["H"])
    for i in range(c["L"]):
        b = f"blk.{i}."
        llama = c["arch"] == "llama"
        w.f32(b + "attn_norm.weight", c["H"], value=1)
        w.f32(b + ("ffn_norm.weight" if llama else "post_attention_norm.weight"), c["H"], value=1)
        (attention if llama or (i + 1) % 4 == 0 else delta_net)(w, b)
        feed_forward(w, b)
    w.gguf.write_header_to_file()
    w.gguf.write_kv_data_to_file()
    w.gguf.write_tensors_to_file()
    w.gguf.close()


if __name__ == "__main__":
    main()
