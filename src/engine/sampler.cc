#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/top_logits.h"

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::uint64_t mix(std::uint64_t z) {  // splitmix64's finaliser
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// exp(x) for x <= 0 within 2 ulp, 0 below -700. libm's differs between machines; this does not.
double exp_fixed(double x) {
  if (x < -700) return 0;
  constexpr double kInverse[] = {1,
                                 1.0,
                                 1.0 / 2,
                                 1.0 / 6,
                                 1.0 / 24,
                                 1.0 / 120,
                                 1.0 / 720,
                                 1.0 / 5040,
                                 1.0 / 40320,
                                 1.0 / 362880,
                                 1.0 / 3628800,
                                 1.0 / 39916800,
                                 1.0 / 479001600,
                                 1.0 / 6227020800};
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;  // ln 2, two parts
  double p = kInverse[13];
  for (int i = 12; i >= 0; --i) p = p * r + kInverse[i];
  return p * std::bit_cast<double>(static_cast<std::uint64_t>(static_cast<std::int64_t>(k) + 1023)
                                   << 52);
}

// A total order, so that selecting and sorting have one result.
constexpr auto kBefore = [](const auto& a, const auto& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
};

}  // namespace

void check(const SamplingParams& p) {
  const auto in = [](double x, double low, double high) { return x >= low && x <= high; };
  constexpr double kMax = 1e6;
  if (!in(p.temperature, 0, kMax))
    fail_usage("temperature is {}; it must be 0 or more", p.temperature);
  if (p.top_k < 0) fail_usage("top_k is {}; it must be 0 (off) or more", p.top_k);
  if (!in(p.top_p, 0, 1)) fail_usage("top_p is {}; it must be 0 to 1", p.top_p);
  if (!in(p.min_p, 0, 1)) fail_usage("min_p is {}; it must be 0 to 1", p.min_p);
  if (!in(p.repetition_penalty, 1e-3, 1e3))
    fail_usage("the repetition penalty is {}; it must be 0.001 to 1000 (1: off)",
               p.repetition_penalty);
  if (!in(p.presence_penalty, -kMax, kMax))
    fail_usage("the presence penalty is {}; it must be a plain number (0: off)",
               p.presence_penalty);
}

double uniform(std::uint64_t seed, std::uint64_t i) {
  const std::uint64_t bits = mix(mix(seed) + (i + 1) * 0x9e3779b97f4a7c15u);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplingParams& params, std::int64_t vocab,
                 std::span<const std::int32_t> banned)
    : params_(params), banned_(banned.begin(), banned.end()), seen_(vocab, 0) {
  check(params_);
  std::sort(banned_.begin(), banned_.end());
}

void Sampler::accept_prompt(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids) {
    if (seen_[id] != 0) continue;
    seen_[id] = 1;
    seen_ids_.push_back(id);
  }
}

bool Sampler::penalises() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0;
}

// Of an id that was seen.
float Sampler::penalised(float x, std::int32_t id) const {
  const auto repetition = static_cast<float>(params_.repetition_penalty);
  const auto presence = static_cast<float>(params_.presence_penalty);
  x = x < 0 ? x * repetition : x / repetition;
  return seen_[id] == 2 ? x - presence : x;
}

std::int64_t Sampler::wanted() const {
  if (params_.temperature == 0) return 1;
  return params_.top_k < static_cast<std::int64_t>(seen_.size()) ? params_.top_k : 0;
}

bool Sampler::takes_top() const {
  return wanted() > 0 && wanted() <= kTopLogits && params_.repetition_penalty >= 1 &&
         params_.presence_penalty >= 0;
}

void Sampler::accept(std::int32_t id) {
  if (seen_[id] == 0) seen_ids_.push_back(id);
  seen_[id] = 2;
}

// Penalties only lower a logit here, so nothing that is not among the largest comes before the last
// of them: what is first after the penalties is the first of all, as far as that last one.
std::optional<std::int32_t> Sampler::sample(const TopLogits& top) {
  if (!takes_top() || top.bad >= 0) return {};
  const std::size_t count = std::find(top.ids.begin(), top.ids.end(), -1) - top.ids.begin();
  candidates_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t id = top.ids[i];
    if (std::binary_search(banned_.begin(), banned_.end(), id)) continue;
    const float x = penalises() && seen_[id] != 0 ? penalised(top.values[i], id) : top.values[i];
    candidates_.push_back({x, id, 0});
  }
  const auto k = static_cast<std::size_t>(wanted());
  if (candidates_.size() < k) return {};
  std::sort(candidates_.begin(), candidates_.end(), kBefore);
  candidates_.resize(k);
  const Candidate &least = candidates_.back(), last{top.values[count - 1], top.ids[count - 1], 0};
  const bool all = count < top.ids.size();  // of the row
  if ((!all && kBefore(last, least)) || !std::isfinite(least.logit)) return {};
  const std::int32_t id = params_.temperature == 0 ? least.id : draw(candidates_.front().logit);
  accept(id);
  return id;
}

std::int32_t Sampler::sample(std::span<const float> logits) {
  require(logits.size() == seen_.size(), "[sample] expected {} logits, got {}", seen_.size(),
          logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (!(logits[i] < kInf))
      fail(
          "the logit of token {} is {}: the model overflows or its weights are damaged; "
          "--check-finite names the operation",
          i, logits[i]);
  logits_.assign(logits.begin(), logits.end());
  if (penalises())
    for (const std::int32_t id : seen_ids_) logits_[id] = penalised(logits_[id], id);
  for (const std::int32_t id : banned_) logits_[id] = -kInf;
  const auto best = std::max_element(logits_.begin(), logits_.end());  // the first of equals
  require(best != logits_.end() && std::isfinite(*best),
          "no token can be sampled: every logit is "
          "masked or infinite");
  candidates_.clear();
  std::int32_t id = static_cast<std::int32_t>(best - logits_.begin());
  if (params_.temperature > 0) {
    if (wanted() > 0) {
      keep_top_k();
    } else {
      for (std::size_t i = 0; i < logits_.size(); ++i)
        if (logits_[i] > -kInf)
          candidates_.push_back({logits_[i], static_cast<std::int32_t>(i), 0});
    }
    id = draw(*best);
  }
  accept(id);
  return id;
}

// Leaves the top_k largest, sorted. Collects up to 2k above a rising threshold, so that every
// logit costs one comparison and no order of logits costs more than O(vocab).
void Sampler::keep_top_k() {
  const auto k = static_cast<std::size_t>(params_.top_k);
  float threshold = -kInf;
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    if (!(logits_[i] > threshold)) continue;  // an equal one has a larger id
    candidates_.push_back({logits_[i], static_cast<std::int32_t>(i), 0});
    if (candidates_.size() < 2 * k) continue;
    std::nth_element(candidates_.begin(), candidates_.begin() + k - 1, candidates_.end(), kBefore);
    candidates_.resize(k);
    threshold = candidates_[k - 1].logit;
  }
  std::sort(candidates_.begin(), candidates_.end(), kBefore);
  candidates_.resize(std::min(k, candidates_.size()));
}

// Leaves the fewest candidates, largest first, that hold top_p of the weight. Sorts blocks that
// grow, since a peaked distribution needs few.
void Sampler::keep_top_p() {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double goal = params_.top_p * total;
  const std::size_t n = candidates_.size();
  std::size_t kept = 0;
  double mass = 0;
  for (std::size_t begin = 0, block = 256; begin < n && (kept == 0 || mass < goal); block *= 4) {
    const std::size_t end = std::min(n, begin + block);
    const auto at = [&](std::size_t i) { return candidates_.begin() + static_cast<long>(i); };
    if (end < n) std::nth_element(at(begin), at(end), at(n), kBefore);
    std::sort(at(begin), at(end), kBefore);
    for (; kept < end && (kept == 0 || mass < goal); ++kept) mass += candidates_[kept].weight;
    begin = end;
  }
  candidates_.resize(kept);
}

std::int32_t Sampler::draw(float best) {
  for (Candidate& c : candidates_)
    c.weight = exp_fixed((double{c.logit} - best) / params_.temperature);
  if (params_.top_p < 1) keep_top_p();
  if (params_.min_p > 0)
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < params_.min_p; });

  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double target = uniform(params_.seed, draws_++) * total;
  double sum = 0;
  for (const Candidate& c : candidates_)
    if ((sum += c.weight) > target) return c.id;
  // Unreachable but for rounding of u * total up to total: the last one with weight.
  return std::find_if(candidates_.rbegin(), candidates_.rend(),
                      [](const Candidate& c) { return c.weight > 0; })
      ->id;
}

}  // namespace nibble
