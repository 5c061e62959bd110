/* The fused operation for other engines, in C: residual add + RMSNorm + INT4 matrix-vector product.
 *
 *   h = residual + delta                        [M, K]
 *   u = h * rsqrt(mean(h^2) + eps) * g          g = norm_weight, or 1 + norm_weight (unit_offset)
 *   y_i = W_i u                                 [M, N_i], i < weight_count
 *
 * All arrays are row-major and in host memory. residual, residual_out, normed and y are fp32; delta
 * and norm_weight are fp32, fp16 or bf16. Any M, N and K (K a multiple of the weights' group); made
 * for M = 1..8. No alignment is asked beyond an element's own.
 *
 * Aliasing. Inputs are only read. residual_out, normed and every y must be apart from each other
 * and from every input; an overlap is refused (NIBBLE_INVALID), never computed. That is the point:
 * a fused kernel that updates the residual in place reads what it writes, and is wrong whenever a
 * thread starts late. Ping-pong the residual between two buffers, or call
 * nibble_add_rmsnorm_int4_inplace, which copies.
 *
 * Bits. y of a row depends on that row's residual and delta, the weights and the activation mode
 * alone: not on M, its place in the batch, the number of threads, the instruction set, or which
 * other weights share the call.
 *
 * Errors. Every function returns a nibble_status; nibble_last_error() then says what was expected
 * and what was given. On an error no output has been written, except after NIBBLE_FAILED.
 *
 * Threads. A context is used by one thread at a time; packed weights are immutable and may be used
 * with any context, and outlive the one they were packed with. */
#ifndef NIBBLE_OPS_H
#define NIBBLE_OPS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  NIBBLE_OK = 0,
  NIBBLE_INVALID = 1,   /* a bad argument: null, a wrong shape, an alias, a value out of range */
  NIBBLE_NO_MEMORY = 2, /* memory ran out */
  NIBBLE_FAILED = 3     /* anything else, such as threads that cannot be started */
} nibble_status;

typedef enum { NIBBLE_F32 = 0, NIBBLE_F16 = 1, NIBBLE_BF16 = 2 } nibble_dtype;

/* How the matrix product takes u. INT16: 16-bit fixed point, one scale per 64 columns (the default;
 * error below 2e-4 of sum |w u|). INT8: the same with 8 bits (5e-3; faster). FP32: not rounded. */
typedef enum { NIBBLE_INT16 = 0, NIBBLE_INT8 = 1, NIBBLE_FP32 = 2 } nibble_activations;

typedef struct nibble_context nibble_context; /* threads and scratch memory */
typedef struct nibble_weight nibble_weight;   /* a matrix in the order the kernels stream */

/* What went wrong in this thread's last failed call; "" before any. Valid until the next one. */
const char* nibble_last_error(void);

/* threads: 0 = every core this process may use. Workers spin briefly after a call, then sleep. */
nibble_status nibble_context_create(int threads, nibble_context** out);
void nibble_context_destroy(nibble_context* context); /* null: nothing */

/* A symmetric INT4 matrix [N, K] as compressed-tensors `pack-quantized` files hold it:
 *   value(n, k) = (code(n, k) - 8) * scale(n, k / group)
 *   words   [N, K / 8]      code of column 8w + i in bits 4i .. 4i+3 of word w
 *   scales  [N, K / group]  fp16 bits, finite, may be negative
 * group: 32, 64 or 128; K a multiple of it. Repacks a copy (0.52 bytes an element); the arrays may
 * go afterwards. */
nibble_status nibble_weight_pack_int4(nibble_context* context, const int32_t* words,
                                      const uint16_t* scales, int64_t n, int64_t k, int group,
                                      nibble_weight** out);
void nibble_weight_destroy(nibble_weight* weight); /* null: nothing */

typedef struct {
  int64_t m, k;
  const float* residual; /* [M, K] */
  const void* delta;     /* [M, K], or null: h = residual */
  nibble_dtype delta_type;
  const void* norm_weight; /* [K] */
  nibble_dtype norm_type;
  float eps;       /* >= 0 */
  int unit_offset; /* not 0: g = 1 + norm_weight */
  nibble_activations activations;
  float* residual_out;                 /* [M, K] = h, or null */
  float* normed;                       /* [M, K] = u, or null */
  int weight_count;                    /* 0 to 4; 0 needs residual_out or normed */
  const nibble_weight* const* weights; /* [weight_count], each [N_i, K] */
  float* const* y;                     /* [weight_count], each [M, N_i] without gaps */
} nibble_add_rmsnorm_int4_args;

/* The operation. Zero-fill the struct and set what is needed. */
nibble_status nibble_add_rmsnorm_int4(nibble_context* context,
                                      const nibble_add_rmsnorm_int4_args* args);

/* The published in-place signature, for engines built around it: residual [M, K] becomes residual +
 * delta, y [M, N] the product, both after everything has been read. The sum is computed into the
 * context's own memory and copied, so no order of threads can matter; on an error the residual is
 * as it was. g = norm_weight, int16 activations. */
nibble_status nibble_add_rmsnorm_int4_inplace(nibble_context* context, float* residual,
                                              const void* delta, nibble_dtype delta_type,
                                              const void* norm_weight, nibble_dtype norm_type,
                                              float eps, const nibble_weight* weight, int64_t m,
                                              float* y);

#ifdef __cplusplus
}
#endif
#endif
