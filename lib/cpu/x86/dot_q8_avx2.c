/* Products of quantized weights with Q8 activations, AVX2. */
#include "cpu/x86/rows_avx2.h"
#include "cpu/x86/x86.h"

#define NAME(stem) qmi_avx2_##stem
#define DOT_BYTES(u, s) _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1))
#define EIGHT_BITS_SIGNED true
#define BITS_MATTER 1
#define INPUT_BYTES 384 /* sizeof(q8_input) */

/* Makes x there now, in a register. Else gcc adds in a tree, whose numbers do not fit the registers: 78 products a nanosecond
 * instead of 108 (Q4_K, 64 tokens). */
#define SETTLE(x) __asm__("" : "+x"(x))

/* As sub_dot_vnni.h says. Products of two bytes are added in 16 bits: |q| of n bits times 127, twice, leaves room there for so
 * many that 8, 4 or 2 of them can be added before they go to 32 bits; signed bytes, whose sign goes to the activation, for one. */
static ROWS_INLINE void sub_dot(const int tokens, const int groups, const int bits, const void *weights, const int8_t *values,
                                ints *sums)
{
    const int together = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    UNROLL
    for (int g = 0; g < groups; g += together) {
        ints pairs[TOGETHER];
        UNROLL
        for (int i = 0; i < together; i++) {
            ints w = i_load((const char *)weights + (g + i) * (int)sizeof(ints)), q = bits == 8 ? _mm256_abs_epi8(w) : w;
            UNROLL
            for (int t = 0; t < tokens; t++) {
                int32_t word;
                memcpy(&word, values + t * INPUT_BYTES + 4 * (g + i), sizeof word);
                ints x = bits == 8 ? _mm256_sign_epi8(i_all32(word), w) : i_all32(word);
                ints two = _mm256_maddubs_epi16(q, x);
                pairs[t] = i == 0 ? two : _mm256_add_epi16(pairs[t], two);
                SETTLE(pairs[t]);
            }
        }
        UNROLL
        for (int t = 0; t < tokens; t++) {
            sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1)));
            SETTLE(sums[t]);
        }
    }
}

#include "cpu/x86/dot_q8_tmpl.h"
