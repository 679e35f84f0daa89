/* Products of quantized weights with Q8 activations, AVX2. */
#include "cpu/x86/x86.h"

#define NAME(stem) qmi_avx2_##stem
#define DOT_BYTES(u, s) _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1))

#include "cpu/x86/dot_q8_tmpl.h"
