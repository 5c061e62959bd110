#include "verify/perturbed.h"

#include <chrono>
#include <cstddef>
#include <thread>
#include <type_traits>
#include <utility>

namespace nibble::verify {
namespace {

using cpu::Isa;
using cpu::Kernels;
using Clock = std::chrono::steady_clock;

std::atomic<Disturbance*> disturbance{nullptr};

// One entry of the table, hooked: Get::from(table) is the kernel.
template <Isa I, Stage S, class Get, class Fn = decltype(Get::from(std::declval<const Kernels&>()))>
struct Hooked;
template <Isa I, Stage S, class Get, class R, class... A>
struct Hooked<I, S, Get, R (*)(A...)> {
  static R call(A... a) {
    if (Disturbance* d = disturbance.load(std::memory_order_acquire)) d->before(S);
    return Get::from(cpu::kernels(I))(a...);
  }
};

template <std::size_t T, std::size_t A, std::size_t R>
struct Tile {
  static auto from(const Kernels& k) { return k.tile[T][A][R]; }
};
template <std::size_t T, std::size_t A>
struct Wide {
  static auto from(const Kernels& k) { return k.wide[T][A]; }
};
struct Norm {
  static auto from(const Kernels& k) { return k.add_rmsnorm; }
};
struct Add {
  static auto from(const Kernels& k) { return k.add; }
};
struct Prepare {
  static auto from(const Kernels& k) { return k.prepare; }
};

using Table = decltype(Kernels::tile);
constexpr std::size_t kTypes = std::extent_v<Table, 0>, kModes = std::extent_v<Table, 1>,
                      kSizes = std::extent_v<Table, 2>;

template <Isa I>
Kernels hooked() {
  Kernels k = cpu::kernels(I);
  [&]<std::size_t... At>(std::index_sequence<At...>) {
    ((k.tile[At / (kModes * kSizes)][At / kSizes % kModes][At % kSizes] =
          Hooked<I, Stage::Tile,
                 Tile<At / (kModes * kSizes), At / kSizes % kModes, At % kSizes>>::call),
     ...);
  }
  (std::make_index_sequence<kTypes * kModes * kSizes>());
  if (k.wide[0][0] != nullptr) [&]<std::size_t... At>(std::index_sequence<At...>) {
      ((k.wide[At / 2][At % 2] = Hooked<I, Stage::Tile, Wide<At / 2, At % 2>>::call), ...);
    }
  (std::make_index_sequence<6>());
  k.add_rmsnorm = Hooked<I, Stage::Norm, Norm>::call;
  k.add = Hooked<I, Stage::Residual, Add>::call;
  k.prepare = Hooked<I, Stage::Prepare, Prepare>::call;
  return k;
}

template <std::size_t... At>
const Kernels& hooked_table(Isa isa, std::index_sequence<At...>) {
  using Get = const Kernels& (*)();
  static constexpr Get tables[] = {+[]() -> const Kernels& {
    static const Kernels table = hooked<static_cast<Isa>(At)>();
    return table;
  }...};
  return tables[static_cast<std::size_t>(isa)]();
}

std::atomic<std::uint32_t> operations{0};

}  // namespace

const Kernels& perturbed_kernels(Isa isa) {
  return hooked_table(isa, std::make_index_sequence<cpu::kIsaCount>());
}

void set_disturbance(Disturbance* d) { disturbance.store(d, std::memory_order_release); }

void FirstThenOthers::begin() {
  open_.store(false), led_.store(false);
  operation_.store(operations.fetch_add(1) + 1, std::memory_order_release);
}

void FirstThenOthers::before(Stage stage) {
  thread_local std::uint32_t seen = 0;  // the operation this thread has passed the gate of
  const std::uint32_t now = operation_.load(std::memory_order_acquire);
  if (stage == Stage::Tile) open_.store(true, std::memory_order_release);
  if (stage != Stage::Norm || seen == now) return;
  seen = now;
  if (!led_.exchange(true)) return;
  const auto deadline = Clock::now() + std::chrono::milliseconds(20);
  while (!open_.load(std::memory_order_acquire) && Clock::now() < deadline)
    std::this_thread::yield();
}

void RandomDelays::before(Stage) {
  thread_local std::uint64_t state = 0;
  if (state == 0) state = (seed_ + threads_.fetch_add(1)) * 0x9e3779b97f4a7c15u | 1;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  const std::uint64_t dice = state >> 32;
  if (dice % 64 != 0) return;
  if (dice / 64 % 64 == 0)
    std::this_thread::sleep_for(std::chrono::microseconds(dice >> 16 & 63));
  else if (dice / 64 % 8 == 0)
    std::this_thread::yield();
  else
    for (const auto end = Clock::now() + std::chrono::nanoseconds(dice >> 12 & 4095);
         Clock::now() < end;) {
    }
}

}  // namespace nibble::verify
