/* Scalar unpacking of each format: `blocks` whole blocks at `from` to floats. The table in quant.c names them. */
#ifndef QMI_QUANT_DEQUANT_H
#define QMI_QUANT_DEQUANT_H

#include <stdint.h>

#define QMI_UNPACKERS(X) \
    X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k) \
    X(iq2_xxs) X(iq2_xs) X(iq2_s) X(iq3_xxs) X(iq3_s) X(iq1_s) X(iq1_m) X(iq4_nl) X(iq4_xs) X(tq1_0) X(tq2_0) X(mxfp4)

#define QMI_DECLARE_UNPACK(name) void qmi_dequant_##name(const void *from, float *to, int64_t blocks);
QMI_UNPACKERS(QMI_DECLARE_UNPACK)
#undef QMI_DECLARE_UNPACK

#endif
