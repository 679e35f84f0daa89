/* Loading, in stages that each leave a model that can be freed: see load.h. */
#include "run/load.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "run/constraint.h"
#include "run/group_load.h"
#include "run/job.h"
#include "run/key_fit.h"
#include "run/plan_splits.h"

/* ---- file, vocabulary, chat format ---- */

static const qmi_gguf_value *find_array(const qmi_gguf *gguf, const char *key, uint32_t type, uint32_t other_type)
{
    const qmi_gguf_value *array = qmi_gguf_find(gguf, key);
    if (!array) {
        qmi_fail(QM_ERROR_FORMAT, "%s is missing; the file has no tokenizer of this kind", key);
        return NULL;
    }
    if (array->type != QMI_GGUF_ARRAY || (array->element_type != type && array->element_type != other_type)) {
        qmi_fail(QM_ERROR_FORMAT, "%s: has type %u[%u], and should be an array of type %u", key, array->type,
                 array->element_type, type);
        return NULL;
    }
    return array;
}

/* A short text of the header as a zero-terminated copy. */
static int32_t read_name(const qmi_gguf *gguf, const char *key, char *out, size_t size)
{
    qmi_text text = { 0 };
    int32_t code = qmi_gguf_text(gguf, key, &text);
    if (code < 0)
        return code;
    if (code == 0 || text.length >= (int64_t)size)
        return qmi_fail(QM_ERROR_FORMAT, "%s is %s", key, code == 0 ? "missing" : "too long to be a known name");
    memcpy(out, text.data, (size_t)text.length);
    out[text.length] = 0;
    return QM_OK;
}

static int32_t read_vocabulary(qm_model *model)
{
    const qmi_gguf *gguf = &model->parts.gguf;
    char kind[32], pre[64];
    qmi_vocab_source source = { .pre = pre, .eos = -1, .pad = -1 };
    int32_t code = read_name(gguf, "tokenizer.ggml.model", kind, sizeof kind);
    if (code >= 0 && strcmp(kind, "gpt2") != 0)
        code = qmi_fail(QM_ERROR_UNSUPPORTED, "tokenizer.ggml.model is \"%s\"; this library reads \"gpt2\"", kind);
    if (code >= 0)
        code = read_name(gguf, "tokenizer.ggml.pre", pre, sizeof pre);
    if (code < 0)
        return code;
    const qmi_gguf_value *tokens = find_array(gguf, "tokenizer.ggml.tokens", QMI_GGUF_STRING, QMI_GGUF_STRING);
    const qmi_gguf_value *merges = tokens ? find_array(gguf, "tokenizer.ggml.merges", QMI_GGUF_STRING, QMI_GGUF_STRING) : NULL;
    if (!merges)
        return QM_ERROR_FORMAT;
    source.token_count = tokens->count;
    source.tokens = tokens->data;
    source.merge_count = merges->count;
    source.merges = merges->data;
    if (qmi_gguf_find(gguf, "tokenizer.ggml.token_type")) {
        const qmi_gguf_value *types = find_array(gguf, "tokenizer.ggml.token_type", QMI_GGUF_I32, QMI_GGUF_U32);
        if (!types)
            return QM_ERROR_FORMAT;
        source.type_count = types->count;
        source.types = (const int32_t *)(const void *)types->data;
    }
    code = qmi_gguf_int(gguf, "tokenizer.ggml.eos_token_id", &source.eos);
    if (code >= 0)
        code = qmi_gguf_int(gguf, "tokenizer.ggml.padding_token_id", &source.pad);
    if (code < 0)
        return code;
    return qmi_vocab_new(&source, &model->settings.alloc, &model->settings.log, &model->vocab);
}

static int32_t find_mark(const qm_model *model, const char *text)
{
    return qmi_vocab_find(model->vocab, text, (int64_t)strlen(text));
}

static int32_t read_chat_format(qm_model *model)
{
    qmi_text jinja = { 0 };
    const char *wanted = qmi_settings_text(&model->settings, QMI_OPT_CHAT_FORMAT);
    int32_t code = qmi_gguf_text(&model->parts.gguf, "tokenizer.chat_template", &jinja);
    if (code < 0)
        return code;
    model->think_open = find_mark(model, "<think>");
    model->think_close = find_mark(model, "</think>");
    model->turn_start = find_mark(model, "<|im_start|>");
    model->role_system = find_mark(model, "system");
    model->role_user = find_mark(model, "user");
    model->tool_result = find_mark(model, "<tool_response>");
    for (int32_t id = 0; id < QMI_CHAT_COUNT; id++)
        if (strcmp(wanted, qmi_chat_name((qmi_chat_format_id)id)) == 0) {
            model->chat = (qmi_chat_format_id)id;
            return QM_OK;
        }
    model->chat = qmi_chat_recognise(code ? jinja.data : NULL, jinja.length, &model->settings.log);
    return QM_OK;
}

static int32_t read_text(qm_model *model)
{
    int32_t code = read_vocabulary(model);
    if (code >= 0)
        code = read_chat_format(model);
    return code;
}

/* A model with its file open, and nothing else. */
static int32_t open_file(const char *path, const qmi_settings *settings, qm_model **out)
{
    *out = NULL;
    qm_model *model = qmi_new(&settings->alloc, 1, sizeof *model, "model");
    if (!model)
        return QM_ERROR_MEMORY;
    model->references = 1;
    int32_t code = qmi_settings_copy(settings, &model->settings);
    if (code < 0) {
        qmi_delete(&settings->alloc, model);
        return code;
    }
    model->path = qmi_new_text(&settings->alloc, path, strlen(path));
    code = model->path ? qmi_parts_open(path, &settings->alloc, &model->parts) : QM_ERROR_MEMORY;
    if (code < 0) {
        qmi_load_release(model);
        return code;
    }
    *out = model;
    return QM_OK;
}

/* ---- device, plan, weights, programs ---- */

static int32_t open_device(qm_model *model, const qmi_choice *choice)
{
    const qmi_device_settings device = qmi_registry_device(&model->settings, choice->index);
    model->backend = choice->backend;
    model->device_index = choice->index;
    int32_t code = model->backend->open(&device, &model->device);
    if (code >= 0)
        model->backend->info(model->device, &model->info);
    return code;
}

static int32_t make_plan(qm_model *model)
{
    const qmi_plan_device device = qmi_plan_devices_of(model->backend, &model->info);
    int32_t code = qmi_plan_make(&model->parts.gguf, &model->settings, &device, &model->settings.alloc, &model->plan);
    return code < 0 ? qmi_fail_within(code, model->path) : code;
}

static int32_t build_programs(qm_model *model, const qmi_load_watch *watch)
{
    const qmi_plan *plan = &model->plan;
    const qmi_alloc *alloc = &model->settings.alloc;
    const qmi_weights_source source = {
        .gguf = &model->parts.gguf, .files = model->parts.maps, .file_count = model->parts.count, .hparams = &plan->hparams,
        .mtp = plan->mtp, .backend = model->backend, .bytes = plan->sums.bytes, .progress = watch->progress,
        .user = watch->user, .cancel = watch->cancel };
    int32_t code = qmi_weights_load(&source, model->device, alloc, &model->weights);
    if (code >= 0)
        code = qmi_key_fit_open(model);
    if (code >= 0)
        code = qmi_forward_build(&plan->hparams, &model->weights, &plan->kv, alloc, &model->program);
    if (code >= 0)
        code = qmi_program_validate(&model->program);
    if (code >= 0 && plan->mtp)
        code = qmi_forward_build_mtp(&plan->hparams, &model->weights, &plan->kv, alloc, &model->mtp_program);
    if (code >= 0 && plan->mtp)
        code = qmi_program_validate(&model->mtp_program);
    if (code >= 0)
        code = qmi_group_load_place(model, watch->progress, watch->user, watch->cancel);
    return code < 0 ? qmi_fail_within(code, model->path) : code;
}

static int32_t allocate_workspace(qm_model *model, const qmi_program *program, qmi_workspace *workspace)
{
    *workspace = (qmi_workspace){ .rows = model->plan.rows, .outputs = model->plan.outputs };
    for (int32_t i = 0; i < program->slot_count; i++) {
        const qmi_slot_shape *slot = &program->slots[i];
        const qmi_content content = { .kind = QMI_CONTENT_SLOT, .program = program, .slot = i };
        int64_t bytes = slot->width * (slot->outputs ? workspace->outputs : workspace->rows) * (int64_t)sizeof(float);
        int32_t code = qmi_backend_allocate(model->backend, model->device, &content, bytes, slot->name, &workspace->slots[i]);
        if (code < 0)
            return code;
    }
    return model->backend->prepare(model->device, program, workspace->rows);
}

static void free_workspace(qm_model *model, qmi_workspace *workspace)
{
    for (int32_t i = 0; i < QMI_SLOTS_MAX; i++)
        if (workspace->slots[i])
            model->backend->release(model->device, workspace->slots[i]);
    *workspace = (qmi_workspace){ 0 };
}

/* What the plan promises one session, and what checkpoints need beside it. */
static int32_t open_pools(qm_model *model)
{
    const qmi_plan *plan = &model->plan;
    const qmi_alloc *alloc = &model->settings.alloc;
    int64_t pages = plan->kv.page_bytes ? plan->kv_pool / plan->kv.page_bytes : qmi_kv_pages_for(&plan->kv, plan->context);
    if (plan->checkpoint_memory)
        pages += plan->checkpoints;
    int32_t code = qmi_page_pool_open(&model->pages, &plan->kv, model->backend, model->device, alloc, pages, plan->kv_grows);
    if (code >= 0)
        code = qmi_state_pool_open(&model->states, &plan->state, model->backend, model->device, alloc);
    if (code >= 0)
        code = qmi_checkpoints_open(&model->checkpoints, &model->pages, &model->states, alloc, plan->checkpoints);
    model->checkpoint_every = qmi_settings_int(&model->settings, QMI_OPT_CHECKPOINT_EVERY);
    return code;
}

static bool cancelled(const qmi_load_watch *watch)
{
    if (!watch->cancel || !__atomic_load_n(watch->cancel, __ATOMIC_ACQUIRE))
        return false;
    qmi_fail(QM_ERROR_CANCELLED, "loading was cancelled");
    return true;
}

/* A device with memory of its own reads the file while weights are uploaded, and no more after that. */
static int32_t bring_file_in(qm_model *model, const qmi_load_watch *watch)
{
    int32_t code = QM_OK;
    if (!model->info.mapped)
        return QM_OK;
    if (qmi_settings_bool(&model->settings, QMI_OPT_READ_AHEAD))
        code = qmi_parts_read_ahead(&model->parts, watch->progress, watch->user);
    if (code >= 0 && qmi_settings_bool(&model->settings, QMI_OPT_LOCK))
        code = qmi_parts_lock(&model->parts);
    return code;
}

/* Everything that computing needs, once a device is open and the plan made. */
static int32_t make_ready(qm_model *model, const qmi_load_watch *watch)
{
    if (qmi_vocab_size(model->vocab) > model->plan.hparams.vocabulary)
        return qmi_fail(QM_ERROR_FORMAT, "%s: tokenizer.ggml.tokens has %d entries, but token_embd.weight only %d rows",
                        model->path, qmi_vocab_size(model->vocab), model->plan.hparams.vocabulary);
    if (!model->plan.fits)
        return qmi_fail(QM_ERROR_FIT, "%s does not fit: %s", model->path, model->plan.reason);
    int32_t code = bring_file_in(model, watch);
    if (code >= 0 && cancelled(watch))
        code = QM_ERROR_CANCELLED;
    if (code >= 0)
        code = build_programs(model, watch);
    if (code >= 0)
        code = allocate_workspace(model, &model->program, &model->workspace);
    if (code >= 0 && model->plan.mtp)
        code = allocate_workspace(model, &model->mtp_program, &model->mtp_workspace);
    if (code >= 0)
        code = open_pools(model);
    if (code >= 0)
        code = qmi_constraints_open(model);
    if (code >= 0)
        code = qmi_engine_start(model);
    model->computes = code >= 0;
    return code;
}

/* The way back of open_device and make_ready, also after a part of them. */
static void leave_device(qm_model *model)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    if (!model->device)
        return;
    qmi_engine_stop(model);
    qmi_constraints_close(model);
    qmi_checkpoints_close(&model->checkpoints);
    qmi_page_pool_close(&model->pages);
    qmi_state_pool_close(&model->states);
    free_workspace(model, &model->workspace);
    free_workspace(model, &model->mtp_workspace);
    qmi_program_free(&model->program, alloc);
    qmi_program_free(&model->mtp_program, alloc);
    qmi_key_fit_close(model);
    qmi_weights_free(&model->weights, model->backend, model->device, alloc);
    model->backend->close(&model->device);
    qmi_group_load_forget(model);
}

/* Of several ranks only the first has sessions. */
static int32_t check_rank(const qmi_settings *settings)
{
    int64_t rank = qmi_settings_int(settings, QMI_OPT_RANK);
    if (rank > 0 && !qmi_settings_bool(settings, QMI_OPT_VOCABULARY_ONLY))
        return qmi_fail(QM_ERROR_OPTION, "rank is %lld: only rank 0 loads the model to use it, the others follow (qm_follow)",
                        (long long)rank);
    return QM_OK;
}

static int32_t use_group(qm_model *model, const qmi_load_watch *watch)
{
    int32_t opened = qmi_group_load_open(model, watch ? watch->cancel : NULL);
    return opened >= 0 && watch ? make_ready(model, watch) : opened;
}

/* A file that can't be used is that on every device. */
static bool may_fit_elsewhere(int32_t code)
{
    return code >= 0 || code == QM_ERROR_DEVICE || code == QM_ERROR_MEMORY || code == QM_ERROR_FIT;
}

/* Where no card alone does: all cards together, and then with the CPU. 1: they do. */
static int32_t use_all(qm_model *model, const qmi_choices *choices, const qmi_load_watch *watch)
{
    const int64_t limit = qmi_settings_int(&model->settings, QMI_OPT_MEMORY_LIMIT);
    char cards[512] = "", list[sizeof cards + 8];
    int32_t count = 0;
    for (int32_t i = 0; i < choices->count && choices->list[i].backend != &qmi_cpu_backend; i++, count++) {
        size_t length = strlen(cards);
        snprintf(cards + length, sizeof cards - length, "%s%s:%d", length ? "," : "", choices->list[i].backend->name,
                 choices->list[i].index);
        if (limit > 0)
            snprintf(cards + strlen(cards), sizeof cards - strlen(cards), "@%lld", (long long)limit);
    }
    for (int32_t with_cpu = count < 2; with_cpu <= 1 && count > 0 && count < QMI_RANKS_MAX; with_cpu++) {
        snprintf(list, sizeof list, "%s%s", cards, with_cpu ? ",cpu" : "");
        int32_t code = qmi_settings_set(&model->settings, QMI_OPT_DEVICES, list);
        if (code >= 0)
            code = use_group(model, watch);
        if ((code >= 0 && model->plan.fits) || !may_fit_elsewhere(code))
            return code < 0 ? code : 1;
        qmi_log_line(&model->settings.log, QM_LOG_INFO, "devices %s are not used: %s", list,
                     code < 0 ? qmi_error_text() : model->plan.reason);
        leave_device(model);
        qmi_settings_set(&model->settings, QMI_OPT_DEVICES, NULL);
    }
    return 0;
}

/* Tries the devices that the option means, best first, until one does. watch NULL: the plan only. */
static int32_t use_device(qm_model *model, const qmi_load_watch *watch)
{
    if (qmi_group_load_wanted(&model->settings))
        return use_group(model, watch);
    qmi_choices choices;
    const qmi_settings *settings = &model->settings;
    int32_t code = qmi_registry_find(qmi_settings_text(settings, QMI_OPT_DEVICE),
                                     qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY), &settings->log, &choices);
    for (int32_t i = 0; i < choices.count; i++) {
        int32_t all = i > 0 && choices.list[i].backend == &qmi_cpu_backend ? use_all(model, &choices, watch) : 0;
        if (all != 0)
            return all < 0 ? all : QM_OK;
        code = open_device(model, &choices.list[i]);
        if (code >= 0)
            code = make_plan(model);
        if (code >= 0 && watch)
            code = make_ready(model, watch);
        bool last = i == choices.count - 1;
        bool fits = code >= 0 && model->plan.fits;
        if (fits || last || !may_fit_elsewhere(code))
            break;
        qmi_log_line(&settings->log, QM_LOG_INFO, "device %s:%d is not used: %s", choices.list[i].backend->name,
                     choices.list[i].index, code < 0 ? qmi_error_text() : model->plan.reason);
        leave_device(model);
    }
    return code;
}

int32_t qmi_load_model(const char *path, const qmi_settings *settings, const qmi_load_watch *watch, qm_model **out)
{
    qm_model *model;
    *out = NULL;
    int64_t start_ns = qmi_os_time_ns();
    int32_t code = check_rank(settings);
    if (code >= 0)
        code = open_file(path, settings, &model);
    if (code < 0)
        return code;
    code = read_text(model);
    if (code < 0)
        qmi_fail_within(code, path);
    if (code >= 0 && cancelled(watch))
        code = QM_ERROR_CANCELLED;
    if (code >= 0 && !qmi_settings_bool(settings, QMI_OPT_VOCABULARY_ONLY))
        code = use_device(model, watch);
    if (code < 0) {
        if (model->ranks)
            qmi_ranks_fail(model->ranks, code);
        qmi_load_release(model);
        return code;
    }
    qmi_log_line(&settings->log, QM_LOG_INFO, "%s loaded in %.3f s", path, (double)(qmi_os_time_ns() - start_ns) * 1e-9);
    *out = model;
    return QM_OK;
}

static int64_t add_group(const qm_model *model, int64_t length, char *text, int64_t size)
{
    int64_t room = size > length ? size - length : 0;
    return length + qmi_group_load_table(model, room ? text + length : NULL, room);
}

/* What several devices would hold, behind the plan's table of `length` bytes. Returns the length of all. */
static int64_t add_split(const qm_model *model, int64_t length, char *text, int64_t size)
{
    qmi_plan_devices devices;
    qmi_split split;
    int64_t room = size > length ? size - length : 0;
    int32_t code = qmi_plan_devices_find(model, &devices);
    if (code < 0 || devices.count < 2)
        return code < 0 ? code : length;
    code = qmi_split_make(&model->parts.gguf, &model->settings, &model->plan, devices.list, devices.count, &model->settings.alloc,
                          &split);
    if (code < 0)
        return code;
    length += qmi_split_table(&split, &model->plan, devices.list, room ? text + length : NULL, room);
    room = size > length ? size - length : 0;
    int64_t more = qmi_plan_splits_table(model, &devices, &split, room ? text + length : NULL, room);
    return more < 0 ? more : length + more;
}

int64_t qmi_load_plan(const char *path, const qmi_settings *settings, bool json, char *text, int64_t size)
{
    qm_model *model;
    if (qmi_settings_int(settings, QMI_OPT_RANKS) > 1)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "ranks: what several processes have is known when they have come together; plan without "
                        "this option, with the devices of one machine");
    int64_t code = open_file(path, settings, &model);
    if (code < 0)
        return code;
    code = use_device(model, NULL);
    if (code >= 0)
        code = json ? qmi_plan_json(&model->plan, text, size) : qmi_plan_table(&model->plan, text, size);
    if (code >= 0 && !json && model->group)
        code = add_group(model, code, text, size);
    else if (code >= 0 && !json)
        code = add_split(model, code, text, size);
    qmi_load_release(model);
    return code;
}

/* ---- references ---- */

void qmi_load_retain(qm_model *model)
{
    __atomic_add_fetch(&model->references, 1, __ATOMIC_RELAXED);
}

static void destroy(qm_model *model)
{
    const qmi_alloc alloc = model->settings.alloc;
    leave_device(model);
    qmi_ranks_close(&model->ranks);
    qmi_vocab_free(&model->vocab);
    qmi_parts_close(&model->parts, &alloc);
    qmi_delete(&alloc, model->path);
    qmi_settings_end(&model->settings);
    qmi_delete(&alloc, model);
}

void qmi_load_release(qm_model *model)
{
    if (__atomic_sub_fetch(&model->references, 1, __ATOMIC_ACQ_REL) == 0)
        destroy(model);
}
