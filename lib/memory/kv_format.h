/* How keys and values lie in a page. A page holds page_tokens tokens of every layer that has keys and values:
 *
 *   page:  | layer 0: keys, values | layer 1: keys, values | ... | multi-token-prediction block |
 *   keys:  [kv_heads][page_tokens] records of head_size numbers (quant/kv_type.h); values likewise
 *
 * so that a session's page table is one list of addresses, and one head's keys of a page are one run of memory. */
#ifndef QMI_MEMORY_KV_FORMAT_H
#define QMI_MEMORY_KV_FORMAT_H

#include "base/options.h"
#include "model/forward.h"

#define QMI_PAGE_TOKENS 64 /* small enough to waste little on short sessions, large enough for long vector runs */

/* What the options say about keys and values: types of their own or that of both, whether quantized ones are turned, and, where
 * either is of q2, how many tokens stay as f16 before they go into pages. */
typedef struct qmi_kv_choice {
    qmi_kv_type key_type, value_type;
    bool rotate_keys, rotate_values;
    int32_t window;
} qmi_kv_choice;

qmi_kv_choice qmi_kv_choice_of(const qmi_settings *settings);
/* mtp: the block's keys and values too. With a window, pages hold what is packed (of a session's last tokens nothing), and a
 * session's recurrent state goes on behind that of the model with [layers] windows of window_bytes (backend/op.h). */
void qmi_kv_layout_make(const qmi_hparams *hparams, const qmi_kv_choice *choice, bool mtp, qmi_kv_layout *out);
int64_t qmi_kv_pages_for(const qmi_kv_layout *layout, int64_t tokens); /* pages that hold so many tokens */
int64_t qmi_kv_token_bytes(const qmi_kv_layout *layout);               /* bytes a token */
/* Bytes [offset, offset + size) of a page are here; zeroes among them what lies behind the page's first `tokens` tokens (more
 * than page_tokens: what the multi-token-prediction block has of the last one counts too). */
void qmi_kv_clear_behind(const qmi_kv_layout *layout, int64_t tokens, uint8_t *bytes, int64_t offset, int64_t size);

#endif
