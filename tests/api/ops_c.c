/* The C API used from C: a header a C compiler takes, and one call of each function. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nibble/ops.h"

enum { M = 2, N = 3, K = 64, GROUP = 32 };

#define EXPECT(condition)                                             \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      return __LINE__;                                                \
    }                                                                 \
  } while (0)

/* 0, or the line of the first expectation that does not hold. */
int use_ops_from_c(void) {
  int32_t words[N * K / 8];
  uint16_t scales[N * K / GROUP];
  float residual[M * K], sum[M * K], normed[M * K], y[M * N], y2[M * N];
  uint16_t delta[M * K];
  float norm[K];
  for (int i = 0; i < N * K / 8; ++i) words[i] = (int32_t)(0x9a8b7c6du * (unsigned)(i + 1));
  for (int i = 0; i < N * K / GROUP; ++i) scales[i] = i % 2 ? 0xb800 : 0x3400; /* -0.5, 0.25 */
  for (int i = 0; i < M * K; ++i) residual[i] = (float)(i % 7) - 3, delta[i] = 0x3c00; /* 1 */
  for (int i = 0; i < K; ++i) norm[i] = 1;

  nibble_context* context = NULL;
  nibble_weight* weight = NULL;
  EXPECT(nibble_context_create(2, &context) == NIBBLE_OK);
  EXPECT(nibble_weight_pack_int4(context, words, scales, N, K, GROUP, &weight) == NIBBLE_OK);

  const nibble_weight* weights[1] = {weight};
  float* outputs[1] = {y};
  nibble_add_rmsnorm_int4_args args;
  memset(&args, 0, sizeof args);
  args.m = M, args.k = K;
  args.residual = residual;
  args.delta = delta, args.delta_type = NIBBLE_F16;
  args.norm_weight = norm;
  args.eps = 1e-6f;
  args.activations = NIBBLE_FP32;
  args.residual_out = sum, args.normed = normed;
  args.weight_count = 1, args.weights = weights, args.y = outputs;
  EXPECT(nibble_add_rmsnorm_int4(context, &args) == NIBBLE_OK);
  for (int m = 0; m < M; ++m) {
    double squares = 0;
    for (int k = 0; k < K; ++k) {
      EXPECT(sum[m * K + k] == residual[m * K + k] + 1);
      squares += (double)sum[m * K + k] * sum[m * K + k];
    }
    const double inverse = 1 / sqrt(squares / K + 1e-6);
    for (int n = 0; n < N; ++n) {
      double want = 0;
      for (int k = 0; k < K; ++k) {
        const unsigned word = (unsigned)words[(n * K + k) / 8];
        const int code = (int)(word >> (4 * (k % 8)) & 15);
        want += (code - 8) * ((n * 2 + k / GROUP) % 2 ? -0.5 : 0.25) * sum[m * K + k] * inverse;
      }
      EXPECT(fabs(y[m * N + n] - want) < 1e-3);
    }
  }

  /* In place: the same bits, and the residual becomes the sum. */
  args.activations = NIBBLE_INT16;
  outputs[0] = y2;
  EXPECT(nibble_add_rmsnorm_int4(context, &args) == NIBBLE_OK);
  EXPECT(nibble_add_rmsnorm_int4_inplace(context, residual, delta, NIBBLE_F16, norm, NIBBLE_F32,
                                         1e-6f, weight, M, y) == NIBBLE_OK);
  EXPECT(memcmp(y, y2, sizeof y) == 0);
  EXPECT(memcmp(residual, sum, sizeof sum) == 0);

  args.residual_out = residual;
  EXPECT(nibble_add_rmsnorm_int4(context, &args) == NIBBLE_INVALID);
  EXPECT(strstr(nibble_last_error(), "never writes") != NULL);
  nibble_weight_destroy(weight);
  nibble_context_destroy(context);
  nibble_weight_destroy(NULL);
  nibble_context_destroy(NULL);
  return 0;
}
