/* Lent experts that are chosen often, on the card: see cuda_cache.h. */
#include "cuda_device.h"

extern "C" {
#include "cuda_backend.h"
}

#include <string.h>

#define HALVE_AFTER 64         /* choices an expert, on the average, until all counts are halved */
/* An expert takes another's place when it was chosen by a quarter more often, and this: where all are chosen alike none should
 * go. */
#define MARGIN 8

/* ---- room ---- */

static int64_t matrix_bytes(const qmi_device *device, int32_t matrix, int64_t experts_of, int64_t slots)
{
    const cuda_lent_matrix *m = &device->lender.matrices[matrix];
    uint32_t type = m->type;
    return qmi_cuda_matrix_bytes(&type, m->columns, m->rows / experts_of * slots); /* a multiple of QMI_CUDA_PLANE_ALIGN */
}

static int64_t table_bytes(const cuda_lent *lent, int32_t experts)
{
    return (int64_t)lent->list_count * experts * (int64_t)sizeof(int32_t);
}

static int64_t bytes_for(const qmi_device *device, const cuda_lent *lent, int32_t experts, int32_t slots)
{
    int64_t bytes = table_bytes(lent, experts);
    for (size_t k = 0; k < lent->list_count; k++)
        for (int i = 0; i < CUDA_LEND_MATRICES; i++)
            if (lent->list[k].matrix[i] >= 0)
                bytes += matrix_bytes(device, lent->list[k].matrix[i], experts, slots + 1);
    return bytes;
}

/* As many as fit; one of an op has to stay out. */
static int32_t most_slots(const qmi_device *device, const cuda_lent *lent, int32_t experts, int64_t bytes)
{
    int32_t low = 0, high = experts - 1;
    while (low < high) {
        const int32_t middle = (low + high + 1) / 2;
        if (bytes_for(device, lent, experts, middle) <= bytes)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* An op's matrices, from `at` on; returns where they end. */
static uint8_t *lay_out(const qmi_device *device, const cuda_lent *lent, size_t k, uint8_t *at)
{
    cuda_cached_op *op = &lent->cache.ops[k];
    const cuda_lent_op *entry = &lent->list[k];
    const qmi_op_experts *whole = &lent->ops[entry->op].experts;
    const qmi_matrix *from[CUDA_LEND_MATRICES] = { &whole->gate, &whole->up, &whole->down };
    qmi_matrix *to[CUDA_LEND_MATRICES] = { &op->gate, &op->up, &op->down };
    for (int i = 0; i < CUDA_LEND_MATRICES; i++) {
        *to[i] = *from[i];
        if (entry->matrix[i] < 0)
            continue;
        to[i]->count = lent->cache.slots + 1;
        to[i]->data = (qmi_address)at;
        at += matrix_bytes(device, entry->matrix[i], lent->cache.experts, lent->cache.slots + 1);
    }
    return at;
}

static int32_t make_lists(qmi_device *device, cuda_lent *lent)
{
    cuda_cache *cache = &lent->cache;
    const size_t experts = (size_t)cache->experts, slots = (size_t)cache->slots;
    cache->count = lent->list_count;
    cache->ops = (cuda_cached_op *)qmi_new(&device->alloc, cache->count, sizeof *cache->ops, "a cache of experts");
    cache->table = (int32_t *)qmi_new(&device->alloc, cache->count * experts, sizeof *cache->table, "a cache of experts");
    if (!cache->ops || !cache->table)
        return QM_ERROR_MEMORY;
    for (size_t k = 0; k < cache->count; k++) {
        cuda_cached_op *op = &cache->ops[k];
        op->expert = (int32_t *)qmi_new(&device->alloc, slots, sizeof *op->expert, "a cache of experts");
        op->heat = (uint32_t *)qmi_new(&device->alloc, experts, sizeof *op->heat, "a cache of experts");
        if (!op->expert || !op->heat)
            return QM_ERROR_MEMORY;
        op->slot = cache->table + k * experts;
        memset(op->expert, -1, slots * sizeof *op->expert);
        memset(op->slot, -1, experts * sizeof *op->slot);
    }
    return QM_OK;
}

void cuda_cache_free(qmi_device *device, cuda_cache *cache)
{
    if (cache->coming_count > 0 && device->lender.filler)
        (void)cuda_uploader_join(device->lender.filler, device->stream); /* no copy begins behind the freeing */
    if (cache->chosen > 0)
        qmi_log_line(&device->log, QM_LOG_INFO, "CUDA: card %d had %.1f %% of %lld chosen experts of the host's memory in its "
                     "cache", device->index, 100.0 * (double)cache->found / (double)cache->chosen, (long long)cache->chosen);
    for (size_t k = 0; k < cache->count && cache->ops; k++) {
        qmi_delete(&device->alloc, cache->ops[k].expert);
        qmi_delete(&device->alloc, cache->ops[k].heat);
    }
    qmi_delete(&device->alloc, cache->ops);
    qmi_delete(&device->alloc, cache->table);
    cuda_give(device, cache->room, cache->bytes);
    memset(cache, 0, sizeof *cache);
}

int32_t cuda_cache_make(qmi_device *device, cuda_lent *lent, int64_t bytes)
{
    cuda_cache *cache = &lent->cache;
    void *room = NULL;
    if (bytes <= 0 || lent->list_count == 0)
        return QM_OK;
    const int64_t experts = lent->ops[lent->list[0].op].experts.gate.count;
    for (size_t k = 1; k < lent->list_count; k++)
        if (lent->ops[lent->list[k].op].experts.gate.count != experts)
            return QM_OK;
    cache->experts = (int32_t)experts;
    cache->slots = most_slots(device, lent, cache->experts, bytes);
    if (cache->slots == 0) {
        qmi_log_line(&device->log, QM_LOG_WARNING, "card %d: %lld bytes are too few for a cache of experts (option expert-cache)",
                     device->index, (long long)bytes);
        return QM_OK;
    }
    bytes = bytes_for(device, lent, cache->experts, cache->slots);
    int32_t code = make_lists(device, lent);
    if (code >= 0)
        code = cuda_take(device, bytes, "a cache of experts", &room);
    if (code >= 0) {
        cache->room = (uint8_t *)room;
        cache->bytes = bytes;
        code = cuda_check(device, cudaMemsetAsync(room, 0, (size_t)bytes, device->stream), "clearing memory");
    }
    if (code >= 0) /* readers have streams of their own */
        code = cuda_check(device, cudaStreamSynchronize(device->stream), "clearing memory");
    if (code < 0) {
        cuda_cache_free(device, cache);
        return code;
    }
    uint8_t *at = cache->room;
    for (size_t k = 0; k < cache->count; k++)
        at = lay_out(device, lent, k, at);
    cache->card_table = (int32_t *)at;
    cache->changed = true;
    qmi_log_line(&device->log, QM_LOG_INFO, "CUDA: card %d has room for %d of %d experts of %zu layers in the host's memory",
                 device->index, cache->slots, cache->experts, cache->count);
    return QM_OK;
}

/* ---- before a run ---- */

/* It goes on with what it has. */
static void stop(const qmi_device *device, cuda_cache *cache)
{
    cache->stopped = true;
    qmi_log_line(&device->log, QM_LOG_WARNING, "card %d: no more experts come into its cache: %s", device->index,
                 qmi_error_text());
}

/* What was under way is there, or the reader has failed. */
static void settle(qmi_device *device, cuda_cache *cache)
{
    cuda_uploader *filler = device->lender.filler;
    if (cache->coming_count == 0 || !cuda_uploader_has_read(filler))
        return;
    const int32_t code = cuda_uploader_join(filler, device->stream);
    for (int32_t i = 0; i < cache->coming_count; i++) {
        cuda_cached_op *op = &cache->ops[cache->coming[i].op];
        if (code < 0)
            op->expert[cache->coming[i].slot] = -1;
        else
            op->slot[cache->coming[i].expert] = cache->coming[i].slot;
    }
    cache->coming_count = 0;
    cache->changed = true;
    if (code < 0)
        stop(device, cache);
}

int32_t cuda_cache_begin(qmi_device *device, cuda_lent *lent)
{
    cuda_cache *cache = &lent->cache;
    if (!cache->ops)
        return QM_OK;
    settle(device, cache);
    if (!cache->changed)
        return QM_OK;
    const size_t bytes = (size_t)table_bytes(lent, cache->experts);
    const int32_t code = cuda_check(device, cudaMemcpyAsync(cache->card_table, cache->table, bytes, cudaMemcpyHostToDevice,
                                                            device->stream), "a copy");
    cache->changed = code < 0;
    return code;
}

/* ---- what was chosen ---- */

static void halve(cuda_cached_op *op, int32_t experts)
{
    for (int32_t e = 0; e < experts; e++)
        op->heat[e] /= 2;
    op->noted = 0;
}

void cuda_cache_note(cuda_lent *lent, size_t k, const float *route, int32_t rows, int32_t top)
{
    cuda_cache *cache = &lent->cache;
    cuda_cached_op *op = &cache->ops[k];
    for (int32_t row = 0; row < rows; row++)
        for (int32_t i = 0; i < top; i++) {
            const float choice = route[row * (2 * top + 1) + i];
            op->heat[cuda_cache_expert(choice)]++;
            cache->found += choice < 0;
        }
    cache->chosen += (int64_t)rows * top;
    op->noted += (int64_t)rows * top;
    if (op->noted > (int64_t)HALVE_AFTER * cache->experts)
        halve(op, cache->experts);
}

/* ---- after a run ---- */

/* The hottest of those that are not there, if it is worth a place: *slot. */
static int32_t choose(const cuda_cache *cache, const cuda_cached_op *op, int32_t *slot)
{
    int32_t hottest = -1, coldest = 0;
    for (int32_t e = 0; e < cache->experts; e++)
        if (op->slot[e] < 0 && (hottest < 0 || op->heat[e] > op->heat[hottest]))
            hottest = e;
    for (int32_t s = 0; s < cache->slots; s++) {
        const int32_t e = op->expert[s];
        if (e < 0) {
            *slot = s;
            return op->heat[hottest] > 0 ? hottest : -1;
        }
        if (op->heat[e] < op->heat[op->expert[coldest]])
            coldest = s;
    }
    const uint32_t cold = op->heat[op->expert[coldest]];
    *slot = coldest;
    return op->heat[hottest] > cold + cold / 4 + MARGIN ? hottest : -1;
}

static int32_t bring(qmi_device *device, const cuda_lent *lent, size_t k, int32_t expert, int32_t slot)
{
    const cuda_cached_op *op = &lent->cache.ops[k];
    const qmi_matrix *to[CUDA_LEND_MATRICES] = { &op->gate, &op->up, &op->down };
    int32_t code = QM_OK;
    for (int i = 0; i < CUDA_LEND_MATRICES && code >= 0; i++) {
        if (lent->list[k].matrix[i] < 0)
            continue;
        const cuda_lent_matrix *m = &device->lender.matrices[lent->list[k].matrix[i]];
        const int64_t rows = m->rows / lent->cache.experts, row_bytes = qmi_quant_row_bytes(m->type, m->columns);
        const cuda_upload_part part = { (const uint8_t *)m->data + expert * rows * row_bytes, slot * rows, rows };
        code = cuda_uploader_add_part(device->lender.filler, &part, m->type, m->columns, to[i]->count * rows,
                                      (void *)to[i]->data);
    }
    return code;
}

void cuda_cache_end(qmi_device *device, cuda_lent *lent)
{
    cuda_cache *cache = &lent->cache;
    const size_t ops = cache->count < CUDA_CACHE_COMING ? cache->count : CUDA_CACHE_COMING; /* each once: one expert of an op */
    int32_t code = QM_OK;
    if (!cache->ops || cache->stopped || cache->coming_count > 0)
        return;
    for (size_t n = 0; n < ops && code >= 0; n++) {
        const size_t k = cache->next;
        cuda_cached_op *op = &cache->ops[k];
        int32_t slot = 0;
        cache->next = (k + 1) % cache->count;
        const int32_t expert = choose(cache, op, &slot);
        if (expert < 0)
            continue;
        code = cuda_lend_start_filler(device);
        if (op->expert[slot] >= 0) { /* not after this run */
            op->slot[op->expert[slot]] = -1;
            cache->changed = true;
        }
        op->expert[slot] = -1;
        if (code >= 0)
            code = bring(device, lent, k, expert, slot);
        if (code < 0)
            break;
        op->expert[slot] = expert;
        cache->coming[cache->coming_count].op = k;
        cache->coming[cache->coming_count].expert = expert;
        cache->coming[cache->coming_count++].slot = slot;
    }
    if (code < 0)
        stop(device, cache);
}
