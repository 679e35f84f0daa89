/* Which instruction sets this processor has, and which of them are used. */
#ifndef QMI_CPU_CPU_FEATURES_H
#define QMI_CPU_CPU_FEATURES_H

#include <stdint.h>

enum {
    QMI_CPU_AVX2 = 1,        /* AVX2, FMA and F16C */
    QMI_CPU_AVX512 = 2,      /* AVX-512 F, BW, VL and DQ, besides AVX2 */
    QMI_CPU_AVX512_VNNI = 4, /* dot products of bytes, besides AVX512 */
    QMI_CPU_AVX_VNNI = 8,    /* the same on vectors of AVX2, besides that */
    QMI_CPU_AMX = 16         /* tiles of bytes, besides AVX512_VNNI */
};

/* What processor and operating system both support. */
uint32_t qmi_cpu_features_present(void);

/* Those of them to use. isa: "scalar", "avx2", "avx512", "amx": nothing above it (AVX_VNNI is above avx2); "auto" or NULL: what
 * is fastest, so that an instruction set which is there but does not pay is left out. Tiles (amx, auto) are asked for from the
 * operating system, and left out where it refuses them. */
uint32_t qmi_cpu_features_chosen(const char *isa);

/* The processor's own name ("AMD EPYC 9V84"), or its architecture. */
void qmi_cpu_features_name(char *name, int32_t size);

#endif
