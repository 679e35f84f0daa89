/* Products of quantized weights with Q8 activations, AVX2 with the dot products of bytes of AVX-VNNI.
 *
 * That instruction is AVX-512's in another encoding. With QMI_BY_AVX512 the latter is compiled, under other names, so that the op
 * check can run all of this on a processor that has only that one. */
#include "cpu/x86/rows_avx2.h"
#include "cpu/x86/x86.h"

#ifdef QMI_BY_AVX512
#define NAME(stem) qmi_byavx512_##stem
QMI_DECLARE_Q8_KERNELS(byavx512)
static inline ints i_dot(ints sum, ints weights, ints values) { return _mm256_dpbusd_epi32(sum, weights, values); }
#else
#define NAME(stem) qmi_avxvnni_##stem
static inline ints i_dot(ints sum, ints weights, ints values) { return _mm256_dpbusd_avx_epi32(sum, weights, values); }
#endif
#define DOT_BYTES(u, s) i_dot(i_zero(), u, s)

#include "cpu/x86/sub_dot_vnni.h"
#include "cpu/x86/dot_q8_tmpl.h"
