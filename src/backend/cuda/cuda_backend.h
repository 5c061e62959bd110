// The CUDA backend. Host half: arguments are checked, plans chosen, kernels launched (kernels.h).
// Compiled twice: for the device, and for the emulator (emulate/emulate.h), whose bits are the
// same.
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/kernels.h"
#include "base/thread_pool.h"

namespace nibble::NIBBLE_CUDA_NS {

class Arena;

// Device memory, freed with it; of an arena, with the last that was cut from it.
class Block {
 public:
  Block() = default;
  // Throws Error saying what is needed and available.
  Block(std::size_t bytes, const char* what, Arena* arena = nullptr);
  void* get() const { return p_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(p_.get());
  }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<void> p_;
  std::size_t size_ = 0;
};

// One allocation, from whose start Blocks are cut while there is room.
class Arena {
 public:
  void reserve(std::size_t bytes);  // none if there is no memory; what was left is lost
  std::shared_ptr<void> cut(std::size_t bytes);  // null: no room
  std::size_t left() const { return size_ - used_; }

 private:
  std::shared_ptr<void> p_;
  std::size_t size_ = 0, used_ = 0;
};

// What goes to the device in many parts: the host fills one half while the other is copied.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();
  // On the host, at least `bytes`, until send(), which returns where their copy lies until the
  // next.
  std::uint8_t* fill(const Queue& q, std::size_t bytes);
  const std::uint8_t* send(const Queue& q, std::size_t bytes);
  std::size_t size() const { return device_.size(); }

 private:
  void* host_ = nullptr;  // two halves
  Block device_;
  std::size_t turn_ = 0;
};

// A packed matrix (kernels.h says how).
class CudaWeight final : public Weight {
 public:
  CudaWeight(const WeightSource& source, int pieces, std::int64_t stack, const Queue& q,
             ThreadPool& pool, Arena& arena, Staging& staging);
  const Matrix& matrix() const { return matrix_; }

 private:
  void lay_out(int pieces, std::int64_t stack);
  Block codes_, scales_, plan_;
  std::vector<Stage> stages_;
  Matrix matrix_;
};

// What follows a product, of its first output: a choice of experts, a convolution.
struct After {
  Choice choice = {};
  ConvArgs conv = {};
};

class CudaBackend final : public Backend {
 public:
  // threads: that pack weights. For tests: blocks, schedule (runtime.h, Queue); small: no more
  // shared memory than compute capability 8.9 has, no warpgroups. measures: which plan is faster.
  explicit CudaBackend(int threads, int blocks = 0, int schedule = 0, bool small = false,
                       bool measures = false);
  ~CudaBackend() override;
  std::string describe() const override;
  int threads() const override { return 1; }
  Buffer alloc(std::size_t bytes) override;
  void reserve(std::size_t bytes) override;
  Buffer alloc_host(std::size_t bytes) override;
  bool is_host() const override;
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  void finish() override;
  std::uint64_t available_memory() const override { return device_memory().free; }
  std::uint64_t scratch_memory() const override;
  double read_bandwidth() override;
  std::int64_t prefill_rows(bool half) const override {
    return is_host() ? 256 : half ? 2048 : 1024;
  }
  bool has_half() const override { return q_.warpgroups; }
  bool begin_step(const Step& step, std::span<const std::uint64_t> key) override;
  void end_step(bool failed) override;
  std::unique_ptr<Weight> pack(const WeightSource& source, int pieces,
                               std::int64_t stack = 1) override;
  std::unique_ptr<KvCache> make_kv_cache(const KvShape& shape) override;
  std::unique_ptr<DeltaState> make_delta_state(const DeltaShape& shape) override;
  void gather(const float* src, const std::int32_t* rows, std::int64_t m, std::int64_t width,
              float* dst) override;
  void embedding(const EmbeddingArgs& a) override;
  void top_logits(const TopLogitsArgs& a) override;
  void linear(const LinearArgs& a) override;
  void add_rmsnorm_linear(const AddRmsNormLinearArgs& a) override;
  void add_rmsnorm_linear_conv(const AddRmsNormLinearArgs& a, const CausalConvArgs& c) override;
  void rope_cache(const RopeCacheArgs& a) override;
  void attention(const AttentionArgs& a) override;
  void rope_attention(const RopeCacheArgs& rope, const AttentionArgs& a) override;
  void causal_conv(const CausalConvArgs& a) override;
  void delta_rule(const DeltaRuleArgs& a) override;
  void gated_rmsnorm_linear(const GatedRmsNormLinearArgs& a) override;
  void delta_rule_linear(const DeltaRuleLinearArgs& a) override;
  void router(const RouterArgs& a) override;
  void experts(const ExpertsArgs& a) override;

 private:
  // At least `bytes` of device memory under this name, kept; the queue's order keeps its users
  // apart.
  template <class T>
  T* scratch(const char* name, std::size_t count) {
    return static_cast<T*>(scratch_bytes(name, count * sizeof(T)));
  }
  void* scratch_bytes(const char* name, std::size_t bytes);
  // n values that the caller has on the host, on the device: where begin_step() put them, or
  // copied.
  template <class T>
  const T* on_device(const char* name, const T* host, std::int64_t n) {
    return static_cast<const T*>(host_bytes(name, host, static_cast<std::size_t>(n) * sizeof(T)));
  }
  const void* host_bytes(const char* name, const void* host, std::size_t bytes);
  const Place* places(const RowPlace* rows, std::int64_t m) {
    static_assert(sizeof(Place) == sizeof(RowPlace));
    return on_device("row places", reinterpret_cast<const Place*>(rows), m);
  }
  // y = W x for a source of rows, whatever the weights' types and the plan.
  void multiply(const Source& s, std::int64_t m, Activations activations,
                std::span<const LinearOutput> outputs, Epilogue epilogue, Plan plan,
                const After& after = {});
  // Whether a product can be taken in fp16, whatever its rows: a matter of the weights alone.
  bool takes_half(const MultiplyArgs& a) const;
  void prepare(const Source& s, int m, int int8, const Matrix& w, const Fixed& fixed, float* real);
  Fixed half_rows(const char* name, const Source& s, std::int64_t rows, const Matrix& w);
  bool experts_half(const ExpertsArgs& a);  // false: its weights are not for that
  void multiply_kind(Source s, std::int64_t m, Activations activations,
                     std::span<const LinearOutput> outputs, Epilogue epilogue, Plan plan,
                     bool fixed, const After& after);
  void norm_linear(const AddRmsNormLinearArgs& a, const After& after);
  ConvArgs conv_args(const CausalConvArgs& a);
  // run(fused) launches a plan. guess: where nothing is known, and nothing can be measured now.
  using PlanKey = std::vector<std::int64_t>;
  bool is_fused_faster(const PlanKey& key, bool guess, const std::function<void(bool)>& run);
  RopeArgs rope_args(const RopeCacheArgs& a);
  AttendArgs attend_args(const AttentionArgs& a, const KvLayer& cache, int tops = 1);  // a part
  void attend_half(const AttendArgs& a, const RowPlace* rows);
  static bool can_step(const DeltaState& state);  // delta_step() takes these heads
  void delta_step(const DeltaRuleLinearArgs& a, const Fixed& fixed);
  std::uint64_t* turns(int blocks, int m);  // of the next launch_gemv_pairs()
  Fixed fixed_rows(const char* name, std::int64_t rows, const Matrix& w, bool straight);

  Queue q_;
  ThreadPool pool_;
  Arena arena_;  // of the model
  Staging staging_;
  Block arrived_;  // Choice's count of blocks, then gemv_pieces'
  Block turns_;    // gemv_pairs', by blocks and rows
  int turns_given_ = 0;
  // Small uploads pass through here, so that the host need not wait for them.
  static constexpr std::size_t kPostBytes = std::size_t{1} << 20;
  Buffer post_;
  std::size_t posted_ = 0;
  // What recorded steps read, copied by themselves; busy: one may still have to.
  static constexpr std::size_t kInboxBytes = 16384;
  Buffer inbox_;
  bool inbox_busy_ = false;
  std::map<std::string, Block, std::less<>> scratch_;
  struct Staged {
    const void* host;
    std::size_t bytes;
    std::size_t at;  // where it is kept, of all
    const std::byte* device;
  };
  std::vector<Staged> staged_;  // of the step under way
  using Key = std::vector<std::uint64_t>;
  struct Before {
    using is_transparent = void;
    bool operator()(std::span<const std::uint64_t> a, std::span<const std::uint64_t> b) const {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    }
  };
  std::map<Key, std::shared_ptr<Graph>, Before> graphs_;  // null: seen once, nothing kept yet
  Key recording_;                                         // of the step that is being recorded
  bool measures_;                                         // plans
  std::map<PlanKey, bool> fused_;                         // the faster plan
};

}  // namespace nibble::NIBBLE_CUDA_NS
