/* Products with weights of IQ4_XS, IQ4_NL. */
#include "matmul_tmpl.cuh"

MATMUL_INSTANCE(IQ4_XS)
MATMUL_INSTANCE(IQ4_NL)
