// A backend: memory, packed weights and the operations of ops/ on one device. Model code is
// written once against this. Pointers in argument structs are memory of this backend (alloc()),
// unless an operation's header says "on the host"; operations run in the order they are called.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/add_rmsnorm_linear_conv.h"
#include "ops/attention.h"
#include "ops/delta_rule_linear.h"
#include "ops/embedding.h"
#include "ops/experts.h"
#include "ops/router.h"
#include "ops/top_logits.h"

namespace nibble {

class Backend {
 public:
  // Device memory, freed with its deleter. Contents undefined. Throws Error when there is none.
  using Buffer = std::unique_ptr<std::byte[], std::function<void(std::byte*)>>;

  virtual ~Backend() = default;
  virtual std::string describe() const = 0;  // "cpu avx512-vnni, 2 threads"
  virtual int threads() const = 0;           // 1 where that means nothing

  virtual Buffer alloc(std::size_t bytes) = 0;
  // Bytes that a model will take in weights, state and activations, before it does: a device makes
  // one allocation, from which alloc() and pack() then take. No error: what it lacks they will say.
  virtual void reserve(std::size_t bytes) { static_cast<void>(bytes); }
  // Host memory, for what download() writes again and again: a device may copy there faster, and
  // top_logits() may write there by itself.
  virtual Buffer alloc_host(std::size_t bytes) {
    return Buffer(new std::byte[bytes], [](std::byte* p) { delete[] p; });
  }
  virtual bool is_host() const = 0;  // its memory is the host's: download() may be left out
  // Both pointers may be null where bytes is 0.
  virtual void upload(void* device, const void* host, std::size_t bytes) = 0;
  virtual void download(void* host, const void* device, std::size_t bytes) = 0;
  // Returns when all that was asked for is done.
  virtual void finish() {}

  // Bytes that alloc() may still give; 0: not known here.
  virtual std::uint64_t available_memory() const { return 0; }

  // Bytes a device has taken for inside its operations, beside what it was asked for, and of
  // reserve() to spare; it keeps them.
  virtual std::uint64_t scratch_memory() const { return 0; }

  // Bytes a second that a device reads of its memory, measured now; 0: this one has the host's.
  virtual double read_bandwidth() { return 0; }

  // What the operations of a step read on the host; it stays as it is until the step ends.
  struct Step {
    std::span<const std::int32_t> ids;
    std::span<const RowPlace> rows;
    std::span<const std::int32_t> picked;  // rows of gather()
    std::span<const float> cos_sin;        // of rope_cache()
  };
  // Most rows of a step of prefill that pay here (half: in fp16); a multiple of 64. No bit depends
  // on it.
  virtual std::int64_t prefill_rows(bool half) const { return (void)half, 256; }

  // Whether operations take Activations::Half.
  virtual bool has_half() const { return false; }

  // Operations up to end_step() are one step; it advances a layer's state once. Steps of one key
  // are the same operations on the same memory and differ in `step` and in what was uploaded: a
  // backend may keep them and run them again by itself. Then it returns true, and the caller leaves
  // them, and end_step(), out. An empty key keeps nothing. failed: an operation threw.
  virtual bool begin_step(const Step& step, std::span<const std::uint64_t> key) {
    (void)step, (void)key;
    return false;
  }
  virtual void end_step(bool failed) { (void)failed; }

  // Repacks a matrix into the order the kernels stream and releases the source's pages as it
  // goes. pieces: ops/pieces.h (8 for row-parallel operations, else 1). stack: how many matrices
  // of equally many rows the source holds one below the other (ops/experts.h takes such).
  virtual std::unique_ptr<Weight> pack(const WeightSource& source, int pieces,
                                       std::int64_t stack = 1) = 0;
  // Zero-filled. Throws Error saying how much is needed when memory is short.
  virtual std::unique_ptr<KvCache> make_kv_cache(const KvShape& shape) = 0;
  virtual std::unique_ptr<DeltaState> make_delta_state(const DeltaShape& shape) = 0;

  // dst[i] = src[rows[i]], each row `width` floats; rows [m] on the host. dst apart from src.
  virtual void gather(const float* src, const std::int32_t* rows, std::int64_t m,
                      std::int64_t width, float* dst) = 0;
  virtual void embedding(const EmbeddingArgs& a) = 0;
  virtual void top_logits(const TopLogitsArgs& a) = 0;
  virtual void linear(const LinearArgs& a) = 0;
  virtual void add_rmsnorm_linear(const AddRmsNormLinearArgs& a) = 0;
  // u of the convolution is y of the first output. A backend may do both at once.
  virtual void add_rmsnorm_linear_conv(const AddRmsNormLinearArgs& a, const CausalConvArgs& c) {
    check(a, c);
    add_rmsnorm_linear(a), causal_conv(c);
  }
  virtual void rope_cache(const RopeCacheArgs& a) = 0;
  virtual void attention(const AttentionArgs& a) = 0;
  // A backend may do both at once.
  virtual void rope_attention(const RopeCacheArgs& rope, const AttentionArgs& a) {
    check(rope, a);
    rope_cache(rope), attention(a);
  }
  virtual void causal_conv(const CausalConvArgs& a) = 0;
  virtual void delta_rule(const DeltaRuleArgs& a) = 0;
  virtual void gated_rmsnorm_linear(const GatedRmsNormLinearArgs& a) = 0;
  virtual void delta_rule_linear(const DeltaRuleLinearArgs& a) {
    check(a);
    delta_rule(a.rule);
    gated_rmsnorm_linear(a.linear);
  }
  virtual void router(const RouterArgs& a) = 0;
  virtual void experts(const ExpertsArgs& a) = 0;
};

// device: one of device_names() (others: Error naming those). threads: 0 = every core this process
// may use.
std::unique_ptr<Backend> make_backend(std::string_view device, int threads);
std::vector<std::string> backend_names();  // known; make_backend says which are not built
// In this build and on this machine: "cpu", and "cpu:avx2" and the like, to measure or to compare
// one instruction set (the bits are the same).
std::vector<std::string> device_names();

}  // namespace nibble
