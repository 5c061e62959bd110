// The table of one instruction set: run-time values become template arguments here.
namespace nibble::cpu {
namespace {

template <WeightType T, Activations A>
constexpr void fill(TileFn (&row)[4]) {
  row[0] = tile<T, A, 1>, row[1] = tile<T, A, 2>, row[2] = tile<T, A, 4>, row[3] = tile<T, A, 8>;
}
template <WeightType T, Activations A>
constexpr void fill(PiecesFn (&row)[3]) {
  row[0] = tile_pieces<T, A, 1>, row[1] = tile_pieces<T, A, 2>, row[2] = tile_pieces<T, A, 4>;
}
template <WeightType T, class Table>
constexpr void fill_activations(Table& by_activation) {
  if constexpr (is_quantised(T)) {
    fill<T, Activations::Int16>(by_activation[0]);
    fill<T, Activations::Int8>(by_activation[1]);
    fill<T, Activations::Fp32>(by_activation[2]);
  } else {  // plain weights take x in fp32 whatever the mode
    for (auto& row : by_activation) fill<T, Activations::Fp32>(row);
  }
}
template <WeightType T>
constexpr void fill(Kernels& k) {
  fill_activations<T>(k.tile[static_cast<int>(T)]);
  fill_activations<T>(k.pieces[static_cast<int>(T)]);
}

constexpr Kernels make_table(const char* name) {
  Kernels k{};
  k.name = name, k.prepare = prepare, k.add_rmsnorm = add_rmsnorm, k.add = add, k.swiglu = swiglu,
  k.rope = rope, k.attention = attention, k.combine = combine, k.to_int16 = to_int16,
  k.to_half = to_half;
  k.conv = conv, k.unit_qk = unit_qk, k.delta_gates = delta_gates, k.delta_rule = delta_rule,
  k.gated_rmsnorm = gated_rmsnorm;
  k.mix = mix, k.sigmoid = sigmoid, k.top_k = top_k;
  fill<WeightType::Int4>(k);
  fill<WeightType::Int4Aff>(k);
  fill<WeightType::Int8>(k);
  fill<WeightType::F16>(k);
  fill<WeightType::BF16>(k);
  fill<WeightType::F32>(k);
  return k;
}

}  // namespace
}  // namespace nibble::cpu
