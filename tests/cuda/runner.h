// A model on one backend without the engine, which opens devices by name.
#pragma once
#include <gtest/gtest.h>

#include <cmath>

#include "engine/oracle.h"
#include "model/model.h"
#include "model/sequence_state.h"

namespace nibble {

// A model and its state.
class Runner {
 public:
  Runner(const Checkpoint& checkpoint, std::unique_ptr<Backend> backend, Activations a, int slots,
         int rows = 64)
      : backend_(std::move(backend)),
        model_(Model::load(checkpoint, *backend_, rows, {})),
        state_(*backend_,
               SequenceState::shape(checkpoint.config(), slots, 256,
                                    a == Activations::Fp32 ? KvType::F32 : KvType::I16, 1)),
        activations_(a),
        rows_(static_cast<std::size_t>(rows)),
        vocab_(static_cast<std::size_t>(checkpoint.config().vocab)) {}

  // The next ids of some slots in one step; logits of all rows, whose largest are looked at too.
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
    if (logits_ == nullptr) logits_ = backend_->alloc(rows_ * vocab_ * sizeof(float));
    backend_->upload(logits_.get(), y.data(), y.size() * sizeof(float));
    constexpr auto kEach = static_cast<std::size_t>(kTopLogits);
    if (top_ == nullptr) top_ = backend_->alloc_host(rows_ * (2 * kEach + 1) * sizeof(float));
    TopLogitsArgs top;
    top.values = reinterpret_cast<float*>(top_.get());
    top.ids = reinterpret_cast<std::int32_t*>(top.values + ids.size() * kEach);
    top.bad = top.ids + ids.size() * kEach;
    model_->forward({.ids = ids,
                     .rows = rows,
                     .logits_of = all,
                     .logits = reinterpret_cast<float*>(logits_.get()),
                     .cache = state_.cache(),
                     .activations = activations_,
                     .delta = state_.delta(),
                     .top = top});
    backend_->finish();
    backend_->download(y.data(), logits_.get(), y.size() * sizeof(float));
    for (std::size_t r = 0; r < ids.size(); ++r) {
      std::vector<float> values(kEach);
      std::vector<std::int32_t> largest(kEach);
      EXPECT_EQ(top_logits_reference(y.data() + r * vocab_, static_cast<std::int64_t>(vocab_),
                                     values.data(), largest.data()),
                top.bad[r]);
      EXPECT_TRUE(std::equal(largest.begin(), largest.end(), top.ids + r * kEach) &&
                  std::equal(values.begin(), values.end(), top.values + r * kEach))
          << "row " << r;
    }
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
  Backend::Buffer logits_, top_;
  Activations activations_;
  std::size_t rows_, vocab_;
};

}  // namespace nibble
