/* Fills the table of kernels: scalar first, then what each instruction set has. */
#include "cpu/kernels.h"

#include "cpu/cpu_features.h"
#include "cpu/scalar/scalar.h"

#define KV_KERNELS(stem) { qmi_scalar_scores_##stem, qmi_scalar_mix_##stem, qmi_scalar_store_##stem, NULL }

void qmi_cpu_kernels_scalar(qmi_cpu_kernels *kernels)
{
    *kernels = (qmi_cpu_kernels){
        .isa = "scalar",
        .dot = { [QMI_TYPE_F32] = qmi_scalar_dot_f32, [QMI_TYPE_F16] = qmi_scalar_dot_f16, [QMI_TYPE_BF16] = qmi_scalar_dot_bf16,
                 [QMI_TYPE_Q8_0] = qmi_scalar_dot_q8_0, [QMI_TYPE_Q4_K] = qmi_scalar_dot_q4_k,
                 [QMI_TYPE_Q5_K] = qmi_scalar_dot_q5_k, [QMI_TYPE_Q6_K] = qmi_scalar_dot_q6_k },
        .format = { [QMI_TYPE_Q8_0] = QMI_FORMAT_Q8, [QMI_TYPE_Q4_K] = QMI_FORMAT_Q8, [QMI_TYPE_Q5_K] = QMI_FORMAT_Q8,
                    [QMI_TYPE_Q6_K] = QMI_FORMAT_Q8 },
        .quantize = qmi_scalar_quantize,
        .kv = { [QMI_KV_F32] = KV_KERNELS(f32), [QMI_KV_F16] = KV_KERNELS(f16), [QMI_KV_BF16] = KV_KERNELS(bf16),
                [QMI_KV_Q8_0] = KV_KERNELS(q8_0), [QMI_KV_Q6] = KV_KERNELS(q6), [QMI_KV_Q5] = KV_KERNELS(q5),
                [QMI_KV_Q4_0] = KV_KERNELS(q4_0), [QMI_KV_Q2] = KV_KERNELS(q2) },
        .spread = qmi_scalar_spread,
        .gather = qmi_scalar_gather,
        .maximum = qmi_scalar_maximum,
        .exp_sum = qmi_scalar_exp_sum,
        .blend = qmi_scalar_blend,
        .rms = qmi_scalar_rms,
        .unit = qmi_scalar_unit,
        .silu_mul = qmi_scalar_silu_mul,
        .sigmoid_mul = qmi_scalar_sigmoid_mul,
        .rotate = qmi_scalar_rotate,
        .convolve = qmi_scalar_convolve,
        .delta = qmi_scalar_delta,
    };
}

void qmi_cpu_kernels_fill(qmi_cpu_kernels *kernels, uint32_t features)
{
    qmi_cpu_kernels_scalar(kernels);
#if defined(__x86_64__)
    if (features & QMI_CPU_AVX2)
        qmi_cpu_kernels_avx2(kernels, features);
    if (features & QMI_CPU_AVX512)
        qmi_cpu_kernels_avx512(kernels, features);
#else
    (void)features;
#endif
}
