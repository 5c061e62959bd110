// SmolLM2-135M-Instruct, the model ./run fetches: greedy answers kept word for word, and the public
// API on it. Skipped, saying so, where the model is not there.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "nibble/nibble.hpp"

namespace nibble {
namespace {

const char* const kModel = NIBBLE_REPO "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

class Golden : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel))
      GTEST_SKIP() << kModel << " is not there; ./run fetches it";
  }
};

TEST_F(Golden, GreedyAnswers) {
  LanguageModel model(kModel);
  for (const auto& c : nlohmann::json::parse(read_file(NIBBLE_TEST_DATA "/golden/smollm2.json"))) {
    const auto prompt = model.chat_prompt({{"user", c["prompt"].get<std::string>()}});
    std::string streamed;
    const Generated g = model.generate(prompt, {.max_tokens = 48}, [&](std::string_view s) {
      streamed += s;
      return true;
    });
    EXPECT_EQ(g.text, c["text"].get<std::string>());
    EXPECT_EQ(streamed, g.text);
    EXPECT_EQ(g.finish_reason, c["finish_reason"].get<std::string>());
  }
}

TEST_F(Golden, SamplingFollowsTheSeedAndCancelStops) {
  LanguageModel model(kModel, {.context = 512});
  const auto prompt =
      model.chat_prompt({{"system", "You tell stories."}, {"user", "Tell me one."}});
  const GenerateOptions o{
      .max_tokens = 24, .temperature = 0.9, .top_k = 50, .top_p = 0.95, .seed = 7};
  const Generated a = model.generate(prompt, o), b = model.generate(prompt, o);
  EXPECT_EQ(a.text, b.text);
  GenerateOptions other = o;
  other.seed = 8;
  EXPECT_NE(model.generate(prompt, other).text, a.text);
  EXPECT_EQ(model.generate(prompt, o, [](std::string_view) { return false; }).finish_reason,
            "cancelled");
  EXPECT_EQ(model.decode(model.encode("naïve café 你好")), "naïve café 你好");
  EXPECT_THROW(model.generate(std::vector<std::int32_t>(600, 1), o), std::runtime_error);
  EXPECT_THROW(model.generate({}, o), std::runtime_error);
}

}  // namespace
}  // namespace nibble
