// Any bytes as tokenizer.json and any bytes as text: an Error or ids that spell what they should.
// Input: the file, a zero byte, the text.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using nibble::Detokenizer, nibble::Tokenizer;

void check(bool ok) {
  if (!ok) std::abort();
}

void run(std::string_view json, std::string_view text) {
  nibble::TokenizerSpec spec = nibble::tokenizer_spec_from_json(json, "fuzz");
  bool lossless = !spec.nfc && !spec.add_prefix_space;
  for (const auto& s : spec.splits) lossless &= s.isolated;
  for (const auto& a : spec.added) lossless &= !a.lstrip && !a.rstrip;
  const Tokenizer t(std::move(spec));
  for (const bool special : {false, true}) {
    const auto ids = t.encode(text, special, false);
    const std::string bytes = t.decode(ids, false);
    // A byte without token gives nothing, so less may come back, but never more.
    check(!lossless || bytes.size() <= text.size());
    check(bytes.size() != text.size() || !lossless || bytes == text);

    Detokenizer d(t, false);
    std::string streamed, whole;
    for (const auto id : ids) streamed += d.push(id);
    streamed += d.flush();
    nibble::append_lossy(whole, bytes, true);
    check(streamed == whole);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = std::min(input.find('\0'), input.size());
  try {
    run(input.substr(0, zero), input.substr(std::min(zero + 1, input.size())));
  } catch (const nibble::Error&) {
  }
  return 0;
}
