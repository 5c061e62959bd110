// The trained models of models/, as a user gets them: they predict the text they were not trained
// on as well as their bf16 originals nearly do, and their likeliest answer is the same everywhere.
#include <gtest/gtest.h>

#include "base/file.h"
#include "engine/generate.h"
#include "engine/perplexity.h"

namespace nibble {
namespace {

struct Trained {
  const char* name;
  double perplexity[2];  // int16, int8; the first four windows
  const char* answer;
};

class TrainedModel : public testing::TestWithParam<Trained> {
 protected:
  const std::unique_ptr<Checkpoint> checkpoint_ =
      Checkpoint::open(std::filesystem::path(NIBBLE_REPO) / "models" / GetParam().name);
  const Tokenizer tokenizer_{*checkpoint_->tokenizer()};
};

TEST_P(TrainedModel, Perplexity) {
  const std::string text = read_file(std::filesystem::path(NIBBLE_TEST_DATA) / "kjv/val.txt");
  const auto ids = document_ids(text, tokenizer_, checkpoint_->generation());
  PerplexityOptions o;
  o.windows = 4, o.score_all = true;
  for (const Activations a : {Activations::Int16, Activations::Int8}) {
    Engine engine(*checkpoint_, {.activations = a, .threads = 2, .context = 512});
    EngineStepper stepper(engine);
    EXPECT_NEAR(perplexity(stepper, ids, o).perplexity,
                GetParam().perplexity[a == Activations::Int8], 1e-3)
        << activations_name(a);
  }
}

TEST_P(TrainedModel, LikeliestAnswer) {
  Engine engine(*checkpoint_, {.threads = 2, .context = 256, .slots = 2});
  EngineStepper stepper(engine);
  Scheduler scheduler(stepper, tokenizer_);
  const std::string prompt = "And the LORD spake unto Moses, saying,";
  const auto ask = [&] {
    Request r;
    r.prompt = tokenizer_.encode(prompt, false, true);
    r.sampling.temperature = 0;
    r.max_tokens = 24;
    scheduler.submit(std::move(r));
  };
  ask(), ask();  // in company
  int answers = 0;
  while (!scheduler.idle())
    for (const auto& e : scheduler.step()) {
      if (!e.done) continue;
      EXPECT_EQ(e.done->text, GetParam().answer);
      ++answers;
    }
  EXPECT_EQ(answers, 2);
}

// The bf16 originals have 23.8855 and 18.9350 on these windows.
INSTANTIATE_TEST_SUITE_P(
    Models, TrainedModel,
    testing::Values(
        Trained{"kjv-qwen3_5",
                {24.585460, 24.587968},
                " Speak unto the children of Israel, saying, This is the thing which the LORD hath "
                "commanded to be numbered, and"},
        Trained{
            "kjv-qwen3_5-moe",
            {19.412348, 19.401360},
            " Speak unto the children of Israel, saying, Speak unto the children of Israel, and "
            "say unto them, Thus"}),
    [](const auto& i) { return i.index == 0 ? "dense" : "moe"; });

}  // namespace
}  // namespace nibble
