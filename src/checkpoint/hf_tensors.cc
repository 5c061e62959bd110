#include "checkpoint/hf_tensors.h"

#include "base/error.h"
#include "checkpoint/names.h"

namespace nibble {

std::string_view skipped_part(std::string_view name) {
  for (const std::string_view prefix : {"model.visual.", "visual."})
    if (name.starts_with(prefix)) return "vision";
  return name.starts_with("mtp.") || name.starts_with("model.mtp.") ? "multi-token prediction" : "";
}

std::vector<std::pair<std::string, Part>> split_experts(const std::string& name, const Part& stack,
                                                        std::int64_t experts) {
  const bool both = name.ends_with(".mlp.experts.gate_up_proj");
  if (!both && !name.ends_with(".mlp.experts.down_proj")) return {};
  const StoredTensor& t = stack.tensor;
  require(t.shape.size() == 3 && t.shape[0] == experts && (!both || t.shape[1] % 2 == 0),
          "{}: tensor {}: expected {} experts, rows{} and columns, got [{}]", stack.file->name(),
          quote(t.name), experts, both ? " of gate and up" : "", fmt::join(t.shape, ", "));
  const std::string base = name.substr(0, name.rfind('.'));
  const std::size_t halves = both ? 2 : 1,
                    bytes = t.data.size() / static_cast<std::size_t>(t.shape[0]) / halves;
  std::vector<std::pair<std::string, Part>> list;
  std::size_t at = 0;
  for (std::int64_t e = 0; e < t.shape[0]; ++e)
    for (std::size_t h = 0; h < halves; ++h, at += bytes) {
      const char* part = !both ? "down_proj" : h == 0 ? "gate_proj" : "up_proj";
      StoredTensor one{t.name,
                       t.dtype,
                       {t.shape[1] / static_cast<std::int64_t>(halves), t.shape[2]},
                       t.data.subspan(at, bytes)};
      list.emplace_back(fmt::format("{}.{}.{}.weight", base, e, part),
                        Part{std::move(one), stack.file});
    }
  return list;
}

}  // namespace nibble
