/* Products of quantized weights with Q8 activations, AVX-512 with its dot products of bytes. */
#include "cpu/x86/rows_avx512.h"
#include "cpu/x86/sub_dot_vnni.h"
#include "cpu/x86/x86.h"

#define NAME(stem) qmi_vnni_##stem
#define DOT_BYTES(u, s) _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, s)
#include "cpu/x86/dot_q8_tmpl.h"
