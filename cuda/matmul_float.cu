/* Products with weights of F32 and BF16, which are rounded to half floats, and F16. */
#include "matmul_tmpl.cuh"

MATMUL_INSTANCE(F32)
MATMUL_INSTANCE(F16)
MATMUL_INSTANCE(BF16)
