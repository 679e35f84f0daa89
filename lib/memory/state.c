/* States and their pool: see state.h. */
#include "memory/state.h"

#include <inttypes.h>
#include "base/error.h"

/* Free blocks that stay allocated: what one session needs, so that it never waits for the device's allocator, and as many again
 * for what checkpoints take and give back. */
#define KEPT 4
#define FIRST 2

static int64_t round_up(int64_t bytes)
{
    return (bytes + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
}

void qmi_state_layout_make(const qmi_hparams *hparams, const qmi_kv_layout *kv, bool mtp, qmi_state_layout *out)
{
    *out = (qmi_state_layout){ .recurrent_bytes = qmi_hparams_state_bytes(hparams) + hparams->attention_layers * kv->window_bytes,
                               .hidden_bytes = mtp ? hparams->hidden * (int64_t)sizeof(float) : 0,
                               .logits_bytes = hparams->vocabulary * (int64_t)sizeof(float) };
    out->bytes = round_up(out->recurrent_bytes) + round_up(out->hidden_bytes) + round_up(out->logits_bytes);
}

static int32_t add_block(qmi_state_pool *pool)
{
    const qmi_state_layout *layout = &pool->layout;
    const qmi_content content = { .kind = QMI_CONTENT_STATES };
    qmi_address memory;
    qmi_state *state = qmi_new(pool->alloc, 1, sizeof *state, "a session's state");
    if (!state)
        return QM_ERROR_MEMORY;
    int32_t code = qmi_backend_allocate(pool->backend, pool->device, &content, layout->bytes, "a session's state", &memory);
    if (code < 0) {
        qmi_delete(pool->alloc, state);
        return code;
    }
    /* The recurrent state is first, so that the block's address is its own. */
    qmi_address behind = memory + (qmi_address)round_up(layout->recurrent_bytes);
    *state = (qmi_state){ .recurrent = layout->recurrent_bytes ? memory : 0, .hidden = layout->hidden_bytes ? behind : 0,
                          .logits = behind + (qmi_address)round_up(layout->hidden_bytes), .next = pool->free };
    pool->free = state;
    pool->free_count++;
    pool->count++;
    return QM_OK;
}

static qmi_address block_of(const qmi_state *state)
{
    return state->recurrent ? state->recurrent : state->hidden ? state->hidden : state->logits;
}

static qmi_state *pop_free(qmi_state_pool *pool)
{
    qmi_state *state = pool->free;
    pool->free = state->next;
    pool->free_count--;
    state->next = NULL;
    return state;
}

static void remove_free(qmi_state_pool *pool)
{
    qmi_state *state = pop_free(pool);
    pool->backend->release(pool->device, block_of(state));
    pool->count--;
    qmi_delete(pool->alloc, state);
}

int32_t qmi_state_pool_open(qmi_state_pool *pool, const qmi_state_layout *layout, const qmi_backend *backend,
                            qmi_device *device, const qmi_alloc *alloc)
{
    *pool = (qmi_state_pool){ .layout = *layout, .backend = backend, .device = device, .alloc = alloc };
    int32_t code = QM_OK;
    while (pool->count < FIRST && code >= 0)
        code = add_block(pool);
    return code;
}

void qmi_state_pool_close(qmi_state_pool *pool)
{
    while (pool->free)
        remove_free(pool);
    *pool = (qmi_state_pool){ 0 };
}

int32_t qmi_state_take(qmi_state_pool *pool, qmi_state **out)
{
    *out = NULL;
    int32_t code = pool->free ? QM_OK : add_block(pool);
    while (!pool->free && pool->reclaim && pool->reclaim(pool->user))
        code = QM_OK;
    if (!pool->free)
        return code == QM_ERROR_MEMORY
                   ? qmi_fail(code, "no memory is left for another session's state: it takes %" PRId64 " bytes, and %" PRId64
                              " such states are held; free a session", pool->layout.bytes, pool->count)
                   : code;
    *out = pop_free(pool);
    (*out)->references = 1;
    (*out)->has_picks = false;
    return QM_OK;
}

qmi_state *qmi_state_retain(qmi_state *state)
{
    if (state)
        state->references++;
    return state;
}

void qmi_state_release(qmi_state_pool *pool, qmi_state **state)
{
    qmi_state *held = *state;
    *state = NULL;
    if (!held || --held->references > 0)
        return;
    held->next = pool->free;
    pool->free = held;
    if (++pool->free_count > KEPT)
        remove_free(pool);
}
