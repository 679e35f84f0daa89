/* The kernels of each x86-64 instruction set, by name; kernels_x86.c puts them into the table. */
#ifndef QMI_CPU_X86_X86_H
#define QMI_CPU_X86_X86_H

#include "cpu/kernels.h"

#define QMI_DECLARE_ATTEND(isa, type) \
    void qmi_##isa##_scores_##type(const qmi_cpu_scores *work); \
    void qmi_##isa##_mix_##type(const qmi_cpu_mix *work);

#define QMI_DECLARE_CODES(isa, type) \
    QMI_DECLARE_ATTEND(isa, type) \
    void qmi_##isa##_unpack_##type(const void *record, float *to, int64_t count);

/* All that exists for vectors of floats, AVX2 and AVX-512 alike. */
#define QMI_DECLARE_FLOAT_KERNELS(isa) \
    void qmi_##isa##_dot_f32(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_f16(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_bf16(const qmi_cpu_tile *tile); \
    QMI_DECLARE_ATTEND(isa, f32) \
    QMI_DECLARE_ATTEND(isa, f16) \
    QMI_DECLARE_ATTEND(isa, bf16) \
    QMI_DECLARE_CODES(isa, q8_0) \
    QMI_DECLARE_CODES(isa, q6) \
    QMI_DECLARE_CODES(isa, q5) \
    QMI_DECLARE_CODES(isa, q4_0) \
    QMI_DECLARE_ATTEND(isa, q2) \
    void qmi_##isa##_spread(float *x, int32_t count); \
    void qmi_##isa##_gather(float *x, int32_t count); \
    void qmi_##isa##_store_f16(const float *from, void *to, int64_t count); \
    float qmi_##isa##_maximum(const float *x, int64_t count); \
    float qmi_##isa##_exp_sum(float *x, int64_t count, float shift); \
    void qmi_##isa##_blend(float *y, float a, const float *x, float b, int64_t count); \
    void qmi_##isa##_rms(const float *x, const float *weight, float epsilon, float *out, int64_t count); \
    void qmi_##isa##_unit(float *x, float epsilon, float scale, int64_t count); \
    void qmi_##isa##_silu_mul(const float *gate, const float *x, float *out, int64_t count); \
    void qmi_##isa##_sigmoid_mul(const float *gate, float *x, int64_t count); \
    void qmi_##isa##_rotate(float *x, const float *cosine, const float *sine, int32_t half); \
    void qmi_##isa##_convolve(const qmi_cpu_convolution *work); \
    void qmi_##isa##_delta(const qmi_cpu_delta *work);

/* Products with Q8 activations: plain AVX2, with dot products of bytes of AVX-VNNI or AVX-512, and besides those with AMX. */
#define QMI_DECLARE_Q8_KERNELS(isa) \
    void qmi_##isa##_dot_q8_0(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_q4_0(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_q5_0(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_iq4_nl(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_iq4_xs(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_q4_k(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_q5_k(const qmi_cpu_tile *tile); \
    void qmi_##isa##_dot_q6_k(const qmi_cpu_tile *tile);

QMI_DECLARE_FLOAT_KERNELS(avx2)
QMI_DECLARE_FLOAT_KERNELS(avx512)
QMI_DECLARE_Q8_KERNELS(avx2)
QMI_DECLARE_Q8_KERNELS(avxvnni)
QMI_DECLARE_Q8_KERNELS(vnni)
QMI_DECLARE_Q8_KERNELS(amx)
void qmi_avx2_quantize(const float *x, void *row, int64_t columns, int64_t first, int64_t count);

#endif
