/* A program in C: the fused operation on a matrix of ones. */
#include <nibble/ops.h>
#include <stdio.h>

int main(void) {
  int32_t words[4];
  const uint16_t scale = 0x3c00; /* 1 */
  float residual[32], norm[32], y = 0, *out = &y;
  for (int i = 0; i < 4; ++i) words[i] = (int32_t)0x99999999; /* code 9 is 1 */
  for (int i = 0; i < 32; ++i) residual[i] = 3, norm[i] = 0.25f;
  nibble_context* context = NULL;
  nibble_weight* weight = NULL;
  if (nibble_context_create(1, &context) != NIBBLE_OK ||
      nibble_weight_pack_int4(context, words, &scale, 1, 32, 32, &weight) != NIBBLE_OK) {
    fprintf(stderr, "%s\n", nibble_last_error());
    return 1;
  }
  const nibble_weight* weights = weight;
  const nibble_add_rmsnorm_int4_args args = {.m = 1,
                                             .k = 32,
                                             .residual = residual,
                                             .norm_weight = norm,
                                             .weight_count = 1,
                                             .weights = &weights,
                                             .y = &out};
  if (nibble_add_rmsnorm_int4(context, &args) != NIBBLE_OK) {
    fprintf(stderr, "%s\n", nibble_last_error());
    return 1;
  }
  printf("y %.4g\n", y);
  nibble_weight_destroy(weight);
  nibble_context_destroy(context);
  return 0;
}
