/* The scalar kernels: what each entry of kernels.h means, in plain C. */
#ifndef QMI_CPU_SCALAR_SCALAR_H
#define QMI_CPU_SCALAR_SCALAR_H

#include "cpu/kernels.h"

/* dot.c */
void qmi_scalar_dot_f32(const qmi_cpu_tile *tile);
void qmi_scalar_dot_f16(const qmi_cpu_tile *tile);
void qmi_scalar_dot_bf16(const qmi_cpu_tile *tile);

/* dot_q8.c */
void qmi_scalar_quantize(const float *x, void *row, int64_t columns, int64_t first, int64_t count);
void qmi_scalar_dot_q8_0(const qmi_cpu_tile *tile);
void qmi_scalar_dot_q4_k(const qmi_cpu_tile *tile);
void qmi_scalar_dot_q5_k(const qmi_cpu_tile *tile);
void qmi_scalar_dot_q6_k(const qmi_cpu_tile *tile);

/* attend.c */
#define QMI_DECLARE_KV(stem) \
    void qmi_scalar_scores_##stem(const qmi_cpu_scores *work); \
    void qmi_scalar_mix_##stem(const qmi_cpu_mix *work); \
    void qmi_scalar_store_##stem(const float *from, void *to, int64_t count);
QMI_DECLARE_KV(f32)
QMI_DECLARE_KV(f16)
QMI_DECLARE_KV(bf16)
QMI_DECLARE_KV(q8_0)
QMI_DECLARE_KV(q6)
QMI_DECLARE_KV(q5)
QMI_DECLARE_KV(q4_0)
QMI_DECLARE_KV(q2)
void qmi_scalar_spread(float *x, int32_t count);
void qmi_scalar_gather(float *x, int32_t count);
void qmi_scalar_rotate(float *x, const float *cosine, const float *sine, int32_t half);
float qmi_scalar_maximum(const float *x, int64_t count);
float qmi_scalar_exp_sum(float *x, int64_t count, float shift);
void qmi_scalar_blend(float *y, float a, const float *x, float b, int64_t count);

/* norm.c */
void qmi_scalar_rms(const float *x, const float *weight, float epsilon, float *out, int64_t count);
void qmi_scalar_unit(float *x, float epsilon, float scale, int64_t count);

/* glu.c */
void qmi_scalar_silu_mul(const float *gate, const float *x, float *out, int64_t count);
void qmi_scalar_sigmoid_mul(const float *gate, float *x, int64_t count);

/* delta.c */
void qmi_scalar_convolve(const qmi_cpu_convolution *work);
void qmi_scalar_delta(const qmi_cpu_delta *work);

/* 1 / (1 + exp(-x)), whose exponential never overflows. */
float qmi_scalar_sigmoid(float x);

#endif
