// What templates give, against what Python's jinja2 gives for the same (tests/data/templates,
// recorded by bench/peers/check_templates.py).
#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <vector>

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

std::vector<Json> cases(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<Json> out;
  for (std::string line; std::getline(file, line);) out.push_back(Json::parse(line));
  return out;
}

// The text or the failure that jinja2 gave.
void expect_same(const Json& recorded, std::string_view source, const Json& messages,
                 const Json& extra, bool prompt) {
  std::string text;
  try {
    text = ChatTemplate(source).render(messages, prompt, extra);
  } catch (const Error& e) {
    EXPECT_TRUE(recorded.contains("error")) << e.what();
    EXPECT_THAT(e.what(), testing::StartsWith("chat template, line "));
    return;
  }
  ASSERT_FALSE(recorded.contains("error")) << recorded.at("error") << ", here: " << text;
  EXPECT_EQ(text, recorded.at("text").get<std::string>());
}

TEST(ChatTemplate, SnippetsAsPythonRendersThem) {
  const auto all = cases(NIBBLE_TEST_DATA "/templates/snippets.jsonl");
  EXPECT_GE(all.size(), 190u);
  for (const Json& c : all) {
    const auto source = c.at("template").get<std::string>();
    SCOPED_TRACE(source);
    expect_same(c, source, kMessages, c.value("extra", Json()), true);
  }
}

TEST(ChatTemplate, ConversationsAsPythonRendersThem) {
  for (const std::string name : {"blocks", "inst", "parts_and_tools"}) {
    const std::filesystem::path file = NIBBLE_TEST_DATA "/templates/" + name;
    const std::string source = read_file(file.string() + ".jinja");
    const auto all = cases(file.string() + ".jsonl");
    EXPECT_GE(all.size(), 20u);
    for (const Json& c : all) {
      SCOPED_TRACE(name + ": " + c.at("messages").dump() + c.at("extra").dump());
      expect_same(c, source, c.at("messages"), c.at("extra"), c.at("prompt").get<bool>());
    }
  }
}

TEST(ChatTemplate, VariablesThatTransformersDefines) {
  EXPECT_EQ(render("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"),
            "TrueTrueTrue");
  EXPECT_EQ(render("{{ tools }}{{ bos_token }}", {{"tools", {1}}, {"bos_token", "<s>"}}), "[1]<s>");
  EXPECT_EQ(ChatTemplate("{{ add_generation_prompt }}").render(kMessages, false), "False");
}

TEST(ChatTemplate, BadArgumentsAreErrors) {
  EXPECT_THROW(ChatTemplate("x").render(Json::object(), true), Error);
  EXPECT_THROW(ChatTemplate("x").render(kMessages, true, Json::array()), Error);
  EXPECT_THROW(ChatTemplate("{% if %}"), Error);
}

TEST(ChatTemplate, DatesAreOfToday) {
  const std::time_t now = std::time(nullptr);
  char year[8];
  std::strftime(year, sizeof year, "%Y", std::localtime(&now));
  EXPECT_EQ(render("{{ strftime_now('%Y') }}"), year);
  EXPECT_THAT(error_of("{{ strftime_now('%c' * 200) }}"), testing::HasSubstr("256 bytes"));
}

}  // namespace
}  // namespace nibble
