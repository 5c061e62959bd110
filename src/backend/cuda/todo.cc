// Operations that this backend does not have yet: an error, never a wrong answer.
#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

std::unique_ptr<DeltaState> CudaBackend::make_delta_state(const DeltaShape&) {
  fail("not on cuda yet: delta_rule");
}
void CudaBackend::causal_conv(const CausalConvArgs&) { fail("not on cuda yet: causal_conv"); }
void CudaBackend::delta_rule(const DeltaRuleArgs&) { fail("not on cuda yet: delta_rule"); }
void CudaBackend::router(const RouterArgs&) { fail("not on cuda yet: router"); }
void CudaBackend::experts(const ExpertsArgs&) { fail("not on cuda yet: experts"); }

}  // namespace nibble::NIBBLE_CUDA_NS
