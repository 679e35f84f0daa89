/* Products with weights of Q4_K, Q5_K, Q6_K. */
#include "matmul_tmpl.cuh"

MATMUL_INSTANCE(Q4_K)
MATMUL_INSTANCE(Q5_K)
MATMUL_INSTANCE(Q6_K)
