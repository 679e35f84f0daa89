/* Products of quantized weights with Q8 activations, with the dot products of bytes of AVX-512 VNNI. */
#include "cpu/x86/x86.h"

#define NAME(stem) qmi_vnni_##stem
#define DOT_BYTES(u, s) _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, s)

#include "cpu/x86/dot_q8_tmpl.h"
