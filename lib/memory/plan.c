/* The plan: see plan.h. */
#include "memory/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "quant/quant.h"

#define CONTEXT_DEFAULT 8192
#define CHUNK_LEAST 32
#define CHECKPOINTS_LEAST 16  /* large states: the turns of a conversation, and some that lie apart */
#define CHECKPOINTS_MANY 128  /* small ones: as many as fit into ... */
#define CHECKPOINTS_SMALL ((int64_t)128 << 20)
#define CHECKPOINTS_MOST 4096 /* by option: choosing the one to go looks at pairs */
#define CHECKPOINTS_NEEDED 4  /* fewer, and each turn may compute its whole prompt again */
#define CHECKPOINTS_OF_PAGES 64
#define OUTPUTS_LEAST 32  /* rows of logits in one batch: a prompt's logits come in this many at a time */

int32_t qmi_plan_context(const qmi_hparams *hparams, const qmi_settings *settings, int64_t *context)
{
    int64_t wanted = qmi_settings_int(settings, QMI_OPT_CONTEXT), answer = qmi_settings_int(settings, QMI_OPT_ANSWER_TOKENS);
    if (wanted > hparams->context)
        return qmi_fail(QM_ERROR_OPTION, "context %" PRId64 " is more than the %" PRId64 " tokens this model was made for; set "
                        "context to at most that", wanted, hparams->context);
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

/* Programs of the right shapes, for their sizes only; and what the weights take. */
static int32_t build_shapes(const qmi_gguf *gguf, const qmi_plan_device *device, const qmi_alloc *alloc, qmi_plan *plan,
                            qmi_program *main_program, qmi_program *mtp)
{
    const qmi_hparams *h = &plan->hparams;
    qmi_weights weights;
    int32_t code = qmi_weights_survey(gguf, h, plan->mtp, device->matrix_bytes, alloc, &weights, &plan->sums);
    *main_program = *mtp = (qmi_program){ 0 };
    if (code == 0)
        code = qmi_forward_build(h, &weights, &plan->kv, alloc, main_program);
    if (code == 0 && plan->mtp)
        code = qmi_forward_build_mtp(h, &weights, &plan->kv, alloc, mtp);
    qmi_weights_free(&weights, NULL, NULL, alloc);
    return code;
}

static int32_t most(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* QM_OK, or what scratch_bytes says about a batch that is out of its range. */
static int32_t sum(qmi_plan *plan, const qmi_program *main_program, const qmi_program *mtp, const qmi_plan_device *device)
{
    plan->rows = most(most(plan->chunk, plan->sequences), 2);
    plan->workspace = qmi_workspace_bytes(main_program, plan->rows, plan->outputs);
    plan->scratch = device->scratch_bytes ? device->scratch_bytes(main_program, plan->rows, device->threads) : 0;
    if (plan->mtp && plan->scratch >= 0) {
        int64_t more = device->scratch_bytes ? device->scratch_bytes(mtp, plan->rows, device->threads) : 0;
        plan->workspace += qmi_workspace_bytes(mtp, plan->rows, plan->outputs);
        plan->scratch = more < 0 || more > plan->scratch ? more : plan->scratch;
    }
    if (plan->scratch < 0)
        return (int32_t)plan->scratch;
    plan->total = plan->weights + plan->vectors + plan->correction + plan->workspace + plan->scratch + plan->fixed + plan->kv_pool +
                  plan->state_session + plan->logits_session + plan->checkpoint_memory;
    plan->fits = plan->available < 0 || plan->total - (plan->mapped ? plan->weights : 0) <= plan->available;
    return QM_OK;
}

static int64_t checkpoint_bytes(const qmi_plan *plan)
{
    return plan->state.bytes + plan->kv.page_bytes;
}

/* As many as option checkpoint-memory has room for. Without recurrent state they take no memory but the pages of sessions that
 * are gone, which are given up when there are no others. */
static void set_checkpoints(const qmi_settings *settings, qmi_plan *plan)
{
    int64_t memory = qmi_settings_int(settings, QMI_OPT_CHECKPOINT_MEMORY), bytes = checkpoint_bytes(plan);
    if (plan->state.recurrent_bytes == 0) {
        plan->checkpoints = memory == 0 ? 0 : CHECKPOINTS_OF_PAGES;
    } else if (memory > 0) {
        plan->checkpoints = (int32_t)(memory / bytes < CHECKPOINTS_MOST ? memory / bytes : CHECKPOINTS_MOST);
        plan->checkpoint_memory = plan->checkpoints * bytes;
    }
}

int64_t qmi_plan_checkpoints(const qmi_plan *plan)
{
    int64_t count = CHECKPOINTS_SMALL / checkpoint_bytes(plan);
    return count < CHECKPOINTS_LEAST ? CHECKPOINTS_LEAST : count > CHECKPOINTS_MANY ? CHECKPOINTS_MANY : count;
}

/* Once all else has its memory. */
static void choose_checkpoints(const qmi_settings *settings, qmi_plan *plan)
{
    int64_t bytes = checkpoint_bytes(plan), count = qmi_plan_checkpoints(plan);
    if (plan->state.recurrent_bytes == 0 || qmi_settings_int(settings, QMI_OPT_CHECKPOINT_MEMORY) >= 0)
        return;
    if (plan->available >= 0) {
        int64_t left = plan->available - (plan->total - (plan->mapped ? plan->weights : 0));
        int64_t room = left > 0 ? left / 4 / bytes : 0;
        count = room < count ? room : count;
    }
    plan->checkpoints = (int32_t)count;
    plan->checkpoint_memory = count * bytes;
    plan->total += plan->checkpoint_memory;
}

/* Is the batch small beside what is left when everything else has its memory? */
static bool is_roomy(const qmi_plan *plan)
{
    int64_t batch = plan->workspace + plan->scratch;
    int64_t others = plan->total - batch - (plan->mapped ? plan->weights : 0);
    return plan->available < 0 || batch <= (plan->available - others) / 4;
}

static int32_t choose_chunk(qmi_plan *plan, const qmi_program *main_program, const qmi_program *mtp,
                            const qmi_plan_device *device)
{
    plan->chunk = device->chunk_high;
    for (;;) {
        int32_t chunk = plan->chunk;
        if (plan->chunk > plan->context)
            plan->chunk = (int32_t)plan->context;
        int32_t code = sum(plan, main_program, mtp, device);
        if (code < 0 || chunk / 2 < CHUNK_LEAST || (plan->fits && (chunk / 2 < device->chunk_low || is_roomy(plan))))
            return code;
        plan->chunk = chunk / 2;
    }
}

/* Which settings would make it fit; kv_type: one that would, NULL: none. */
static void explain(qmi_plan *plan, const char *kv_type)
{
    char type[48] = "";
    int64_t needed = plan->total - (plan->mapped ? plan->weights : 0), token = qmi_kv_token_bytes(&plan->kv);
    int64_t left = plan->available - (needed - plan->kv_pool);
    int64_t tokens = token && left > 0 ? left / plan->kv.page_bytes * plan->kv.page_tokens : 0;
    char advice[128] = "no context would fit: lower chunk and sequences, or free memory";
    if (!plan->kv_grows && left > 0)
        snprintf(advice, sizeof advice, "kv-memory %" PRId64 " would fit", left);
    else if (tokens > 0 && tokens < plan->context)
        snprintf(advice, sizeof advice, "context %" PRId64 " would fit", tokens);
    if (kv_type)
        snprintf(type, sizeof type, "kv-type %s would fit; ", kv_type);
    snprintf(plan->reason, sizeof plan->reason, "needs %" PRId64 " bytes%s, and %" PRId64 " are available; %s%s", needed,
             plan->mapped ? " beside the mapped file" : "", plan->available, type, advice);
}

static int32_t choose_kv_pool(const qmi_settings *settings, qmi_plan *plan)
{
    int64_t wanted = qmi_settings_int(settings, QMI_OPT_KV_MEMORY), page = plan->kv.page_bytes;
    plan->kv_session = qmi_kv_pages_for(&plan->kv, plan->context) * page;
    plan->kv_grows = wanted == 0;
    plan->kv_pool = wanted && page ? wanted / page * page : plan->kv_session;
    if (plan->kv_pool < plan->kv_session)
        return qmi_fail(QM_ERROR_OPTION, "kv-memory %" PRId64 " is less than the %" PRId64 " bytes that the keys and values of "
                        "one session of %" PRId64 " tokens take; raise kv-memory or lower context", wanted, plan->kv_session,
                        plan->context);
    return QM_OK;
}

static int32_t plan_correction(const qmi_settings *settings, qmi_plan *plan)
{
    bool corrects = *qmi_settings_text(settings, QMI_OPT_KV_CORRECTION), fits = qmi_settings_bool(settings, QMI_OPT_KV_FIT);
    int64_t floats = plan->hparams.attention_layers * plan->kv.correction_floats;
    if ((corrects || fits) && plan->kv.key_type != QMI_KV_Q2)
        return qmi_fail(QM_ERROR_OPTION, "option %s is about keys of type q2, and these are %s; set key-type to q2",
                        corrects ? "kv-correction" : "kv-fit", qmi_kv_formats[plan->kv.key_type].name);
    plan->correction = (corrects ? floats * (int64_t)sizeof(float) : 0) + (fits ? floats * (int64_t)sizeof(double) : 0);
    return QM_OK;
}

/* What options and header say without a device. */
static int32_t read_choices(const qmi_gguf *gguf, const qmi_settings *settings, qmi_plan *plan)
{
    int32_t code = qmi_hparams_read(gguf, &plan->hparams);
    if (code == 0)
        code = qmi_plan_context(&plan->hparams, settings, &plan->context);
    if (code < 0)
        return code;
    plan->mtp = qmi_settings_bool(settings, QMI_OPT_MTP);
    if (plan->mtp && !plan->hparams.mtp_layers)
        return qmi_fail(QM_ERROR_OPTION, "option mtp is on, but the file has no multi-token-prediction block; set mtp to 0");
    const qmi_kv_choice kv = qmi_kv_choice_of(settings);
    if (plan->mtp && kv.window)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "keys and values of type q2 do not go with option mtp so far; set mtp to 0, or "
                        "kv-type to q4_0");
    qmi_kv_layout_make(&plan->hparams, &kv, plan->mtp, &plan->kv);
    code = plan_correction(settings, plan);
    if (code < 0)
        return code;
    plan->sequences = (int32_t)qmi_settings_int(settings, QMI_OPT_SEQUENCES);
    plan->outputs = most(plan->sequences, OUTPUTS_LEAST);
    plan->vectors = qmi_weights_vector_bytes(&plan->hparams, plan->mtp);
    qmi_state_layout_make(&plan->hparams, &plan->kv, plan->mtp, &plan->state);
    plan->state_session = 2 * plan->state.recurrent_bytes;
    plan->logits_session = 2 * plan->state.bytes - plan->state_session;
    set_checkpoints(settings, plan);
    return choose_kv_pool(settings, plan);
}

/* With the type of keys and values that the settings name, and no advice. */
static int32_t make(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan_device *device, const qmi_alloc *alloc,
                    qmi_plan *out)
{
    qmi_plan plan = { .available = device->memory, .mapped = device->mapped, .fixed = device->fixed };
    qmi_program main_program, mtp;
    int32_t code = read_choices(gguf, settings, &plan);
    if (code < 0)
        return code;
    code = build_shapes(gguf, device, alloc, &plan, &main_program, &mtp);
    plan.weights = plan.mapped ? weight_bytes(gguf) : plan.sums.bytes;
    plan.chunk = (int32_t)qmi_settings_int(settings, QMI_OPT_CHUNK);
    if (code == 0)
        code = plan.chunk ? sum(&plan, &main_program, &mtp, device) : choose_chunk(&plan, &main_program, &mtp, device);
    if (code == 0)
        choose_checkpoints(settings, &plan);
    if (code == 0)
        *out = plan;
    qmi_program_free(&main_program, alloc);
    qmi_program_free(&mtp, alloc);
    return code;
}

/* ---- the type of keys and values ---- */

/* From the best on: each takes less, and loses more, than those before it. */
static const char *const types[] = { "f16", "q8_0", "q6", "q5", "q4_0" };
enum { TYPES = sizeof types / sizeof *types };

static int32_t make_with(const qmi_gguf *gguf, const qmi_settings *settings, const char *type, const qmi_plan_device *device,
                         const qmi_alloc *alloc, qmi_plan *out)
{
    qmi_settings changed;
    int32_t code = qmi_settings_copy(settings, &changed);
    if (code < 0)
        return code;
    code = qmi_settings_set(&changed, QMI_OPT_KV_TYPE, type);
    if (code >= 0)
        code = make(gguf, &changed, device, alloc, out);
    qmi_settings_end(&changed);
    return code;
}

/* Not in need of a smaller type: a chunk as large as the device asks for, and states to go back to. */
static bool is_comfortable(const qmi_plan *plan, const qmi_settings *settings, const qmi_plan_device *device)
{
    bool chunk = qmi_settings_int(settings, QMI_OPT_CHUNK) || plan->chunk >= device->chunk_low || plan->chunk == plan->context;
    bool states = plan->state.recurrent_bytes == 0 || qmi_settings_int(settings, QMI_OPT_CHECKPOINT_MEMORY) >= 0 ||
                  plan->checkpoints >= CHECKPOINTS_NEEDED;
    return plan->fits && chunk && states;
}

/* kv-type auto: the first with which all is well, else the first that fits, else the last that the device computes. */
static int32_t choose_type(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan_device *device,
                           const qmi_alloc *alloc, qmi_plan *out)
{
    for (int i = 0; i < TYPES; i++) {
        qmi_plan plan;
        int32_t code = make_with(gguf, settings, types[i], device, alloc, &plan);
        if (i > 0 && code == QM_ERROR_UNSUPPORTED)
            return QM_OK;
        if (code < 0)
            return code;
        bool comfortable = is_comfortable(&plan, settings, device);
        if (i == 0 || comfortable || !out->fits)
            *out = plan;
        if (comfortable)
            return QM_OK;
    }
    return QM_OK;
}

/* The best type that takes less than the plan's and with which it would fit; NULL: none. */
static const char *find_smaller(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan_device *device,
                                const qmi_alloc *alloc, const qmi_plan *plan)
{
    for (int i = 0; i < TYPES && plan->kv_grows; i++) {
        qmi_plan other;
        if (make_with(gguf, settings, types[i], device, alloc, &other) >= 0 && other.fits &&
            other.kv.page_bytes < plan->kv.page_bytes)
            return types[i];
    }
    return NULL;
}

int32_t qmi_plan_make(const qmi_gguf *gguf, const qmi_settings *settings, const qmi_plan_device *device, const qmi_alloc *alloc,
                      qmi_plan *out)
{
    qmi_plan plan;
    bool chosen = strcmp(qmi_settings_text(settings, QMI_OPT_KV_TYPE), "auto") == 0;
    int32_t code = chosen ? choose_type(gguf, settings, device, alloc, &plan) : make(gguf, settings, device, alloc, &plan);
    if (code < 0)
        return code;
    if (!plan.fits)
        explain(&plan, find_smaller(gguf, settings, device, alloc, &plan));
    *out = plan;
    return QM_OK;
}
