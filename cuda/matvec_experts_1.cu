/* The experts' decode kernels for up to 1 rows. */
#include "matvec_host.h"

matvec_expert_kernels matvec_experts_1(void)
{
    return { 1, matvec_choice_bytes<1>(), matvec_gate_kernel<1>, matvec_down_kernel<1> };
}
