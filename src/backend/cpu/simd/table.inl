// The whole table of one instruction set.
namespace nibble::cpu {
namespace {

template <WeightType T>
constexpr void fill_fp32(Kernels& k) {
  const auto at = static_cast<int>(T);
  if constexpr (is_quantised(T)) {
    fill<T, Activations::Fp32>(k.tile[at][2]), fill<T, Activations::Fp32>(k.pieces[at][2]);
  } else {  // plain weights take x in fp32 whatever the mode
    for (auto& row : k.tile[at]) fill<T, Activations::Fp32>(row);
    for (auto& row : k.pieces[at]) fill<T, Activations::Fp32>(row);
  }
}

constexpr Kernels make_table(const char* name) {
  Kernels k{};
  k.name = name, k.prepare = prepare, k.add_rmsnorm = add_rmsnorm, k.add = add, k.swiglu = swiglu,
  k.rope = rope, k.attention = attention, k.combine = combine, k.to_int16 = to_int16,
  k.to_half = to_half;
  k.conv = conv, k.unit_qk = unit_qk, k.delta_gates = delta_gates, k.delta_rule = delta_rule,
  k.gated_rmsnorm = gated_rmsnorm;
  k.mix = mix, k.sigmoid = sigmoid, k.top_k = top_k;
  fill_fp32<WeightType::Int4>(k);
  fill_fp32<WeightType::Int4Aff>(k);
  fill_fp32<WeightType::Int8>(k);
  fill_fp32<WeightType::F16>(k);
  fill_fp32<WeightType::BF16>(k);
  fill_fp32<WeightType::F32>(k);
  fill_dots(k);
  return k;
}

}  // namespace
}  // namespace nibble::cpu
