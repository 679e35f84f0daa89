/* How keys and values lie in a page: see kv_format.h. */
#include "memory/kv_format.h"

#include <string.h>
#include "quant/quant.h"

void qmi_kv_layout_make(const qmi_hparams *hparams, uint32_t type, bool mtp, qmi_kv_layout *out)
{
    int64_t layers = hparams->attention_layers + (mtp ? hparams->mtp_layers : 0);
    int64_t head_bytes = qmi_quant_row_bytes(type, (int64_t)QMI_PAGE_TOKENS * hparams->head_size);
    int64_t half = head_bytes * hparams->kv_heads;
    *out = (qmi_kv_layout){ .type = type, .page_tokens = QMI_PAGE_TOKENS, .layer_bytes = 2 * half, .value_offset = half,
                            .page_bytes = 2 * half * layers, .mtp_offset = 2 * half * hparams->attention_layers,
                            .heads = hparams->kv_heads };
}

int64_t qmi_kv_pages_for(const qmi_kv_layout *layout, int64_t tokens)
{
    return (tokens + layout->page_tokens - 1) / layout->page_tokens;
}

int64_t qmi_kv_token_bytes(const qmi_kv_layout *layout)
{
    return layout->page_bytes / layout->page_tokens;
}

/* Zeroes bytes [from, to) of a page, of which bytes [offset, offset + size) are there. */
static void clear(uint8_t *bytes, int64_t offset, int64_t size, int64_t from, int64_t to)
{
    from = from < offset ? offset : from;
    to = to > offset + size ? offset + size : to;
    if (from < to)
        memset(bytes + (from - offset), 0, (size_t)(to - from));
}

void qmi_kv_clear_behind(const qmi_kv_layout *layout, int64_t tokens, uint8_t *bytes, int64_t offset, int64_t size)
{
    const int64_t parts[2][2] = { { 0, layout->value_offset }, { layout->value_offset, layout->layer_bytes } };
    for (int64_t layer = 0; layer < layout->page_bytes; layer += layout->layer_bytes) {
        /* The block's keys and values of a token are computed with the token after it. */
        int64_t held = layer == layout->mtp_offset ? tokens - 1 : tokens;
        int64_t kept = held < 0 ? 0 : held > layout->page_tokens ? layout->page_tokens : held;
        for (int part = 0; part < 2; part++) {
            int64_t start = layer + parts[part][0], head = (parts[part][1] - parts[part][0]) / layout->heads;
            for (int32_t i = 0; i < layout->heads; i++, start += head)
                clear(bytes, offset, size, start + head / layout->page_tokens * kept, start + head);
        }
    }
}
