/* Picking tokens out of the vocabulary: see candidates.h. */
#include "run/candidates.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

#define SCAN_BLOCK 64 /* logits whose maximum is compared at once */
#define LANES 16      /* independent maxima: what a compiler turns into vectors */

/* ---- order ---- */

static bool before(const qmi_candidate *a, const qmi_candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sort_few(qmi_candidate *candidates, int64_t count)
{
    for (int64_t i = 1; i < count; i++) {
        qmi_candidate moved = candidates[i];
        int64_t at = i;
        for (; at > 0 && before(&moved, &candidates[at - 1]); at--)
            candidates[at] = candidates[at - 1];
        candidates[at] = moved;
    }
}

/* ---- scanning ---- */

/* Highest of SCAN_BLOCK values, or of fewer; NaN loses every comparison. */
static float block_highest(const float *x, int32_t count)
{
    float lanes[LANES], highest = -HUGE_VALF;
    for (int j = 0; j < LANES; j++)
        lanes[j] = -HUGE_VALF;
    if (count == SCAN_BLOCK) {
        for (int i = 0; i < SCAN_BLOCK; i += LANES) {
            for (int j = 0; j < LANES; j++)
                lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
        }
    } else {
        for (int32_t i = 0; i < count; i++)
            lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    }
    for (int j = 0; j < LANES; j++)
        highest = lanes[j] > highest ? lanes[j] : highest;
    return highest;
}

static int32_t block_size(int32_t start, int32_t count)
{
    return count - start < SCAN_BLOCK ? count - start : SCAN_BLOCK;
}

int32_t qmi_candidates_highest(const float *x, int32_t count)
{
    float best = -HUGE_VALF;
    int32_t at = 0;
    for (int32_t start = 0; start < count; start += SCAN_BLOCK) {
        float highest = block_highest(x + start, block_size(start, count));
        if (highest > best) {
            best = highest;
            at = start;
        }
    }
    while (best > -HUGE_VALF && x[at] != best)
        at++;
    return at;
}

/* Puts `added` in the heap's free place 0 and lets it sink: the last in order is kept on top. */
static void heap_sink(qmi_candidate *heap, int64_t count, qmi_candidate added)
{
    int64_t at = 0;
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && before(&heap[child], &heap[child + 1]))
            child++;
        if (before(&heap[child], &added))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = added;
}

static void heap_rise(qmi_candidate *heap, int64_t at, qmi_candidate added)
{
    while (at > 0 && before(&heap[(at - 1) / 2], &added)) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = added;
}

int64_t qmi_candidates_first(const float *x, int32_t count, int64_t k, qmi_candidate *heap)
{
    int64_t used = 0;
    float least = -HUGE_VALF; /* to beat: ids rise, so a later one that only equals the last kept stays out */
    for (int32_t start = 0; start < count; start += SCAN_BLOCK) {
        int32_t size = block_size(start, count);
        if (!(block_highest(x + start, size) > least))
            continue;
        for (int32_t i = start; i < start + size; i++) {
            if (!(x[i] > least))
                continue;
            qmi_candidate added = { x[i], 1, i };
            if (used < k)
                heap_rise(heap, used++, added);
            else
                heap_sink(heap, used, added);
            if (used == k)
                least = heap[0].logit;
        }
    }
    sort_few(heap, used);
    return used;
}

/* ---- weights ---- */

typedef union float_bits {
    float number;
    uint32_t bits;
} float_bits;

/* e^a of a = (logit - highest) * inverse, 0 below a = -80 and for NaN. 2^n e^r with |r| <= ln(2) / 2, the series to r^7, whose
 * rest is below 1e-8; ln 2 in two parts so that n ln 2 is exact enough. Adding 1.5 * 2^23 rounds to a whole number and leaves it
 * in the low bits. */
static float weight_of(float logit, float highest, float inverse)
{
    const float magic = 12582912.0f, ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723212e-6f;
    float_bits a = { (logit - highest) * inverse }, power, weight;
    const uint32_t keep = 0u - (uint32_t)(a.number > -80.0f); /* masks instead of branches let the loop become vectors */
    a.bits &= keep;
    power.number = a.number * 1.44269504f + magic;
    float n = power.number - magic, r = a.number - n * ln2_high - n * ln2_low;
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1;
    sum = sum * r + 1;
    power.bits = (power.bits - 0x4B400000u + 127u) << 23; /* 2^n */
    weight.number = sum * power.number;
    weight.bits &= keep;
    return weight.number;
}

void qmi_candidates_weigh(const float *x, int32_t count, float highest, float inverse, float *weights)
{
    for (int32_t i = 0; i < count; i++)
        weights[i] = weight_of(x[i], highest, inverse);
}

double qmi_candidates_reweigh(qmi_candidate *candidates, int64_t count, float highest, float inverse)
{
    for (int64_t i = 0; i < count; i++)
        candidates[i].weight = weight_of(candidates[i].logit, highest, inverse);
    return qmi_candidates_sum(candidates, count);
}

/* ---- the prefix ---- */

static void exchange(qmi_candidate *a, qmi_candidate *b)
{
    qmi_candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* Splits by the median of first, middle and last: what comes before it in order stands before it. Returns its place. */
static int64_t partition(qmi_candidate *candidates, int64_t count)
{
    qmi_candidate *first = candidates, *middle = candidates + count / 2, *last = candidates + count - 1;
    if (before(middle, first))
        exchange(middle, first);
    if (before(last, middle))
        exchange(last, middle);
    if (before(middle, first))
        exchange(middle, first);
    exchange(middle, last);
    int64_t place = 0;
    for (int64_t i = 0; i < count - 1; i++) {
        if (before(&candidates[i], last))
            exchange(&candidates[i], &candidates[place++]);
    }
    exchange(&candidates[place], last);
    return place;
}

double qmi_candidates_sum(const qmi_candidate *candidates, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += candidates[i].weight;
    return sum;
}

int64_t qmi_candidates_prefix(qmi_candidate *candidates, int64_t count, double target)
{
    int64_t low = 0, high = count;
    double sum = 0; /* of those before low, which all belong to it; below target */
    if (target < DBL_MIN)
        target = DBL_MIN;
    while (high - low > 24) {
        int64_t pivot = low + partition(candidates + low, high - low);
        double upper = sum + qmi_candidates_sum(candidates + low, pivot - low);
        if (upper >= target) {
            high = pivot;
            continue;
        }
        sum = upper + candidates[pivot].weight;
        low = pivot + 1;
        if (sum >= target)
            return low;
    }
    sort_few(candidates + low, high - low);
    while (low < high && sum < target)
        sum += candidates[low++].weight;
    return low;
}
