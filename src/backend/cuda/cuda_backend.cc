#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "backend/cuda/failure.h"

namespace nibble::NIBBLE_CUDA_NS {

void device_failure(const std::string& text) { throw Error(text); }

Block::Block(std::size_t bytes, const char* what, Arena* arena) : size_(bytes) {
  if (arena != nullptr) p_ = arena->cut(bytes);
  if (p_ != nullptr) return;
  void* p = allocate(bytes);
  if (p == nullptr) {
    const Memory m = device_memory();
    const auto mb = [](std::size_t n) { return static_cast<double>(n) / 1e6; };
    fail(
        "not enough device memory for {}: {:.1f} MB needed, {:.1f} of {:.1f} MB available; a "
        "shorter --context, fewer slots or a smaller model would fit",
        what, mb(bytes), mb(m.free), mb(m.total));
  }
  p_ = std::shared_ptr<void>(p, [](void* q) { release(q); });
}

void Arena::reserve(std::size_t bytes) {
  p_.reset(), size_ = used_ = 0;
  void* p = allocate(bytes);
  if (p == nullptr) return;
  p_ = std::shared_ptr<void>(p, [](void* q) { release(q); }), size_ = bytes;
}
std::shared_ptr<void> Arena::cut(std::size_t bytes) {
  constexpr std::size_t kAlign = 512;  // as of an allocation by itself
  if (bytes > left()) return nullptr;
  std::shared_ptr<void> p(p_, static_cast<char*>(p_.get()) + used_);
  used_ = std::min(size_, used_ + (bytes + kAlign - 1) / kAlign * kAlign);
  return p;
}

CudaBackend::CudaBackend(int threads, int blocks, int schedule, bool small, bool measures)
    : q_(open_queue()), pool_(threads), measures_(measures) {
  if (small)
    q_.shared_limit = 99 << 10, q_.shared_total = 100 << 10, q_.clusters = q_.warpgroups = false;
  q_.blocks = blocks, q_.schedule = schedule;
  post_ = alloc_host(kPostBytes), inbox_ = alloc_host(kInboxBytes);
  arrived_ = {(1 + kMaxRuns) * sizeof(int), "counts of blocks"};
  clear(q_, arrived_.get(), arrived_.size());
  turns_ = {std::size_t{kTurns} * kMaxSharers * (kMaxRows / 2) * 2 * sizeof(std::uint64_t),
            "counts of shared rows"};
  clear(q_, turns_.get(), turns_.size());
}
CudaBackend::~CudaBackend() {
  graphs_.clear();
  scratch_.clear();
  close_queue(q_);
}

std::string CudaBackend::describe() const {
  std::string s = "cuda " + device_name() + fmt::format(", {} multiprocessors", q_.multiprocessors);
  if (q_.blocks > 0) s += fmt::format(", {} blocks", q_.blocks);
  if (q_.schedule > 0) s += fmt::format(", schedule {}", q_.schedule);
  return s;
}

Backend::Buffer CudaBackend::alloc(std::size_t bytes) {
  Block b(bytes, "a buffer", &arena_);
  auto* p = b.as<std::byte>();
  return Buffer(p, [keep = std::move(b)](std::byte*) {});
}
// And for what tiles and alignment add.
void CudaBackend::reserve(std::size_t bytes) {
  arena_.reserve(bytes + bytes / 1024 + (std::size_t{1} << 20));
}
Backend::Buffer CudaBackend::alloc_host(std::size_t bytes) {
  return Buffer(static_cast<std::byte*>(allocate_pinned(bytes)),
                [](std::byte* p) { release_pinned(p); });
}
bool CudaBackend::is_host() const { return q_.stream == nullptr; }  // the emulator has no stream
void CudaBackend::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes == 0) return;
  if (bytes > kPostBytes / 4) return copy_in(q_, device, host, bytes);
  if (posted_ + bytes > kPostBytes) finish();
  std::memcpy(post_.get() + posted_, host, bytes);
  copy_in_later(q_, device, post_.get() + posted_, bytes);
  posted_ += (bytes + 15) / 16 * 16;
}
void CudaBackend::download(void* host, const void* device, std::size_t bytes) {
  if (bytes == 0) return;
  copy_out(q_, host, device, bytes);
  posted_ = 0, inbox_busy_ = false;
}
void CudaBackend::finish() {
  wait(q_);
  posted_ = 0, inbox_busy_ = false;
}
std::uint64_t CudaBackend::scratch_memory() const {
  std::uint64_t sum = arena_.left() + staging_.size();
  for (const auto& [name, block] : scratch_) sum += block.size();
  return sum;
}
// The median of nine passes over what no cache holds.
double CudaBackend::read_bandwidth() {
  if (is_host()) return 0;
  using Clock = std::chrono::steady_clock;
  const std::size_t size =
      std::min<std::size_t>(std::size_t{2} << 30, device_memory().free / 2) / 4096 * 4096;
  const Block block(size, "measuring the read bandwidth");
  constexpr int kPasses = 9, kLaunches = 4;
  std::vector<double> rates;
  for (int i = 0; i <= kPasses; ++i) {  // the first warms up
    const auto begin = Clock::now();
    for (int j = 0; j < kLaunches; ++j)
      launch_read(q_, block.get(), size, scratch<int>("sum of a read", 1));
    wait(q_);
    const std::chrono::duration<double> time = Clock::now() - begin;
    if (i > 0) rates.push_back(kLaunches * static_cast<double>(size) / time.count());
  }
  std::sort(rates.begin(), rates.end());
  return rates[kPasses / 2];
}
std::unique_ptr<Weight> CudaBackend::pack(const WeightSource& source, int pieces,
                                          std::int64_t stack) {
  return std::make_unique<CudaWeight>(source, pieces, stack, q_, pool_, arena_, staging_);
}

void* CudaBackend::scratch_bytes(const char* name, std::size_t bytes) {
  Block& b = scratch_.try_emplace(name).first->second;
  if (b.size() < bytes) {
    require(recording_.empty(), "cuda: scratch memory '{}' grows while a graph is recorded", name);
    wait(q_);         // nobody uses the old one any more
    graphs_.clear();  // but graphs know its address
    b = {};
    b = Block(bytes, name);
  }
  return b.get();
}

const void* CudaBackend::host_bytes(const char* name, const void* host, std::size_t bytes) {
  for (const Staged& s : staged_)
    if (s.host == host && bytes <= s.bytes) return s.device;
  require(recording_.empty(), "cuda: '{}' are not those of the step whose graph is recorded", name);
  void* p = scratch_bytes(name, bytes);
  upload(p, host, bytes);
  return p;
}

// The step's host arrays go to the device, to where the last step's were. A key that comes for the
// second time (all scratch memory is there then) is recorded, later ones replayed; the copy is part
// of the recording.
bool CudaBackend::begin_step(const Step& step, std::span<const std::uint64_t> key) {
  staged_.clear(), recording_.clear();
  std::size_t all = 0;
  const auto stage = [&](const auto& values) {
    if (values.empty()) return;
    staged_.push_back({values.data(), values.size_bytes(), all, nullptr});
    all += (values.size_bytes() + 15) / 16 * 16;
  };
  stage(step.ids), stage(step.rows), stage(step.picked), stage(step.cos_sin);
  auto* const device = scratch<std::byte>("step", std::max(kInboxBytes, all));
  for (Staged& s : staged_) s.device = device + s.at;
  const bool keeps = !key.empty() && all <= kInboxBytes;
  const auto known = keeps ? graphs_.find(key) : graphs_.end();
  if (known == graphs_.end()) {
    for (const Staged& s : staged_) upload(device + s.at, s.host, s.bytes);
    if (keeps) graphs_.emplace(Key(key.begin(), key.end()), nullptr);
    return false;
  }
  if (inbox_busy_) finish();
  for (const Staged& s : staged_) std::memcpy(inbox_.get() + s.at, s.host, s.bytes);
  if (known->second != nullptr) {
    staged_.clear();
    replay(q_, *known->second);
    return inbox_busy_ = true;
  }
  recording_ = known->first;
  begin_recording(q_);
  try {
    if (all > 0) launch_take(q_, device, inbox_.get(), all);
  } catch (...) {
    end_step(true);
    throw;
  }
  return false;
}

void CudaBackend::end_step(bool failed) {
  staged_.clear();
  if (recording_.empty()) return;
  const Key k = std::exchange(recording_, {});
  const std::shared_ptr<Graph> g(end_recording(q_), destroy);
  if (failed) return;
  graphs_[k] = g;
  replay(q_, *g);
  inbox_busy_ = true;
}

void CudaBackend::gather(const float* src, const std::int32_t* rows, std::int64_t m,
                         std::int64_t width, float* dst) {
  launch_gather(q_, src, on_device("gathered rows", rows, m), static_cast<int>(m), width, dst);
}

void CudaBackend::top_logits(const TopLogitsArgs& a) {
  check(a);
  static_assert(kTopLogitsKept == kTopLogits);
  launch_top_logits(q_, a.logits, static_cast<int>(a.m), static_cast<int>(a.n),
                    scratch<std::byte>("top logits", top_logits_scratch(a.m, a.n)), a.values, a.ids,
                    a.bad);
}

void CudaBackend::embedding(const EmbeddingArgs& a) {
  check(a);
  launch_embedding(q_, static_cast<const CudaWeight&>(*a.w).matrix(), on_device("ids", a.ids, a.m),
                   static_cast<int>(a.m), a.h);
}

}  // namespace nibble::NIBBLE_CUDA_NS
