#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/failure.h"

namespace nibble::NIBBLE_CUDA_NS {

void device_failure(const std::string& text) { throw Error(text); }

Block::Block(std::size_t bytes, const char* what) : size_(bytes) {
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

CudaBackend::CudaBackend(int threads, int blocks, int schedule) : q_(open_queue()), pool_(threads) {
  q_.blocks = blocks, q_.schedule = schedule;
}
CudaBackend::~CudaBackend() {
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
  Block b(bytes, "a buffer");
  auto* p = b.as<std::byte>();
  return Buffer(p, [keep = std::move(b)](std::byte*) {});
}
bool CudaBackend::is_host() const { return q_.stream == nullptr; }  // the emulator has no stream
void CudaBackend::upload(void* device, const void* host, std::size_t bytes) {
  copy_in(q_, device, host, bytes);
}
void CudaBackend::download(void* host, const void* device, std::size_t bytes) {
  copy_out(q_, host, device, bytes);
}
std::unique_ptr<Weight> CudaBackend::pack(const WeightSource& source, int pieces,
                                          std::int64_t stack) {
  return std::make_unique<CudaWeight>(source, pieces, stack, q_, pool_);
}

void* CudaBackend::scratch_bytes(const char* name, std::size_t bytes) {
  Block& b = scratch_.try_emplace(name).first->second;
  if (b.size() < bytes) {
    wait(q_);  // nobody uses the old one any more
    b = {};
    b = Block(bytes, name);
  }
  return b.get();
}

void CudaBackend::gather(const float* src, const std::int32_t* rows, std::int64_t m,
                         std::int64_t width, float* dst) {
  launch_gather(q_, src, on_device("gathered rows", rows, m), static_cast<int>(m), width, dst);
}

void CudaBackend::embedding(const EmbeddingArgs& a) {
  check(a);
  launch_embedding(q_, static_cast<const CudaWeight&>(*a.w).matrix(), on_device("ids", a.ids, a.m),
                   static_cast<int>(a.m), a.h);
}

}  // namespace nibble::NIBBLE_CUDA_NS
