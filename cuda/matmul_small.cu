/* Products with weights of Q8_0, Q4_0, Q5_0. */
#include "matmul_tmpl.cuh"

MATMUL_INSTANCE(Q8_0)
MATMUL_INSTANCE(Q4_0)
MATMUL_INSTANCE(Q5_0)
