/* How keys and values lie in a page: see kv_format.h. */
#include "memory/kv_format.h"

#include <string.h>

/* That of the option, or, where it says "same", of kv-type. The table offers no names but these. */
static qmi_kv_type type_of(const qmi_settings *settings, qmi_option_id id)
{
    int32_t type = qmi_kv_type_find(qmi_settings_text(settings, id));
    return type < QMI_KV_TYPES ? (qmi_kv_type)type : type_of(settings, QMI_OPT_KV_TYPE);
}

qmi_kv_choice qmi_kv_choice_of(const qmi_settings *settings)
{
    const char *rotation = qmi_settings_text(settings, QMI_OPT_KV_ROTATION);
    qmi_kv_choice choice = { .key_type = type_of(settings, QMI_OPT_KEY_TYPE),
                             .value_type = type_of(settings, QMI_OPT_VALUE_TYPE) };
    bool by_channel = choice.key_type == QMI_KV_Q2;
    choice.rotate_keys = qmi_kv_formats[choice.key_type].quantized && !by_channel && strcmp(rotation, "off") != 0;
    choice.rotate_values = qmi_kv_formats[choice.value_type].quantized && strcmp(rotation, "on") == 0;
    if (by_channel || choice.value_type == QMI_KV_Q2)
        choice.window = (int32_t)qmi_settings_int(settings, QMI_OPT_KV_WINDOW);
    return choice;
}

void qmi_kv_layout_make(const qmi_hparams *hparams, const qmi_kv_choice *choice, bool mtp, qmi_kv_layout *out)
{
    int64_t layers = hparams->attention_layers + (mtp ? hparams->mtp_layers : 0);
    int64_t heads = (int64_t)QMI_PAGE_TOKENS * hparams->kv_heads;
    int64_t keys = heads * qmi_kv_head_bytes(choice->key_type, hparams->head_size);
    int64_t values = heads * qmi_kv_head_bytes(choice->value_type, hparams->head_size);
    *out = (qmi_kv_layout){ .key_type = choice->key_type, .value_type = choice->value_type, .rotate_keys = choice->rotate_keys,
                            .rotate_values = choice->rotate_values, .page_tokens = QMI_PAGE_TOKENS, .layer_bytes = keys + values,
                            .value_offset = keys, .page_bytes = (keys + values) * layers,
                            .mtp_offset = (keys + values) * hparams->attention_layers, .heads = hparams->kv_heads,
                            .window = choice->window };
    if (choice->key_type == QMI_KV_Q2)
        out->correction_floats = 2 * hparams->kv_heads * (int64_t)hparams->head_size * hparams->head_size;
    if (!choice->window)
        return;
    out->window_offset = qmi_hparams_state_bytes(hparams);
    out->window_bytes = 2 * hparams->kv_heads * (int64_t)(choice->window + QMI_KV_GROUP) * hparams->head_size * 2;
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
        if (layout->window)
            kept = qmi_kv_packed(layout->window, held) > 0 ? layout->page_tokens : 0;
        for (int part = 0; part < 2; part++) {
            int64_t start = layer + parts[part][0], head = (parts[part][1] - parts[part][0]) / layout->heads;
            for (int32_t i = 0; i < layout->heads; i++, start += head)
                clear(bytes, offset, size, start + head / layout->page_tokens * kept, start + head);
        }
    }
}
