#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "base/error.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kCachedPiece = 24;        // bytes; longer pieces seldom come twice
constexpr std::size_t kCacheEntries = 1 << 16;  // bounds the memory of one call

// Printable Latin-1 stands for itself; the 68 other bytes, in order, for U+0100 onwards.
constexpr auto kAlphabet = [] {
  std::array<char32_t, 256> to{};
  char32_t next = 256;
  for (unsigned b = 0; b < 256; ++b) {
    const bool printable = (b > 32 && b < 127) || (b > 160 && b != 173);
    to[b] = printable ? b : next++;
  }
  return to;
}();
constexpr auto kBytes = [] {
  std::array<std::int16_t, 256 + 68> from{};
  from.fill(-1);
  for (unsigned b = 0; b < 256; ++b) from[kAlphabet[b]] = static_cast<std::int16_t>(b);
  return from;
}();

constexpr std::uint64_t key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}
constexpr std::size_t slot(std::uint64_t pair, int shift) {
  return static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15u) >> shift);
}

}  // namespace

std::optional<std::string> from_byte_alphabet(std::string_view token) {
  std::string bytes;
  for (std::size_t i = 0; i < token.size();) {
    const Utf8Char c = decode_utf8(token.substr(i));
    if (c.kind != Utf8Char::kValid || c.code >= kBytes.size() || kBytes[c.code] < 0) return {};
    bytes += static_cast<char>(kBytes[c.code]);
    i += c.length;
  }
  return bytes;
}

std::string byte_alphabet(std::uint8_t byte) {
  std::string s;
  append_utf8(s, kAlphabet[byte]);
  return s;
}

Bpe::Bpe(const StringMap<std::int32_t>& vocab,
         const std::vector<std::pair<std::string, std::string>>& merges,
         StringMap<std::int32_t> whole)
    : whole_(std::move(whole)) {
  for (unsigned b = 0; b < 256; ++b) {
    const auto it = vocab.find(byte_alphabet(static_cast<std::uint8_t>(b)));
    byte_ids_[b] = it == vocab.end() ? -1 : it->second;
  }
  require(merges.size() < std::numeric_limits<std::int32_t>::max(), "{} merges are too many",
          merges.size());
  const int bits = std::bit_width(merges.size() * 2 + 1);
  shift_ = 64 - bits;
  table_.resize(std::size_t{1} << bits);
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string &left = merges[rank].first, &right = merges[rank].second;
    const auto id = [&](const std::string& token) {
      const auto it = vocab.find(token);
      require(it != vocab.end(),
              "merge {} ('{}' + '{}'): '{}' is not in the vocabulary; the file is damaged", rank,
              left, right, token);
      return it->second;
    };
    const std::uint64_t pair = key(id(left), id(right));
    std::size_t i = slot(pair, shift_);
    while (table_[i].pair != pair && table_[i].pair != ~std::uint64_t{0})
      i = (i + 1) & (table_.size() - 1);
    table_[i] = {pair, static_cast<std::int32_t>(rank), id(left + right)};
  }
}

const Bpe::Merge* Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = key(left, right);
  std::size_t i = slot(pair, shift_);
  while (table_[i].pair != ~std::uint64_t{0}) {
    if (table_[i].pair == pair) return &table_[i];
    i = (i + 1) & (table_.size() - 1);
  }
  return nullptr;
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (!whole_.empty()) {
    if (const auto it = whole_.find(piece); it != whole_.end()) {
      out.push_back(it->second);
      return;
    }
  }
  if (piece.size() > kCachedPiece) return merge(piece, scratch, out);
  const auto it = scratch.seen.find(piece);
  if (it != scratch.seen.end()) {
    for (std::size_t i = 0; i < it->second.count; ++i) {
      const std::int32_t id = out[it->second.begin + i];  // a copy: push_back may move `out`
      out.push_back(id);
    }
    return;
  }
  const std::size_t begin = out.size();
  merge(piece, scratch, out);
  if (scratch.seen.size() < kCacheEntries)
    scratch.seen.emplace(piece, Scratch::Span{begin, out.size() - begin});
}

void Bpe::merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (const char c : piece) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    const auto n = static_cast<std::int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, n - 1, n + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  // The pair that starts at symbol i, if there is one and it merges.
  const auto pair_at = [&](std::size_t i) -> const Merge* {
    const Scratch::Symbol& left = symbols[i];
    return left.id < 0 || left.next < 0 ? nullptr : find(left.id, symbols[left.next].id);
  };
  const auto candidate = [&](std::size_t i) {
    const Merge* m = pair_at(i);
    if (m != nullptr) heap.push_back(static_cast<std::uint64_t>(m->rank) << 32 | i);
    return m != nullptr;
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) candidate(i);
  std::make_heap(heap.begin(), heap.end(), std::greater());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater());
    const std::size_t i = heap.back() & 0xFFFFFFFF;
    const Merge* m = pair_at(i);
    const bool stale = m == nullptr || static_cast<std::uint64_t>(m->rank) != heap.back() >> 32;
    heap.pop_back();
    if (stale) continue;  // one of the two has been merged since
    Scratch::Symbol& left = symbols[i];
    Scratch::Symbol& right = symbols[left.next];
    left.id = m->id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = static_cast<std::int32_t>(i);
    if (candidate(i)) std::push_heap(heap.begin(), heap.end(), std::greater());
    if (left.previous >= 0 && candidate(left.previous))
      std::push_heap(heap.begin(), heap.end(), std::greater());
  }
  for (std::int32_t i = 0; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace nibble
