/* How keys and values lie in a page: see kv_format.h. */
#include "memory/kv_format.h"

#include "quant/quant.h"

void qmi_kv_layout_make(const qmi_hparams *hparams, uint32_t type, bool mtp, qmi_kv_layout *out)
{
    int64_t layers = hparams->attention_layers + (mtp ? hparams->mtp_layers : 0);
    int64_t head_bytes = qmi_quant_row_bytes(type, (int64_t)QMI_PAGE_TOKENS * hparams->head_size);
    int64_t half = head_bytes * hparams->kv_heads;
    *out = (qmi_kv_layout){ .type = type, .page_tokens = QMI_PAGE_TOKENS, .layer_bytes = 2 * half, .value_offset = half,
                            .page_bytes = 2 * half * layers };
}

int64_t qmi_kv_pages_for(const qmi_kv_layout *layout, int64_t tokens)
{
    return (tokens + layout->page_tokens - 1) / layout->page_tokens;
}

int64_t qmi_kv_token_bytes(const qmi_kv_layout *layout)
{
    return layout->page_bytes / layout->page_tokens;
}
