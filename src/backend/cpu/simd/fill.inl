// Tile kernels into a table: run-time values become template arguments here.
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
constexpr void fill_fixed(Table& by_activation) {
  fill<T, Activations::Int16>(by_activation[0]);
  fill<T, Activations::Int8>(by_activation[1]);
}
template <WeightType T>
constexpr void fill_fixed(Kernels& k) {
  fill_fixed<T>(k.tile[static_cast<int>(T)]);
  fill_fixed<T>(k.pieces[static_cast<int>(T)]);
}

// The kernels of codes times integers: all in which instruction sets of the same lanes differ.
constexpr void fill_dots(Kernels& k) {
  fill_fixed<WeightType::Int4>(k);
  fill_fixed<WeightType::Int4Aff>(k);
  fill_fixed<WeightType::Int8>(k);
}

}  // namespace
}  // namespace nibble::cpu
