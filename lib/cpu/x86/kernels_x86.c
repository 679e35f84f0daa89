/* Puts the kernels of x86-64's instruction sets into the table. Compiled for the baseline: runs on any such processor. */
#include "cpu/cpu_features.h"
#include "cpu/x86/x86.h"

#define SET_ATTEND(isa, id, type) \
    kernels->kv[QMI_KV_##id].scores = qmi_##isa##_scores_##type; \
    kernels->kv[QMI_KV_##id].mix = qmi_##isa##_mix_##type

#define SET_CODES(isa, id, type) \
    SET_ATTEND(isa, id, type); \
    kernels->kv[QMI_KV_##id].unpack = qmi_##isa##_unpack_##type

#define SET_FLOAT_KERNELS(isa) \
    kernels->dot[QMI_TYPE_F32] = qmi_##isa##_dot_f32; \
    kernels->dot[QMI_TYPE_F16] = qmi_##isa##_dot_f16; \
    kernels->dot[QMI_TYPE_BF16] = qmi_##isa##_dot_bf16; \
    SET_ATTEND(isa, F32, f32); \
    SET_ATTEND(isa, F16, f16); \
    SET_ATTEND(isa, BF16, bf16); \
    SET_CODES(isa, Q8_0, q8_0); \
    SET_CODES(isa, Q6, q6); \
    SET_CODES(isa, Q5, q5); \
    SET_CODES(isa, Q4_0, q4_0); \
    SET_ATTEND(isa, Q2, q2); \
    kernels->kv[QMI_KV_F16].store = qmi_##isa##_store_f16; \
    kernels->spread = qmi_##isa##_spread; \
    kernels->gather = qmi_##isa##_gather; \
    kernels->maximum = qmi_##isa##_maximum; \
    kernels->exp_sum = qmi_##isa##_exp_sum; \
    kernels->blend = qmi_##isa##_blend; \
    kernels->rms = qmi_##isa##_rms; \
    kernels->unit = qmi_##isa##_unit; \
    kernels->silu_mul = qmi_##isa##_silu_mul; \
    kernels->sigmoid_mul = qmi_##isa##_sigmoid_mul; \
    kernels->rotate = qmi_##isa##_rotate; \
    kernels->convolve = qmi_##isa##_convolve; \
    kernels->delta = qmi_##isa##_delta

/* F32, F16 and BF16 keep float activations. */
#define SET_Q8_KERNELS(isa) \
    do { \
        set_q8(kernels, QMI_TYPE_Q8_0, qmi_##isa##_dot_q8_0); \
        set_q8(kernels, QMI_TYPE_Q4_0, qmi_##isa##_dot_q4_0); \
        set_q8(kernels, QMI_TYPE_Q5_0, qmi_##isa##_dot_q5_0); \
        set_q8(kernels, QMI_TYPE_IQ4_NL, qmi_##isa##_dot_iq4_nl); \
        set_q8(kernels, QMI_TYPE_IQ4_XS, qmi_##isa##_dot_iq4_xs); \
        set_q8(kernels, QMI_TYPE_Q4_K, qmi_##isa##_dot_q4_k); \
        set_q8(kernels, QMI_TYPE_Q5_K, qmi_##isa##_dot_q5_k); \
        set_q8(kernels, QMI_TYPE_Q6_K, qmi_##isa##_dot_q6_k); \
    } while (0)

static void set_q8(qmi_cpu_kernels *kernels, uint32_t type, qmi_cpu_dot dot)
{
    kernels->dot[type] = dot;
    kernels->format[type] = QMI_FORMAT_Q8;
}

void qmi_cpu_kernels_avx2(qmi_cpu_kernels *kernels, uint32_t features)
{
    kernels->isa = features & QMI_CPU_AVX_VNNI ? "avx2-vnni" : "avx2";
    SET_FLOAT_KERNELS(avx2);
    SET_Q8_KERNELS(avx2);
    if (features & QMI_CPU_AVX_VNNI)
        SET_Q8_KERNELS(avxvnni);
    kernels->quantize = qmi_avx2_quantize;
}

void qmi_cpu_kernels_avx512(qmi_cpu_kernels *kernels, uint32_t features)
{
    kernels->isa = features & QMI_CPU_AVX512_VNNI ? "avx512-vnni" : "avx512";
    SET_FLOAT_KERNELS(avx512);
    if (features & QMI_CPU_AVX512_VNNI)
        SET_Q8_KERNELS(vnni);
    if (features & QMI_CPU_AMX) {
        kernels->isa = "amx";
        SET_Q8_KERNELS(amx);
    }
}
