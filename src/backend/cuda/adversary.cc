#include "backend/cuda/adversary.h"

#include <atomic>
#include <random>
#include <thread>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

// A queue that is closed with its block of code.
struct OwnQueue {
  Queue q = open_queue();
  ~OwnQueue() { close_queue(q); }
};

template <class T>
Block to_device(const Queue& q, std::span<const T> v, const char* what) {
  Block b(v.size_bytes(), what);
  copy_in(q, b.get(), v.data(), v.size_bytes());
  return b;
}

}  // namespace

PublishedCount count_published(const WeightSource& w, std::span<const float> residual,
                               std::span<const float> delta, int launches, bool in_place,
                               int schedule) {
  const WeightFormat& f = w.format();
  const auto k = static_cast<std::size_t>(f.k), n = static_cast<std::size_t>(f.n);
  require(f.type == WeightType::Int4 && f.k % 64 == 0 && residual.size() == k && delta.size() == k,
          "published form: expected INT4 weights, K a multiple of 64 and rows of K");
  WeightRows rows;
  w.read(0, f.n, rows);
  std::vector<std::uint8_t> pairs(n * k / 2);
  for (std::size_t i = 0; i < pairs.size(); ++i)
    pairs[i] = static_cast<std::uint8_t>(rows.codes[2 * i] | rows.codes[2 * i + 1] << 4);

  OwnQueue own;
  Queue& q = own.q;
  q.schedule = schedule;
  const Block codes = to_device<std::uint8_t>(q, pairs, "codes"),
              scales = to_device<float>(q, rows.scales, "scales"),
              from = to_device(q, residual, "residual"), add = to_device(q, delta, "delta"),
              memory(k * sizeof(float), "residual"), apart(k * sizeof(float), "residual_out"),
              y(n * sizeof(float), "y");
  const auto once = [&](bool place) {
    copy_within(q, memory.get(), from.get(), k * sizeof(float));
    launch_published(
        q, {codes.as<std::uint8_t>(), scales.as<float>(), memory.as<float>(), add.as<float>(),
            place ? memory.as<float>() : apart.as<float>(), y.as<float>(), static_cast<int>(f.n),
            static_cast<int>(f.k), f.group, 1e-6f});
    std::vector<float> got(n);
    copy_out(q, got.data(), y.get(), n * sizeof(float));
    return got;
  };
  const std::vector<float> want = once(false);
  PublishedCount count;
  for (; count.launches < launches; ++count.launches) {
    const std::vector<float> got = once(in_place);
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) wrong += got[i] != want[i];
    count.rows_wrong += wrong, count.corrupt += wrong > 0;
  }
  return count;
}

struct Crowd::Impl {
  OwnQueue own;
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> launches{0};
  std::thread thread;
};

Crowd::Crowd(std::uint64_t seed) : impl_(std::make_unique<Impl>()) {
  impl_->own.q.overlap = false;
  impl_->thread = std::thread([&i = *impl_, seed] {
    std::mt19937_64 random(seed);
    const Queue& q = i.own.q;
    const auto draw = [&](std::size_t low, std::size_t high) {
      return low + random() % (high - low + 1);
    };
    constexpr int kUnwaited = 8;  // so that it ends soon
    try {
      while (!i.stop) {
        launch_occupy(q, static_cast<int>(draw(1, 2 * static_cast<std::size_t>(q.multiprocessors))),
                      draw(0, q.shared_limit), static_cast<int>(draw(1500, 50000)));
        if (++i.launches % kUnwaited == 0) wait(q);
      }
      wait(q);
    } catch (const Error&) {  // of the device: those who wait for it are told, too
    }
  });
}
Crowd::~Crowd() {
  impl_->stop = true;
  impl_->thread.join();
}
std::int64_t Crowd::launches() const { return impl_->launches; }

}  // namespace nibble::NIBBLE_CUDA_NS
