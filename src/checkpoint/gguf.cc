#include "checkpoint/gguf.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "checkpoint/names.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

constexpr std::uint64_t kMaxAlignment = 1 << 20;
constexpr int kMaxNesting = 4;
constexpr std::uint64_t kMaxKeys = 1 << 16, kMaxTensors = 1 << 20, kMaxList = 1 << 24;

// Bytes of one value of a fixed size; 0 for strings and arrays.
std::uint64_t kind_bytes(GgufKind k) {
  switch (k) {
    case GgufKind::U8:
    case GgufKind::I8:
    case GgufKind::Bool:
      return 1;
    case GgufKind::U16:
    case GgufKind::I16:
      return 2;
    case GgufKind::U32:
    case GgufKind::I32:
    case GgufKind::F32:
      return 4;
    case GgufKind::U64:
    case GgufKind::I64:
    case GgufKind::F64:
      return 8;
    case GgufKind::String:
    case GgufKind::Array:
      return 0;
  }
  return 0;
}

std::string_view text(std::span<const std::byte> s) {
  return {reinterpret_cast<const char*>(s.data()), s.size()};
}

// An integer of any stored width; nullopt when it is no integer, or beyond int64.
std::optional<std::int64_t> to_integer(GgufKind kind, const std::byte* p) {
  switch (kind) {
    case GgufKind::U8:
      return load<std::uint8_t>(p);
    case GgufKind::I8:
      return load<std::int8_t>(p);
    case GgufKind::U16:
      return load<std::uint16_t>(p);
    case GgufKind::I16:
      return load<std::int16_t>(p);
    case GgufKind::U32:
      return load<std::uint32_t>(p);
    case GgufKind::I32:
      return load<std::int32_t>(p);
    case GgufKind::I64:
      return load<std::int64_t>(p);
    case GgufKind::U64: {
      const auto v = load<std::uint64_t>(p);
      if (v > INT64_MAX) return std::nullopt;
      return static_cast<std::int64_t>(v);
    }
    default:
      return std::nullopt;
  }
}

}  // namespace

// A cursor over the file: everything read is checked against what is left.
class Gguf::Reader {
 public:
  Reader(std::span<const std::byte> file, const std::string& where) : file_(file), where_(where) {}

  std::span<const std::byte> take(std::uint64_t bytes, std::string_view what) {
    require(bytes <= file_.size() - at_,
            "{}: truncated: {} needs {} bytes at {}, {} are left; the file is damaged, fetch it "
            "again",
            where_, what, bytes, at_, file_.size() - at_);
    const auto part = file_.subspan(at_, static_cast<std::size_t>(bytes));
    at_ += part.size();
    return part;
  }
  template <class T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }
  std::string_view string(std::string_view what) {
    return text(take(number<std::uint64_t>(what), what));
  }
  GgufKind kind(std::string_view key) {
    const auto k = number<std::uint32_t>("a value's type");
    require(k <= static_cast<std::uint32_t>(GgufKind::F64),
            "{}: key {}: unknown value type {}; the file is damaged", where_, quote(key), k);
    return static_cast<GgufKind>(k);
  }
  // Steps over `count` values.
  void skip(GgufKind k, std::uint64_t count, std::string_view key, int depth) {
    if (const std::uint64_t size = kind_bytes(k)) {
      require(count <= (file_.size() - at_) / size,
              "{}: key {}: {} elements are more than the file holds; it is truncated or damaged",
              where_, quote(key), count);
      at_ += static_cast<std::size_t>(count * size);
      return;
    }
    require(k == GgufKind::String || depth < kMaxNesting,
            "{}: key {}: arrays nested deeper than {}", where_, quote(key), kMaxNesting);
    for (std::uint64_t i = 0; i < count; ++i) {  // each takes 8 bytes at least: ends with the file
      if (k == GgufKind::String) {
        string("a string");
      } else {
        const GgufKind inner = kind(key);
        skip(inner, number<std::uint64_t>("an array"), key, depth + 1);
      }
    }
  }
  std::span<const std::byte> since(std::size_t start) const {
    return file_.subspan(start, at_ - start);
  }
  std::size_t at() const { return at_; }
  std::uint64_t left() const { return file_.size() - at_; }
  std::span<const std::byte> file() const { return file_; }

 private:
  std::span<const std::byte> file_;
  const std::string& where_;
  std::size_t at_ = 0;
};

Gguf::Gguf(std::span<const std::byte> file, std::string where) : where_(std::move(where)) {
  Reader in(file, where_);
  require(text(in.take(4, "the header")) == "GGUF", "{}: not a GGUF file", where_);
  version_ = in.number<std::uint32_t>("the header");
  require(version_ != 0x02000000 && version_ != 0x03000000,
          "{}: big-endian GGUF is not supported; convert it for little-endian machines", where_);
  require(version_ == 2 || version_ == 3, "{}: GGUF version {} is not supported; 2 and 3 are",
          where_, version_);
  const auto tensors = in.number<std::uint64_t>("the header");
  const auto keys = in.number<std::uint64_t>("the header");
  // A key takes 13 bytes at least, a tensor 32.
  require(keys <= std::min(kMaxKeys, in.left() / 13) &&
              tensors <= std::min(kMaxTensors, in.left() / 32),
          "{}: {} keys and {} tensors do not fit the file; it is truncated or damaged", where_,
          keys, tensors);
  read_metadata(in, keys);
  read_tensors(in, tensors);
  check_overlap();
}

void Gguf::read_metadata(Reader& in, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto key = in.string("a key");
    require_name(key, where_, "key");
    Value v{in.kind(key), false, 1, {}};
    if (v.kind == GgufKind::Array) {
      v.array = true;
      v.kind = in.kind(key);
      v.count = in.number<std::uint64_t>("an array");
    }
    const std::size_t start = in.at();
    in.skip(v.kind, v.count, key, v.array ? 1 : 0);
    v.data = in.since(start);
    require(metadata_.emplace(key, v).second, "{}: the key {} is given twice", where_, quote(key));
  }
}

void Gguf::read_tensors(Reader& in, std::uint64_t count) {
  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufTensor t;
    t.name = in.string("a tensor name");
    require_name(t.name, where_, "tensor");
    const auto rank = in.number<std::uint32_t>("a tensor");
    require(rank >= 1 && rank <= 4, "{}: tensor {}: {} dimensions; 1 to 4 are possible", where_,
            quote(t.name), rank);
    t.rank = static_cast<int>(rank);
    for (std::uint32_t d = 0; d < rank; ++d) {  // stored innermost first
      const auto extent = in.number<std::uint64_t>("a tensor");
      require(extent >= 1 && extent <= INT64_MAX, "{}: tensor {}: a dimension of {}", where_,
              quote(t.name), extent);
      t.shape[rank - 1 - d] = static_cast<std::int64_t>(extent);
    }
    const auto type = in.number<std::uint32_t>("a tensor");
    t.type = find_block_type(type);
    require(t.type != nullptr, "{}: tensor {}: the type {} is not supported; these are: {}", where_,
            quote(t.name), block_type_name(type), supported_block_types());
    require(t.columns() % t.type->values == 0,
            "{}: tensor {}: rows of {} are no multiple of a {} block ({})", where_, quote(t.name),
            t.columns(), t.type->name, t.type->values);
    offsets.push_back(in.number<std::uint64_t>("a tensor"));
    require(by_name_.emplace(t.name, tensors_.size()).second, "{}: tensor {} is given twice",
            where_, quote(t.name));
    tensors_.push_back(t);
  }

  const auto alignment =
      static_cast<std::uint64_t>(integer("general.alignment", 1, kMaxAlignment).value_or(32));
  require((alignment & (alignment - 1)) == 0, "{}: an alignment of {} is no power of two", where_,
          alignment);
  const std::uint64_t start = (in.at() + alignment - 1) / alignment * alignment;
  const std::uint64_t size = in.file().size();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& t = tensors_[i];
    std::uint64_t bytes = static_cast<std::uint64_t>(t.columns() / t.type->values);
    bool fits = !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(t.type->bytes), &bytes);
    for (int d = 0; d + 1 < t.rank; ++d)
      fits = fits &&
             !__builtin_mul_overflow(
                 bytes, static_cast<std::uint64_t>(t.shape[static_cast<std::size_t>(d)]), &bytes);
    require(fits, "{}: tensor {}: its shape overflows; the file is damaged", where_, quote(t.name));
    require(offsets[i] % alignment == 0, "{}: tensor {}: its data is not aligned to {} bytes",
            where_, quote(t.name), alignment);
    require(start <= size && offsets[i] <= size - start && bytes <= size - start - offsets[i],
            "{}: tensor {}: its {} bytes at {} lie beyond the end of the file; it is truncated or "
            "damaged, fetch it again",
            where_, quote(t.name), bytes, offsets[i]);
    t.data = in.file().subspan(start + offsets[i], bytes);
  }
}

void Gguf::check_overlap() const {
  std::vector<const GgufTensor*> sorted;
  for (const GgufTensor& t : tensors_) sorted.push_back(&t);
  std::sort(sorted.begin(), sorted.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return a->data.data() < b->data.data();
  });
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    const auto& before = sorted[i - 1]->data;
    require(before.data() + before.size() <= sorted[i]->data.data(),
            "{}: the data of tensors {} and {} overlaps; the file is damaged", where_,
            quote(sorted[i - 1]->name), quote(sorted[i]->name));
  }
}

const GgufTensor* Gguf::tensor(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

const Gguf::Value* Gguf::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

std::optional<std::int64_t> Gguf::integer(std::string_view key, std::int64_t low,
                                          std::int64_t high) const {
  const Value* v = find(key);
  if (v == nullptr) return std::nullopt;
  const auto n = v->array ? std::nullopt : to_integer(v->kind, v->data.data());
  require(n && *n >= low && *n <= high, "{}: {} must be an integer from {} to {}{}", where_, key,
          low, high, n ? fmt::format(", got {}", *n) : "");
  return n;
}

std::optional<double> Gguf::number(std::string_view key) const {
  const Value* v = find(key);
  if (v == nullptr) return std::nullopt;
  std::optional<double> x;
  if (!v->array && v->kind == GgufKind::F32)
    x = load<float>(v->data.data());
  else if (!v->array && v->kind == GgufKind::F64)
    x = load<double>(v->data.data());
  else if (const auto n = v->array ? std::nullopt : to_integer(v->kind, v->data.data()))
    x = static_cast<double>(*n);
  require(x && std::isfinite(*x), "{}: {} must be a finite number", where_, key);
  return x;
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const Value* v = find(key);
  if (v == nullptr) return std::nullopt;
  require(!v->array && v->kind == GgufKind::Bool, "{}: {} must be a boolean", where_, key);
  return load<std::uint8_t>(v->data.data()) != 0;
}

std::optional<std::string_view> Gguf::string(std::string_view key) const {
  const Value* v = find(key);
  if (v == nullptr) return std::nullopt;
  require(!v->array && v->kind == GgufKind::String, "{}: {} must be a string", where_, key);
  return text(v->data.subspan(8));
}

const Gguf::Value* Gguf::find_list(std::string_view key) const {
  const Value* v = find(key);
  require(v == nullptr || (v->array && v->count <= kMaxList),
          "{}: {} must be a list of at most {} elements", where_, key, kMaxList);
  return v;
}

std::vector<std::string_view> Gguf::strings(std::string_view key) const {
  const Value* v = find_list(key);
  if (v == nullptr) return {};
  require(v->kind == GgufKind::String, "{}: {} must be a list of strings", where_, key);
  std::vector<std::string_view> list(static_cast<std::size_t>(v->count));
  Reader in(v->data, where_);
  for (auto& s : list) s = in.string("a string");
  return list;
}

std::vector<std::int64_t> Gguf::integers(std::string_view key) const {
  const Value* v = find_list(key);
  if (v == nullptr) return {};
  std::vector<std::int64_t> list;
  for (std::uint64_t i = 0; i < v->count; ++i) {
    const std::uint64_t size = kind_bytes(v->kind);
    const auto n = size == 0 ? std::nullopt : to_integer(v->kind, v->data.data() + i * size);
    require(n.has_value(), "{}: {} must be a list of integers", where_, key);
    list.push_back(*n);
  }
  return list;
}

}  // namespace nibble
