/* The plan: see plan.h. */
#include "memory/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "quant/quant.h"

#define CONTEXT_DEFAULT 8192
#define CHUNK_DEFAULT 512 /* rows from which a CPU's products gain nothing more from a larger batch */
#define CHUNK_LEAST 32
#define OUTPUTS_LEAST 32  /* rows of logits in one batch: a prompt's logits come in this many at a time */

int32_t qmi_plan_context(const qmi_hparams *hparams, const qmi_settings *settings, int64_t *context)
{
    int64_t wanted = qmi_settings_int(settings, QMI_OPT_CONTEXT), answer = qmi_settings_int(settings, QMI_OPT_ANSWER_TOKENS);
    if (wanted > hparams->context)
        return qmi_fail(QM_ERROR_OPTION, "context %" PRId64 " is more than the %" PRId64 " tokens this model was made for; set context to at most that",
                        wanted, hparams->context);
    if (wanted && wanted <= answer)
        return qmi_fail(QM_ERROR_OPTION, "context %" PRId64 " must hold prompt and answer, but answer-tokens alone is %" PRId64
                        "; raise context or lower answer-tokens", wanted, answer);
    *context = wanted ? wanted : hparams->context < CONTEXT_DEFAULT ? hparams->context : CONTEXT_DEFAULT;
    return QM_OK;
}

static int64_t weight_bytes(const qmi_gguf *gguf)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < gguf->tensor_count; i++)
        bytes += gguf->tensors[i].bytes; /* the reader has checked that they lie apart in the files, so the sum fits */
    return bytes;
}

/* Types of the weights do not show in the sizes of a workspace, but scratch may depend on them: so the program is built with the
 * file's types and shapes, at no address. */
static qmi_matrix shape_of(const qmi_gguf *gguf, int32_t layer, const char *name)
{
    char full[96];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    const qmi_gguf_tensor *t = qmi_gguf_find_tensor(gguf, full);
    return t ? (qmi_matrix){ t->type, t->dimensions[0], t->dimensions[1], t->dimensions[2], 0 } : (qmi_matrix){ 0 };
}

static void shape_layer(const qmi_gguf *gguf, int32_t i, qmi_layer *layer)
{
    const struct { const char *name; qmi_matrix *matrix; } parts[] = {
        { "attn_q.weight", &layer->query }, { "attn_k.weight", &layer->key }, { "attn_v.weight", &layer->value },
        { "attn_output.weight", &layer->attention_out }, { "attn_qkv.weight", &layer->qkv }, { "attn_gate.weight", &layer->z },
        { "ssm_beta.weight", &layer->beta }, { "ssm_alpha.weight", &layer->alpha }, { "ssm_ba.weight", &layer->beta },
        { "ssm_out.weight", &layer->delta_out }, { "ffn_gate_inp.weight", &layer->router }, { "ffn_gate_inp_shexp.weight", &layer->shared_router },
        { "ffn_gate.weight", &layer->gate }, { "ffn_up.weight", &layer->up }, { "ffn_down.weight", &layer->down },
        { "ffn_gate_exps.weight", &layer->gate }, { "ffn_gate_up_exps.weight", &layer->gate }, { "ffn_up_exps.weight", &layer->up },
        { "ffn_down_exps.weight", &layer->down }, { "ffn_gate_shexp.weight", &layer->shared_gate },
        { "ffn_up_shexp.weight", &layer->shared_up }, { "ffn_down_shexp.weight", &layer->shared_down }, { "nextn.eh_proj.weight", &layer->join },
    };
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        qmi_matrix found = shape_of(gguf, i, parts[k].name);
        if (found.rows)
            *parts[k].matrix = found;
    }
}

/* Programs of the right shapes, for their sizes only. */
static int32_t build_shapes(const qmi_gguf *gguf, const qmi_plan *plan, const qmi_alloc *alloc, qmi_program *main_program, qmi_program *mtp)
{
    const qmi_hparams *h = &plan->hparams;
    qmi_weights weights = { .embedding = shape_of(gguf, -1, "token_embd.weight"), .output = shape_of(gguf, -1, "output.weight") };
    int32_t count = h->layers + h->mtp_layers;
    *main_program = *mtp = (qmi_program){ 0 };
    weights.layers = qmi_new(alloc, (size_t)count, sizeof *weights.layers, "the list of layers");
    if (!weights.layers)
        return QM_ERROR_MEMORY;
    if (!weights.output.rows)
        weights.output = weights.embedding;
    weights.mtp_output = weights.output;
    for (int32_t i = 0; i < count; i++)
        shape_layer(gguf, i, &weights.layers[i]);
    int32_t code = qmi_forward_build(h, &weights, &plan->kv, alloc, main_program);
    if (code == 0 && plan->mtp)
        code = qmi_forward_build_mtp(h, &weights, &plan->kv, alloc, mtp);
    qmi_delete(alloc, weights.layers);
    return code;
}

typedef int64_t (*scratch_function)(const qmi_program *, int32_t, int32_t);

static void sum(qmi_plan *plan, const qmi_program *main_program, const qmi_program *mtp, scratch_function scratch, int32_t threads)
{
    int32_t rows = plan->chunk > plan->sequences ? plan->chunk : plan->sequences;
    plan->workspace = qmi_workspace_bytes(main_program, rows, plan->outputs);
    plan->scratch = scratch ? scratch(main_program, rows, threads) : 0;
    if (plan->mtp) {
        int64_t more = scratch ? scratch(mtp, rows, threads) : 0;
        plan->workspace += qmi_workspace_bytes(mtp, rows, plan->outputs);
        plan->scratch = more > plan->scratch ? more : plan->scratch;
    }
    plan->total = plan->weights + plan->vectors + plan->workspace + plan->scratch + plan->kv_session + plan->state_session;
    int64_t needed = plan->mapped ? plan->total - plan->weights : plan->total;
    plan->fits = plan->available < 0 || needed <= plan->available;
}

/* Which settings would make it fit. */
static void explain(qmi_plan *plan)
{
    int64_t needed = plan->total - (plan->mapped ? plan->weights : 0), token = qmi_kv_token_bytes(&plan->kv);
    int64_t left = plan->available - (needed - plan->kv_session);
    int64_t most = token && left > 0 ? left / plan->kv.page_bytes * plan->kv.page_tokens : 0;
    char advice[128] = "no context would fit: lower chunk and sequences, or free memory";
    if (most > 0 && most < plan->context)
        snprintf(advice, sizeof advice, "context %" PRId64 " would fit", most);
    snprintf(plan->reason, sizeof plan->reason, "needs %" PRId64 " bytes%s, and %" PRId64 " are available; %s", needed,
             plan->mapped ? " beside the mapped file" : "", plan->available, advice);
}

int32_t qmi_plan_make(const qmi_gguf *gguf, const qmi_settings *settings, scratch_function scratch, int32_t threads, int64_t memory,
                      bool mapped, const qmi_alloc *alloc, qmi_plan *out)
{
    qmi_plan plan = { .available = memory, .mapped = mapped };
    qmi_program main_program, mtp;
    int32_t code = qmi_hparams_read(gguf, &plan.hparams);
    if (code == 0)
        code = qmi_plan_context(&plan.hparams, settings, &plan.context);
    if (code < 0)
        return code;
    plan.mtp = qmi_settings_bool(settings, QMI_OPT_MTP);
    if (plan.mtp && !plan.hparams.mtp_layers)
        return qmi_fail(QM_ERROR_OPTION, "option mtp is on, but the file has no multi-token-prediction block; set mtp to 0");
    uint32_t type = strcmp(qmi_settings_text(settings, QMI_OPT_KV_TYPE), "f32") ? QMI_TYPE_F16 : QMI_TYPE_F32;
    qmi_kv_layout_make(&plan.hparams, type, plan.mtp, &plan.kv);

    plan.sequences = (int32_t)qmi_settings_int(settings, QMI_OPT_SEQUENCES);
    plan.outputs = plan.sequences > OUTPUTS_LEAST ? plan.sequences : OUTPUTS_LEAST;
    int64_t chunk = qmi_settings_int(settings, QMI_OPT_CHUNK);
    bool choose = chunk == 0;
    plan.chunk = (int32_t)(choose ? CHUNK_DEFAULT : chunk);
    if (choose && plan.chunk > plan.context)
        plan.chunk = (int32_t)plan.context;

    plan.weights = weight_bytes(gguf);
    plan.vectors = qmi_weights_vector_bytes(&plan.hparams);
    plan.kv_session = qmi_kv_pages_for(&plan.kv, plan.context) * plan.kv.page_bytes;
    plan.state_session = 2 * qmi_hparams_state_bytes(&plan.hparams);
    code = build_shapes(gguf, &plan, alloc, &main_program, &mtp);
    if (code == 0) {
        sum(&plan, &main_program, &mtp, scratch, threads);
        while (!plan.fits && choose && plan.chunk / 2 >= CHUNK_LEAST) {
            plan.chunk /= 2;
            sum(&plan, &main_program, &mtp, scratch, threads);
        }
        if (!plan.fits)
            explain(&plan);
        *out = plan;
    }
    qmi_program_free(&main_program, alloc);
    qmi_program_free(&mtp, alloc);
    return code;
}
