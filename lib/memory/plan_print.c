/* The plan as a table for people and as JSON: see plan.h. */
#include "memory/split.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/print.h"
#include "quant/quant.h"

static void put_row(qmi_print *w, const char *name, int64_t bytes, const char *note)
{
    qmi_put(w, "  %-22s %15" PRId64 "  %9.1f MiB%s%s\n", name, bytes, (double)bytes / (1 << 20), *note ? "  " : "", note);
}

static const char *key_name(const qmi_plan *plan)
{
    return qmi_kv_formats[plan->kv.key_type].name;
}

static const char *value_name(const qmi_plan *plan)
{
    return qmi_kv_formats[plan->kv.value_type].name;
}

static const char *rotation_of(const qmi_plan *plan)
{
    return plan->kv.rotate_values ? ", rotated" : plan->kv.rotate_keys ? ", keys rotated" : "";
}

static void put_head(qmi_print *w, const qmi_plan *plan)
{
    const qmi_hparams *h = &plan->hparams;
    qmi_put(w, "%s: %d layers (%d attention, %d delta)%s, width %d, vocabulary %d, trained for %" PRId64 " tokens\n",
            h->arch->name, h->layers, h->attention_layers, h->delta_layers,
            h->mtp_layers ? " and a multi-token-prediction block" : "", h->hidden, h->vocabulary, h->context);
    if (h->experts)
        qmi_put(w, "experts: %d of width %d, %d used%s\n", h->experts, h->expert_width, h->experts_used,
                h->shared_width ? ", and a shared one" : "");
    qmi_put(w, "context %" PRId64 ", chunk %d, sequences %d, keys %s, values %s%s\n\n", plan->context, plan->chunk,
            plan->sequences, key_name(plan), value_name(plan), rotation_of(plan));
}

/* The first type of the file at or after `type` of which matrices are converted; QMI_TYPE_COUNT: none. */
static uint32_t next_converted(const qmi_plan *plan, uint32_t type)
{
    while (type < QMI_TYPE_COUNT && !plan->sums.converted[type])
        type++;
    return type;
}

static void put_converted(qmi_print *w, const qmi_plan *plan)
{
    for (uint32_t t = next_converted(plan, 0); t < QMI_TYPE_COUNT; t = next_converted(plan, t + 1)) {
        int32_t count = plan->sums.converted[t];
        qmi_put(w, "%s%d %s of type %s %s kept as %s, which loses nothing\n", t == next_converted(plan, 0) ? "\n" : "", count,
                count == 1 ? "matrix" : "matrices", qmi_quant_format_of(t)->name, count == 1 ? "is" : "are",
                qmi_quant_format_of(plan->sums.kept_as[t])->name);
    }
}

int64_t qmi_plan_table(const qmi_plan *plan, char *text, int64_t size)
{
    const qmi_hparams *h = &plan->hparams;
    qmi_print w = { text, size, 0 };
    char note[160];
    int64_t kv_layers = plan->kv.layer_bytes ? plan->kv.page_bytes / plan->kv.layer_bytes : 0;

    put_head(&w, plan);
    qmi_put(&w, "  %-22s %15s\n", "part", "bytes");
    put_row(&w, "weights", plan->weights, plan->mapped ? "used where the file is mapped" : "");
    put_row(&w, "vectors", plan->vectors, "norms and the like, as f32");
    if (plan->correction)
        put_row(&w, "correction of keys", plan->correction, "");
    put_row(&w, "activations", plan->workspace, "");
    put_row(&w, "scratch", plan->scratch, "");
    if (plan->fixed)
        put_row(&w, "backend", plan->fixed, "in any case");
    snprintf(note, sizeof note,
             "%" PRId64 " tokens x %" PRId64 " layers x %d heads x (%" PRId64 " + %" PRId64 ") bytes of %d numbers",
             qmi_kv_pages_for(&plan->kv, plan->context) * plan->kv.page_tokens, kv_layers, h->kv_heads,
             qmi_kv_head_bytes(plan->kv.key_type, h->head_size), qmi_kv_head_bytes(plan->kv.value_type, h->head_size),
             h->head_size);
    put_row(&w, "keys and values", plan->kv_session, note);
    if (plan->kv_pool > plan->kv_session)
        put_row(&w, "... of more sessions", plan->kv_pool - plan->kv_session, "up to kv-memory");
    snprintf(note, sizeof note, "2 x %d layers x (%d x %" PRId64 " + %d x %d x %d) x 4 bytes", h->delta_layers, h->taps - 1,
             qmi_hparams_channels(h), h->value_heads, h->key_size, h->value_size);
    int64_t windows = 2 * h->attention_layers * plan->kv.window_bytes;
    put_row(&w, "recurrent state", plan->state_session - windows, h->delta_layers ? note : "");
    snprintf(note, sizeof note, "2 x %d layers x %d heads x 2 x (%d + %d) tokens x %d numbers of f16", h->attention_layers,
             h->kv_heads, plan->kv.window, QMI_KV_GROUP, h->head_size);
    if (windows)
        put_row(&w, "latest keys and values", windows, note);
    snprintf(note, sizeof note, "2 x %d%s values x 4 bytes", h->vocabulary, plan->mtp ? " and the hidden state's" : "");
    put_row(&w, "last logits", plan->logits_session, note);
    if (plan->checkpoints)
        snprintf(note, sizeof note, "%d states to go back to, and a page of keys and values each", plan->checkpoints);
    else
        snprintf(note, sizeof note, "none: a prompt that differs from the one before is computed from its start");
    put_row(&w, "checkpoints", plan->checkpoint_memory, plan->state.recurrent_bytes ? note : "");
    put_row(&w, "sum, with one session", plan->total, "");
    if (plan->available >= 0)
        put_row(&w, "available", plan->available, "");
    put_converted(&w, plan);
    qmi_put(&w, "\n%s%s\n", plan->fits ? "fits" : "does not fit: ", plan->fits ? "" : plan->reason);
    return w.length;
}

static json_t *converted_json(const qmi_plan *plan)
{
    json_t *list = json_array();
    for (uint32_t t = next_converted(plan, 0); t < QMI_TYPE_COUNT; t = next_converted(plan, t + 1))
        json_array_append_new(list, json_pack("{s:s, s:s, s:i}", "type", qmi_quant_format_of(t)->name, "kept_as",
            qmi_quant_format_of(plan->sums.kept_as[t])->name, "matrices", plan->sums.converted[t]));
    return list;
}

int64_t qmi_plan_json(const qmi_plan *plan, char *text, int64_t size)
{
    const qmi_hparams *h = &plan->hparams;
    json_t *json = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:I, s:b, s:I, s:i, s:i, s:s, s:s, s:i, s:b, s:b, s:I}",
        "architecture", h->arch->name, "layers", h->layers, "attention_layers", h->attention_layers, "delta_layers",
        h->delta_layers, "experts", h->experts, "hidden", h->hidden, "trained_context", (json_int_t)h->context, "mtp", plan->mtp,
        "context", (json_int_t)plan->context, "chunk", plan->chunk, "sequences", plan->sequences, "key_type", key_name(plan),
        "value_type", value_name(plan), "kv_window", plan->kv.window,
        "keys_rotated", plan->kv.rotate_keys, "values_rotated", plan->kv.rotate_values,
        "kv_bytes_per_token", (json_int_t)qmi_kv_token_bytes(&plan->kv));
    json_t *sums = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:b, s:s, s:o}",
        "weights", (json_int_t)plan->weights, "vectors", (json_int_t)plan->vectors, "activations", (json_int_t)plan->workspace,
        "scratch", (json_int_t)plan->scratch, "fixed", (json_int_t)plan->fixed, "kv", (json_int_t)plan->kv_session,
        "kv_pool", (json_int_t)plan->kv_pool, "state", (json_int_t)plan->state_session,
        "logits", (json_int_t)plan->logits_session, "checkpoints", plan->checkpoints, "checkpoint_memory",
        (json_int_t)plan->checkpoint_memory, "total", (json_int_t)plan->total, "available", (json_int_t)plan->available,
        "fits", plan->fits, "reason", plan->reason, "converted", converted_json(plan));
    char *dump = json_object_update(json, sums) == 0 ? json_dumps(json, JSON_INDENT(2)) : NULL;
    json_decref(json);
    json_decref(sums);
    if (!dump)
        return qmi_fail(QM_ERROR_MEMORY, "out of memory while writing the plan as JSON");
    qmi_print w = { text, size, 0 };
    qmi_put(&w, "%s\n", dump);
    free(dump);
    return w.length;
}

static double mebibytes(int64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void put_share(qmi_print *w, const qmi_split_share *share, const char *name)
{
    char layers[48] = "none";
    if (share->part.count)
        snprintf(layers, sizeof layers, "%d-%d", share->part.first, share->part.first + share->part.count - 1);
    if (share->expert_layers)
        snprintf(layers + strlen(layers), sizeof layers - strlen(layers), ", experts of %d", share->expert_layers);
    qmi_put(w, "  %-10s %-18s %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f", name, layers, mebibytes(share->weights), mebibytes(share->kv),
            mebibytes(share->state + share->logits), mebibytes(share->checkpoints),
            mebibytes(share->vectors + share->workspace + share->scratch + share->fixed), mebibytes(share->total));
    if (share->available >= 0)
        qmi_put(w, " %9.1f", mebibytes(share->available));
    qmi_put(w, "\n");
}

int64_t qmi_split_table(const qmi_split *split, const qmi_plan *plan, const qmi_plan_device *devices, char *text,
                        int64_t size)
{
    qmi_print w = { text, size, 0 };
    qmi_put(&w, "\nover %d devices: %s", split->count, split->fits ? "fits" : "does not fit: ");
    if (!split->fits) {
        qmi_put(&w, "%s\n", split->reason);
        return w.length;
    }
    qmi_put(&w, ", context %" PRId64 ", chunk %d, %d checkpoints (MiB)\n", plan->context,
            split->chunk, split->checkpoints);
    qmi_put(&w, "  %-10s %-18s %9s %9s %9s %9s %9s %9s %9s\n", "device", "layers", "weights", "kv", "state", "checkp.",
            "batch", "sum", "has");
    for (int32_t i = 0; i < split->count; i++)
        put_share(&w, &split->shares[i], devices[i].name);
    return w.length;
}
