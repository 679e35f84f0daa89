/* The experts' decode kernels for up to 8 rows. */
#include "matvec_host.h"

matvec_expert_kernels matvec_experts_8(void)
{
    return { 8, matvec_choice_bytes<8>(), matvec_gate_kernel<8>, matvec_down_kernel<8> };
}
