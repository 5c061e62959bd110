// nibble inspect: what a checkpoint holds, without loading its weights.
#include <fmt/ranges.h>

#include <map>

#include "commands.h"
#include "common.h"
#include "console.h"

namespace nibble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelFlags model;
  bool json = false;
};

struct Total {
  std::int64_t tensors = 0;
  double elements = 0;
  std::uint64_t bytes = 0;
};

Json config_json(const ModelConfig& c) {
  Json j = {{"architecture", c.architecture},
            {"hidden", c.hidden},
            {"layers", c.layers},
            {"heads", c.heads},
            {"kv_heads", c.kv_heads},
            {"head_dim", c.head_dim},
            {"intermediate", c.intermediate},
            {"vocab", c.vocab},
            {"max_position", c.max_position},
            {"rms_eps", c.rms_eps},
            {"rope_theta", c.rope_theta},
            {"tied_embedding", c.tied_embedding},
            {"qkv_bias", c.qkv_bias},
            {"o_bias", c.o_bias},
            {"qk_norm", c.qk_norm}};
  if (c.hybrid()) {
    j["attention_layers"] = c.attention_layers();
    j["rotary"] = c.rotary_dims();
    j["delta_net"] = {{"key_heads", c.delta.key_heads},
                      {"value_heads", c.delta.value_heads},
                      {"key_dim", c.delta.key_dim},
                      {"value_dim", c.delta.value_dim},
                      {"conv_kernel", c.delta.conv_kernel}};
  }
  if (c.moe.experts > 0)
    j["experts"] = {{"count", c.moe.experts},
                    {"top_k", c.moe.top_k},
                    {"intermediate", c.moe.intermediate},
                    {"shared_intermediate", c.moe.shared_intermediate}};
  if (c.rope_scaling)
    j["rope_scaling"] = {{"type", "llama3"},
                         {"factor", c.rope_scaling->factor},
                         {"low_freq_factor", c.rope_scaling->low_freq_factor},
                         {"high_freq_factor", c.rope_scaling->high_freq_factor},
                         {"original_max_position", c.rope_scaling->original_max_position}};
  return j;
}

Json generation_json(const GenerationConfig& g) {
  Json j = {{"eos", g.eos}};
  if (g.bos >= 0) j["bos"] = g.bos;
  const auto put = [&](const char* name, const auto& value) {
    if (value) j[name] = *value;
  };
  put("temperature", g.temperature);
  put("top_k", g.top_k);
  put("top_p", g.top_p);
  put("min_p", g.min_p);
  put("repetition_penalty", g.repetition_penalty);
  return j;
}

Json describe(const Checkpoint& checkpoint, const std::string& path) {
  std::map<std::string, Total> totals;
  Total all;
  auto tensors = Json::array();
  for (const TensorInfo& t : checkpoint.tensors()) {
    double elements = 1;
    for (const std::int64_t n : t.shape) elements *= static_cast<double>(n);
    for (Total* total : {&totals[t.stored_type], &all}) {
      total->tensors += 1;
      total->elements += elements;
      total->bytes += t.bytes;
    }
    Json row = {{"name", t.name}, {"type", t.stored_type}, {"shape", t.shape}, {"bytes", t.bytes}};
    if (!t.note.empty()) row["note"] = t.note;
    tensors.push_back(std::move(row));
  }
  auto types = Json::object();
  for (const auto& [type, total] : totals)
    types[type] = {{"tensors", total.tensors}, {"bytes", total.bytes}};
  auto skipped = Json::array();
  for (const SkippedTensors& s : checkpoint.skipped())
    skipped.push_back({{"what", s.what},
                       {"tensors", s.tensors},
                       {"parameters", s.parameters},
                       {"bytes", s.bytes}});
  const auto spec = checkpoint.tokenizer();
  return {{"model", path},
          {"format", checkpoint.format()},
          {"config", config_json(checkpoint.config())},
          {"generation", generation_json(checkpoint.generation())},
          {"tokenizer", spec.has_value()},
          {"chat_template", checkpoint.chat_template().has_value()},
          {"parameters", static_cast<std::uint64_t>(all.elements)},
          {"bytes", all.bytes},
          {"types", types},
          {"skipped", skipped},
          {"tensors", tensors}};
}

// Tensors of the experts of a layer that are alike as one row: "...experts.*.up_proj.weight".
Json experts_together(const Json& tensors) {
  std::map<std::string, std::size_t> rows;  // name and type -> its row
  auto list = Json::array();
  for (Json t : tensors) {
    auto name = t["name"].get<std::string>();
    constexpr std::string_view kExperts = ".experts.";
    if (const auto at = name.find(kExperts); at != std::string::npos) {
      const auto first = at + kExperts.size();
      name.replace(first, name.find('.', first) - first, "*");
      const auto [row, fresh] = rows.try_emplace(name + t["type"].dump(), list.size());
      if (!fresh) {
        list[row->second]["bytes"] =
            list[row->second]["bytes"].get<std::uint64_t>() + t["bytes"].get<std::uint64_t>();
        continue;
      }
      t["name"] = name;
    }
    list.push_back(std::move(t));
  }
  return list;
}

void print_fields(std::string_view title, const Json& fields) {
  out("\n{}\n", title);
  for (const auto& [key, value] : fields.items())
    out("  {:<20} {}\n", key,
        printable(value.is_string() ? value.get<std::string>() : value.dump()));
}

void inspect(const Options& o) {
  const auto checkpoint = open_model(o.model);
  const Json all = describe(*checkpoint, o.model.path);
  if (o.json) return out_json(all);
  out("{}\n  {}, {:.1f} M parameters, {}, tokenizer: {}, chat template: {}\n",
      printable(o.model.path), checkpoint->format(), all["parameters"].get<double>() / 1e6,
      human_bytes(all["bytes"]), all["tokenizer"].get<bool>() ? "yes" : "no",
      all["chat_template"].get<bool>() ? "yes" : "no");
  print_fields("config", all["config"]);
  print_fields("generation", all["generation"]);
  out("\n{:<56} {:<14} {:<16} {:>10}\n", "tensor", "type", "shape", "size");
  for (const Json& t : experts_together(all["tensors"]))
    out("{:<56} {:<14} {:<16} {:>10}{}\n", printable(t["name"].get<std::string>()),
        printable(t["type"].get<std::string>()),
        fmt::format("{}", fmt::join(t["shape"].get<std::vector<std::int64_t>>(), " x ")),
        human_bytes(t["bytes"]),
        t.contains("note") ? "  " + printable(t["note"].get<std::string>()) : "");
  out("\n{:<16} {:>8} {:>12}\n", "type", "tensors", "size");
  for (const auto& [type, total] : all["types"].items())
    out("{:<16} {:>8} {:>12}\n", printable(type), total["tensors"].get<std::int64_t>(),
        human_bytes(total["bytes"]));
  for (const Json& s : all["skipped"])
    out("\n{} {} tensors are left out: {:.1f} M parameters, {}\n",
        s["tensors"].get<std::uint64_t>(), s["what"].get<std::string>(),
        s["parameters"].get<double>() / 1e6, human_bytes(s["bytes"]));
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* cmd = app.add_subcommand("inspect", "Show a model's configuration and tensors");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->add_flag("--json", o->json, "Print a JSON object");
  cmd->footer(
      "Reads the heads of the files only. Tensors go by their Hugging Face names.\n\n"
      "  nibble inspect model.gguf\n"
      "  nibble inspect folder --json | jq .types");
  cmd->callback([o] { inspect(*o); });
}

}  // namespace nibble::cli
