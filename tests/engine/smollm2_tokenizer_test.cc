// The tokenizer of the real model that ./run fetches, against cases of the reference library.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

TEST(SmolLM2, IdsEqualThoseOfTheReferenceLibrary) {
  const std::filesystem::path model = NIBBLE_REPO "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(model)) GTEST_SKIP() << model << " is missing; ./run fetches it";
  const auto spec = Checkpoint::open(model)->tokenizer();
  ASSERT_TRUE(spec);
  const Tokenizer t(*spec);
  const auto cases =
      nlohmann::json::parse(read_file(NIBBLE_TEST_DATA "/tokenizer/smollm2_cases.json"));
  ASSERT_GT(cases.size(), 300u);
  for (const auto& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<std::int32_t>>();
    ASSERT_EQ(t.encode(text, true, true), ids) << text;
    ASSERT_EQ(t.encode(text, false, true), c.value("plain", ids)) << text;
  }
}

}  // namespace
}  // namespace nibble
