/* Bodies of the element-wise kernels: norms, gates, the pieces of a softmax, rotation. Included by an instance after its
 * vector_*.h, which gives `vector`, LANES, NAME and the v_ functions. Tested for LANES 8 and 16. */
#include <math.h>
#include "cpu/kernels.h"

/* exp(x), within 2 units in the last place. Method: x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite: ln 2 in two parts, the
 * first with few bits so that n ln2_high is exact), exp(r) by its Taylor series to r^7 (rest below 6e-9 of it), times 2^n. */
static inline vector v_exp(vector x)
{
    x = v_max(v_all(-104.0f), v_min(v_all(88.7f), x)); /* in this order a NaN stays: min and max give their second operand then */
    vector n = v_round(v_mul(x, v_all(1.44269504f)));
    vector r = v_fma(n, v_all(-0.693359375f), x);
    r = v_fma(n, v_all(2.12194440e-4f), r);
    vector p = v_all(1.0f / 5040);
    p = v_fma(p, r, v_all(1.0f / 720));
    p = v_fma(p, r, v_all(1.0f / 120));
    p = v_fma(p, r, v_all(1.0f / 24));
    p = v_fma(p, r, v_all(1.0f / 6));
    p = v_fma(p, r, v_all(0.5f));
    p = v_fma(p, r, v_all(1.0f));
    p = v_fma(p, r, v_all(1.0f));
    return v_scale(p, n);
}

/* 1 / (1 + exp(-x)) = e / (1 + e) with e = exp(x) for negative x, so that the exponential never overflows. */
static inline vector v_sigmoid(vector x)
{
    vector e = v_exp(v_sub(v_zero(), v_abs(x)));
    return v_div(v_if_negative(x, e, v_all(1.0f)), v_add(v_all(1.0f), e));
}

float NAME(maximum)(const float *x, int64_t count)
{
    vector largest = v_all(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        largest = v_max(v_load(x + i), largest);
    float result = v_largest(largest);
    for (; i < count; i++)
        if (x[i] > result)
            result = x[i];
    return result;
}

float NAME(exp_sum)(float *x, int64_t count, float shift)
{
    vector sum = v_zero(), by = v_all(shift);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vector e = v_exp(v_sub(v_load(x + i), by));
        v_store(x + i, e);
        sum = v_add(sum, e);
    }
    if (i < count) {
        v_store_part(x + i, v_exp(v_sub(v_load_part(x + i, count - i), by)), count - i);
        sum = v_add(sum, v_load_part(x + i, count - i)); /* loaded again: lanes beyond the end are zero */
    }
    return v_sum(sum);
}

void NAME(blend)(float *y, float a, const float *x, float b, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        vector scaled = v_mul(v_all(a), v_load_part(y + i, n));
        v_store_part(y + i, v_fma(v_all(b), v_load_part(x + i, n), scaled), n);
    }
}

static float sum_of_squares(const float *x, int64_t count)
{
    vector even = v_zero(), odd = v_zero();
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        vector a = v_load(x + i), b = v_load(x + i + LANES);
        even = v_fma(a, a, even);
        odd = v_fma(b, b, odd);
    }
    for (; i < count; i += LANES) {
        vector a = v_load_part(x + i, count - i < LANES ? count - i : LANES);
        even = v_fma(a, a, even);
    }
    return v_sum(v_add(even, odd));
}

void NAME(rms)(const float *x, const float *weight, float epsilon, float *out, int64_t count)
{
    vector scale = v_all(1.0f / sqrtf(sum_of_squares(x, count) / (float)count + epsilon));
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        v_store_part(out + i, v_mul(v_mul(v_load_part(x + i, n), scale), v_load_part(weight + i, n)), n);
    }
}

void NAME(unit)(float *x, float epsilon, float scale, int64_t count)
{
    vector by = v_all(scale / sqrtf(sum_of_squares(x, count) + epsilon));
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        v_store_part(x + i, v_mul(v_load_part(x + i, n), by), n);
    }
}

void NAME(silu_mul)(const float *gate, const float *x, float *out, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        vector g = v_load_part(gate + i, n);
        v_store_part(out + i, v_mul(v_mul(g, v_sigmoid(g)), v_load_part(x + i, n)), n);
    }
}

void NAME(sigmoid_mul)(const float *gate, float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        v_store_part(x + i, v_mul(v_load_part(x + i, n), v_sigmoid(v_load_part(gate + i, n))), n);
    }
}

void NAME(rotate)(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i += LANES) {
        int64_t n = half - i < LANES ? half - i : LANES;
        vector a = v_load_part(x + i, n), b = v_load_part(x + i + half, n), c = v_load_part(cosine + i, n), s = v_load_part(sine +
                                                                                                                            i, n);
        v_store_part(x + i, v_sub(v_mul(a, c), v_mul(b, s)), n);
        v_store_part(x + i + half, v_fma(b, c, v_mul(a, s)), n);
    }
}
