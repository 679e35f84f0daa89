/* The experts' decode kernels for up to 4 rows. */
#include "matvec_host.h"

matvec_expert_kernels matvec_experts_4(void)
{
    return { 4, matvec_choice_bytes<4>(), matvec_gate_kernel<4>, matvec_down_kernel<4> };
}
