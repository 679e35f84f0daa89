/* Whole-number products of a sub-block (dot_q8_tmpl.h) by dot products of bytes, i_dot(sum, weights, values).
 *
 * sub_dot: sums[t] += products of the weights, `groups` vectors of 4 columns, with 4 * groups values of token t, t < tokens;
 * token t's values lie INPUT_BYTES behind the former's. bits: that the weights have; 8 are signed where EIGHT_BITS_SIGNED. */
#ifndef QMI_CPU_X86_SUB_DOT_VNNI_H
#define QMI_CPU_X86_SUB_DOT_VNNI_H

#include <string.h>

#define EIGHT_BITS_SIGNED false
#define BITS_MATTER 0
#define INPUT_BYTES 384 /* sizeof(q8_input) */

static ROWS_INLINE void sub_dot(const int tokens, const int groups, const int bits, const void *weights, const int8_t *values,
                                ints *sums)
{
    (void)bits;
    for (int g = 0; g < groups; g++) {
        ints w = i_load((const char *)weights + g * (int)sizeof(ints));
        UNROLL
        for (int t = 0; t < tokens; t++) {
            int32_t word;
            memcpy(&word, values + t * INPUT_BYTES + 4 * g, sizeof word);
            sums[t] = i_dot(sums[t], w, i_all32(word));
        }
    }
}

#endif
