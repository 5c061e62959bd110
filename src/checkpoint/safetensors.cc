#include "checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "checkpoint/names.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr std::size_t kMaxRank = 8;

std::optional<DType> find_dtype(std::string_view name) {
  constexpr DType all[] = {DType::F32, DType::F16, DType::BF16, DType::F64, DType::I8,
                           DType::I16, DType::I32, DType::I64,  DType::U8,  DType::Bool};
  for (const DType t : all)
    if (dtype_name(t) == name) return t;
  return std::nullopt;
}

// Reads the header as events: a hostile one costs no more memory than its well-formed entries.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view where) : where_(where) {}

  struct Entry {
    StoredTensor tensor;
    std::vector<std::uint64_t> shape, offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
  };
  std::vector<Entry> entries;

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(std::int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) { return unexpected("a fraction"); }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(std::uint64_t v) {
    if (list_ == nullptr) return unexpected("a number");
    const std::size_t limit = list_ == &entries.back().offsets ? 2 : kMaxRank;
    require(list_->size() < limit, "{}: tensor {}: more than {} numbers in \"{}\"", where_, name(),
            limit, field_);
    list_->push_back(v);
    return true;
  }

  bool string(std::string& s) {
    if (depth_ == 2 && metadata_) return true;
    if (depth_ != 2 || field_ != "dtype") return unexpected("a string");
    const auto dtype = find_dtype(s);
    require(dtype.has_value(),
            "{}: tensor {}: dtype {} is not supported (F32, F16, BF16, I32, ...)", where_, name(),
            quote(s));
    entries.back().tensor.dtype = *dtype;
    return true;
  }

  bool start_object(std::size_t) {
    if (depth_ > 1 || list_ != nullptr) return unexpected("an object");
    if (++depth_ == 2 && !metadata_) {
      entries.emplace_back();
      entries.back().tensor.name = field_;
    }
    return true;
  }

  bool end_object() {
    if (depth_-- == 2 && !metadata_) {
      const Entry& e = entries.back();
      require(e.has_dtype && e.has_shape && e.has_offsets && e.offsets.size() == 2,
              "{}: tensor {}: needs \"dtype\", \"shape\" and two \"data_offsets\"", where_, name());
    }
    return true;
  }

  bool key(std::string& s) {
    if (depth_ == 1) {
      require(names_.insert(s).second, "{}: tensor {} is given twice", where_, quote(s));
      metadata_ = s == "__metadata__";
      if (!metadata_) require_name(s, where_, "tensor");
    } else if (!metadata_) {
      Entry& e = entries.back();
      bool* seen = s == "dtype"          ? &e.has_dtype
                   : s == "shape"        ? &e.has_shape
                   : s == "data_offsets" ? &e.has_offsets
                                         : nullptr;
      require(seen != nullptr && !*seen, "{}: tensor {}: the field {} is unknown or given twice",
              where_, name(), quote(s));
      *seen = true;
    }
    field_ = s;
    return true;
  }

  bool start_array(std::size_t) {
    if (depth_ != 2 || metadata_ || list_ != nullptr || field_ == "dtype")
      return unexpected("an array");
    list_ = field_ == "shape" ? &entries.back().shape : &entries.back().offsets;
    return true;
  }
  bool end_array() {
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) {
    fail("{}: the header is not valid JSON at byte {}; the file is damaged", where_, at + 8);
  }

 private:
  std::string name() const { return quote(entries.back().tensor.name); }
  bool unexpected(std::string_view what) const {
    fail("{}: unexpected {} in the header near {}; the file is damaged", where_, what,
         quote(field_));
  }

  std::string_view where_;
  int depth_ = 0;
  bool metadata_ = false;
  std::string field_;  // last key
  std::vector<std::uint64_t>* list_ = nullptr;
  std::unordered_set<std::string> names_;
};

// Shape and offsets of one entry against `data`, the bytes after the header.
StoredTensor place(HeaderReader::Entry& e, std::span<const std::byte> data,
                   std::string_view where) {
  StoredTensor& t = e.tensor;
  std::uint64_t bytes = dtype_size(t.dtype);
  for (const std::uint64_t d : e.shape) {
    require(d <= INT64_MAX && !__builtin_mul_overflow(bytes, d, &bytes),
            "{}: tensor {}: its shape overflows; the file is damaged", where, quote(t.name));
    t.shape.push_back(static_cast<std::int64_t>(d));
  }
  const std::uint64_t begin = e.offsets[0], end = e.offsets[1];
  require(begin <= end && end <= data.size(),
          "{}: tensor {}: its data at {}..{} lies beyond the end of the file ({} bytes of data); "
          "the file is truncated or damaged, fetch it again",
          where, quote(t.name), begin, end, data.size());
  require(end - begin == bytes, "{}: tensor {}: {} bytes stored, but its shape needs {}", where,
          quote(t.name), end - begin, bytes);
  t.data = data.subspan(begin, bytes);
  return std::move(t);
}

}  // namespace

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file,
                                            std::string_view where) {
  require(file.size() >= 8, "{}: {} bytes are too few for a safetensors file", where, file.size());
  const auto length = load<std::uint64_t>(file.data());
  require(length <= kMaxHeader, "{}: a header of {} bytes; this is no safetensors file", where,
          length);
  require(length <= file.size() - 8,
          "{}: truncated: its header has {} bytes, the file {}; fetch it again", where, length,
          file.size());
  const auto* text = reinterpret_cast<const char*>(file.data()) + 8;
  require(length > 0 && text[0] == '{', "{}: no header; this is no safetensors file", where);
  HeaderReader reader(where);
  nlohmann::json::sax_parse(text, text + length, &reader);

  const auto data = file.subspan(8 + length);
  std::vector<StoredTensor> tensors;
  tensors.reserve(reader.entries.size());
  for (auto& e : reader.entries) tensors.push_back(place(e, data, where));
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
  });
  const std::byte* at = data.data();
  for (const StoredTensor& t : tensors) {
    require(t.data.data() == at, "{}: tensor {}: its data {}; the file is damaged", where,
            quote(t.name), t.data.data() < at ? "overlaps another's" : "leaves a gap before it");
    at += t.data.size();
  }
  require(at == data.data() + data.size(),
          "{}: {} bytes after the last tensor; the file is damaged", where,
          data.data() + data.size() - at);
  return tensors;
}

}  // namespace nibble
