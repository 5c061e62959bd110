// Where the 32-bit words of prepared rows lie (kernels.h: kWordStride). Included by every
// instruction set's file before its vector header.
#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

// Row m of x[0..MB): the word that holds q at place k of XRow::q.
template <int MB>
const std::int16_t* q_word(const XRow* x, int m, std::int64_t k) {
  return kWordStride<MB> == 1 ? x[m].q + k : x[0].q + k * kWordStride<MB> + 2 * m;
}
// The bytes of columns k..k+3.
template <int MB>
const std::int8_t* lo_word(const XRow* x, int m, std::int64_t k) {
  return kWordStride<MB> == 1 ? x[m].lo + k : x[0].lo + k * kWordStride<MB> + 4 * m;
}
template <int MB>
const std::int32_t* minus8_word(const XRow* x, int m, std::int64_t chunk) {
  return kWordStride<MB> == 1 ? x[m].minus8 + chunk : x[0].minus8 + chunk * kWordStride<MB> + m;
}

}  // namespace
}  // namespace nibble::cpu
