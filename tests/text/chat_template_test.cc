// What templates give, against what Python's jinja2 gives for the same (tests/data/templates,
// recorded by bench/peers/check_templates.py).
#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/file.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

const Json kMessages = Json::parse(R"([
  {"role": "system", "content": "You are Nibble."}, {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "And?"},
  {"role": "assistant", "content": "So."}, {"role": "user", "content": "?"}])");

std::string render(std::string_view source, const Json& extra = {}) {
  return ChatTemplate(source).render(kMessages, true, extra);
}

std::string error_of(std::string_view source, const Json& extra = {}) {
  try {
    return "no error but: " + render(source, extra);
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(ChatTemplate, SnippetsAsPythonRendersThem) {
  std::ifstream file(NIBBLE_TEST_DATA "/templates/snippets.jsonl");
  int count = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const Json c = Json::parse(line);
    const auto source = c.at("template").get<std::string>();
    const Json extra = c.value("extra", Json());
    SCOPED_TRACE(source);
    if (c.contains("error")) {
      EXPECT_THAT(error_of(source, extra), testing::StartsWith("chat template, line 1: "))
          << "jinja2: " << c.at("error");
    } else {
      try {
        EXPECT_EQ(render(source, extra), c.at("text").get<std::string>());
      } catch (const Error& e) {
        ADD_FAILURE() << e.what();
      }
    }
  }
  EXPECT_GE(count, 190);
}

}  // namespace
}  // namespace nibble
