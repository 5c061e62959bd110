// Whole models on the emulated CUDA kernels: the CPU's logits, bit for bit, for prompts in several
// cuts and for sequences in company.
#include "model/model.h"

#include <gtest/gtest.h>

#include <cstring>

#include "cuda/emulated.h"
#include "engine/oracle.h"
#include "model/sequence_state.h"

namespace nibble {
namespace {

// A model and its state on one backend, without the engine, which opens devices by name.
class Runner {
 public:
  Runner(const Checkpoint& checkpoint, std::unique_ptr<Backend> backend, Activations a, int slots)
      : backend_(std::move(backend)),
        model_(Model::load(checkpoint, *backend_, 64, {})),
        state_(*backend_,
               SequenceState::shape(checkpoint.config(), slots, 128,
                                    a == Activations::Fp32 ? KvType::F32 : KvType::I16, 1)),
        activations_(a),
        vocab_(static_cast<std::size_t>(checkpoint.config().vocab)) {}

  // The next ids of some slots in one step; logits of all rows.
  std::vector<float> step(const std::vector<std::pair<int, std::vector<std::int32_t>>>& of) {
    std::vector<std::int32_t> ids, all;
    std::vector<RowPlace> rows;
    for (const auto& [slot, next] : of)
      for (std::size_t i = 0; i < next.size(); ++i) {
        all.push_back(static_cast<std::int32_t>(ids.size()));
        ids.push_back(next[i]);
        rows.push_back(
            {slot, static_cast<std::int32_t>(state_.length(slot) + static_cast<std::int64_t>(i))});
      }
    std::vector<float> y(ids.size() * vocab_, NAN);
    if (logits_ == nullptr) logits_ = backend_->alloc(64 * vocab_ * sizeof(float));
    backend_->upload(logits_.get(), y.data(), y.size() * sizeof(float));
    model_->forward({.ids = ids,
                     .rows = rows,
                     .logits_of = all,
                     .logits = reinterpret_cast<float*>(logits_.get()),
                     .cache = state_.cache(),
                     .activations = activations_,
                     .delta = state_.delta()});
    backend_->download(y.data(), logits_.get(), y.size() * sizeof(float));
    for (const auto& [slot, next] : of)
      state_.advance(slot, static_cast<std::int64_t>(next.size()));
    return y;
  }
  std::vector<float> feed(int slot, const std::vector<std::int32_t>& ids, std::size_t cut) {
    std::vector<float> y;
    for (std::size_t at = 0; at < ids.size(); at += cut) {
      const auto end = std::min(at + cut, ids.size());
      const auto part = step({{slot,
                               {ids.begin() + static_cast<std::ptrdiff_t>(at),
                                ids.begin() + static_cast<std::ptrdiff_t>(end)}}});
      y.insert(y.end(), part.begin(), part.end());
    }
    return y;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  SequenceState state_;
  Backend::Buffer logits_;
  Activations activations_;
  std::size_t vocab_;
};

class EmulatedModel : public testing::TestWithParam<const char*> {};

TEST_P(EmulatedModel, HasTheCpusBits) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  const auto ids = oracle::random_ids(40, 1);
  for (const Activations a : {Activations::Int16, Activations::Fp32}) {
    Runner cpu(*checkpoint, make_backend("cpu", 1), a, 2);
    Runner cuda(*checkpoint, emulated_backend(5, 2), a, 2);
    const std::vector<float> want = cpu.feed(0, ids, 40);
    EXPECT_TRUE(oracle::same_bits(cuda.feed(0, ids, 40), want)) << "one step";
    if (a == Activations::Fp32) continue;
    EXPECT_TRUE(oracle::same_bits(cuda.feed(1, ids, 7), want)) << "in sevens";
  }
}

TEST_P(EmulatedModel, DecodesInCompany) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  Runner cpu(*checkpoint, make_backend("cpu", 1), Activations::Int16, 3);
  Runner cuda(*checkpoint, emulated_backend(0, 1), Activations::Int16, 3);
  std::vector<std::vector<std::int32_t>> ids;
  for (unsigned s = 0; s < 3; ++s) ids.push_back(oracle::random_ids(9, 10 + s));
  for (std::size_t i = 0; i < 9; ++i) {  // slot 2 from the fourth step on, slot 0 until the sixth
    std::vector<std::pair<int, std::vector<std::int32_t>>> of;
    for (int s = 2; s >= 0; --s)
      if ((s != 2 || i > 2) && (s != 0 || i < 6))
        of.push_back({s, {ids[static_cast<std::size_t>(s)][i]}});
    const std::vector<float> want = cpu.step(of);
    ASSERT_TRUE(oracle::same_bits(cuda.step(of), want)) << "step " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Oracles, EmulatedModel,
                         testing::Values("tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-heads",
                                         "tiny-qwen3_5-moe"),
                         [](const auto& i) {
                           std::string s = i.param;
                           std::replace(s.begin(), s.end(), '-', '_');
                           return s;
                         });

}  // namespace
}  // namespace nibble
