// The CPU backend. Tests choose the instruction set; users get the best one.
#pragma once
#include <memory>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "base/shares.h"
#include "base/thread_pool.h"

namespace nibble::cpu {

class PackedWeight final : public Weight {
 public:
  PackedWeight(const WeightSource& source, int pieces, std::int64_t stack, const Kernels& kernels,
               ThreadPool& pool, bool guarded);
  const TileWeight& tiles() const { return tiles_; }
  const KPlan& plan() const { return plan_; }
  // Every matrix of a stack begins a tile.
  std::int64_t matrix_rows() const { return format_.n / stack_; }
  std::int64_t matrix_tiles() const { return (matrix_rows() + kTile - 1) / kTile; }
  std::int64_t tile_count() const { return matrix_tiles() * stack_; }
  // Row r as fp32, [K].
  void row(std::int64_t r, float* out) const;

 private:
  void pack_tile(const Kernels& kernels, std::int64_t tile, const WeightRows& rows,
                 std::int64_t first, std::int64_t count);
  KPlan plan_;
  Array<std::uint8_t> codes_, scales_, offsets_;
  TileWeight tiles_;
};

// Keys 16 positions side by side, [layer][slot][head][position / 16][head_dim][16]; values
// [layer][slot][head][position][head_dim rounded up to 16].
class CpuKvCache final : public KvCache {
 public:
  explicit CpuKvCache(const KvShape& s);
  void read(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t position,
            float* k, float* v) const override;
  void copy(std::int64_t from, std::int64_t to, std::int64_t n) override;
  // k, v: [stride()], zeros past head_dim. Rounds them to the cache's type.
  void write(const Kernels& kernels, std::int64_t layer, std::int64_t slot, std::int64_t head,
             std::int64_t position, const float* k, const float* v);
  std::int64_t stride() const { return (shape_.head_dim + 15) / 16 * 16; }
  // First element of a head's keys or values.
  const void* keys(std::int64_t layer, std::int64_t slot, std::int64_t head) const;
  const void* values(std::int64_t layer, std::int64_t slot, std::int64_t head) const;
  const float* key_scales(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
    return key_scales_.data() + head_index(layer, slot, head) * shape_.padded_context();
  }
  const float* value_scales(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
    return value_scales_.data() + head_index(layer, slot, head) * shape_.padded_context();
  }

 private:
  std::int64_t head_index(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
    return (layer * shape_.slots + slot) * shape_.kv_heads + head;
  }
  std::size_t element() const { return shape_.type == KvType::I16 ? 2 : 4; }
  Array<std::byte> keys_, values_;
  Array<float> key_scales_, value_scales_;  // I16 only, by position
};

// Convolution [layer][slot][tap][channel], oldest tap first; recurrent
// [layer][slot][head][value_dim / 16][key_dim][16].
class CpuDeltaState final : public DeltaState {
 public:
  explicit CpuDeltaState(const DeltaShape& s);
  void copy(std::int64_t from, std::int64_t to) override;
  void read(std::int64_t layer, std::int64_t slot, std::int64_t head, float* s) const override;
  std::int64_t blocks() const { return (shape_.value_dim + kTile - 1) / kTile; }  // of a head
  float* conv(std::int64_t layer, std::int64_t slot);
  // The 16 columns of one block of a head, [key_dim][16].
  float* block(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t block);

 private:
  std::int64_t conv_size() const { return (shape_.conv_kernel - 1) * shape_.channels(); }
  std::int64_t rule_size() const { return shape_.value_heads * blocks() * shape_.key_dim * kTile; }
  Array<float> conv_, rule_;
};

// The part [begin, end) of `total` units that belongs to `thread`.
struct Part {
  std::int64_t begin, end;
};
inline Part part(std::int64_t total, int thread, int threads) {
  return {total * thread / threads, total * (thread + 1) / threads};
}

// Throws Error where Activations::Half is asked for: has_half() is false here.
inline void refuse_half(const char* op, Activations a) {
  require(a != Activations::Half, "[{}] expected int16, int8 or fp32 on the CPU, got half", op);
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, Isa isa);
  // For src/verify: a table of its own, and packed weights between unreadable pages.
  CpuBackend(int threads, const Kernels& kernels, bool guarded);
  ~CpuBackend() override;
  std::string describe() const override;
  int threads() const override { return pool_.size(); }
  Buffer alloc(std::size_t bytes) override;
  bool is_host() const override { return true; }
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
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
  void rope_cache(const RopeCacheArgs& a) override;
  void attention(const AttentionArgs& a) override;
  void causal_conv(const CausalConvArgs& a) override;
  void delta_rule(const DeltaRuleArgs& a) override;
  void gated_rmsnorm_linear(const GatedRmsNormLinearArgs& a) override;
  void router(const RouterArgs& a) override;
  void experts(const ExpertsArgs& a) override;

 private:
  struct Rows;
  // At least n floats of the thread's own.
  float* scratch(int thread, std::int64_t n);
  // m rows to prepare whose words lie one after the other; set 0 or 1.
  XRow* single_rows(int set, std::int64_t m, const KPlan& plan, bool fixed, bool plain);
  // Whether rows go through Kernels::wide.
  bool wide(std::int64_t m, Activations a, std::span<const LinearOutput> outputs) const;
  void multiply(const Rows& rows, std::int64_t m, int parts, std::span<const LinearOutput> outputs,
                Epilogue epilogue, Activations activations, std::int64_t begin, std::int64_t end,
                std::int64_t ahead) const;
  template <class Prepare>
  void run_linear(std::int64_t m, std::int64_t k, Activations activations,
                  std::span<const LinearOutput> outputs, Epilogue epilogue, bool own_rows,
                  Prepare&& prepare);

  ThreadPool pool_;
  const Kernels& kernels_;
  const bool guarded_;
  Shares shares_;                            // of the tiles of one operation
  std::vector<std::unique_ptr<Rows>> rows_;  // per thread; [0] also serves shared preparation
  std::vector<std::vector<float>> scratch_;  // per thread
  std::vector<float> partials_;              // attention splits
  std::unique_ptr<Rows> expert_rows_[2];
  std::vector<float> experts_act_;
};

}  // namespace nibble::cpu
