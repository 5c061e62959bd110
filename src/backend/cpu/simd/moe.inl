// The mixture of experts: choice of experts, and the sum of their down projections' pieces.
namespace nibble::cpu {
namespace {

void mix(const float* parts, const float* weights, std::int64_t slots, int pieces, float* out) {
  F sum[kRowParallelPieces][1];
  for (int p = 0; p < pieces; ++p) {
    sum[p][0] = f_zero();
    for (std::int64_t s = 0; s < slots; ++s)
      sum[p][0] = f_fma(f_set1(weights[s]), f_load(parts + (s * pieces + p) * kTile), sum[p][0]);
  }
  add_pieces<1>(sum, pieces);
  f_store(out, sum[0][0]);
}

float sigmoid(float x) {
  float y[16];
  f_store(y, f_sigmoid(f_set1(x)));
  return y[0];
}

void top_k(const float* logits, std::int64_t experts, std::int64_t k, std::int32_t* ids,
           float* weights) {
  float sum = 0;
  for (std::int64_t s = 0; s < k; ++s) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < experts; ++e) {
      bool taken = false;
      for (std::int64_t i = 0; i < s; ++i) taken = taken || ids[i] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    ids[s] = static_cast<std::int32_t>(best);
    weights[s] = exp1(logits[best] - logits[ids[0]]);
    sum += weights[s];
  }
  for (std::int64_t s = 0; s < k; ++s) weights[s] = weights[s] / sum;
}

}  // namespace
}  // namespace nibble::cpu
