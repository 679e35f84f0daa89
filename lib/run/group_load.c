/* Several devices for one model: see group_load.h. */
#include "run/group_load.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "base/number.h"
#include "exchange/group.h"
#include "run/plan_devices.h"

typedef struct opener {
    qm_model *model;
    int32_t count, cpus;
    qmi_choice choices[QMI_RANKS_MAX];
    int64_t limits[QMI_RANKS_MAX];           /* bytes; 0: none */
    qmi_exchange_member members[QMI_RANKS_MAX];
    qmi_device_info infos[QMI_RANKS_MAX];
    int32_t shares[QMI_RANKS_MAX];
} opener;

bool qmi_group_load_wanted(const qmi_settings *settings)
{
    return *qmi_settings_text(settings, QMI_OPT_DEVICES) != 0;
}

/* ---- the options ---- */

/* "12G", or bytes. */
static bool read_bytes(const char *text, size_t length, int64_t *bytes)
{
    int64_t unit = 1;
    if (length > 0 && text[length - 1] == 'G') {
        length--;
        unit = INT64_C(1) << 30;
    }
    if (qmi_number_read_int(text, length, bytes) != QMI_NUMBER_OK || *bytes < 1 || *bytes > (INT64_C(1) << 50) / unit)
        return false;
    *bytes *= unit;
    return true;
}

/* "cuda:0@12G" */
static int32_t read_device(opener *o, const char *text, size_t length)
{
    const qmi_settings *settings = &o->model->settings;
    char name[32];
    qmi_choices found;
    size_t end = 0;
    while (end < length && text[end] != '@')
        end++;
    bool limited = end < length;
    if (o->count == QMI_RANKS_MAX || end >= sizeof name || end == 0 || strncmp(text, "auto", end) == 0 ||
        (limited && !read_bytes(text + end + 1, length - end - 1, &o->limits[o->count])))
        return qmi_fail(QM_ERROR_OPTION, "devices: \"%s\" is no list of at most %d devices as in cuda:0,cuda:1 or "
                        "cuda:0@12G,cpu@20G", qmi_settings_text(settings, QMI_OPT_DEVICES), QMI_RANKS_MAX);
    memcpy(name, text, end);
    name[end] = 0;
    int32_t code = qmi_registry_find(name, qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY), &settings->log, &found);
    if (code < 0)
        return code;
    o->choices[o->count] = found.list[0];
    o->cpus += found.list[0].backend == &qmi_cpu_backend;
    snprintf(o->members[o->count].name, sizeof o->members[0].name, "%.20s #%d", name, o->count);
    o->count++;
    return QM_OK;
}

static int32_t read_devices(opener *o)
{
    const char *text = qmi_settings_text(&o->model->settings, QMI_OPT_DEVICES);
    int32_t code = QM_OK;
    for (const char *at = text; code >= 0;) {
        size_t length = strcspn(at, ",");
        code = read_device(o, at, length);
        if (!at[length])
            break;
        at += length + 1;
    }
    return code;
}

/* "3:1"; empty: all alike. */
static int32_t read_shares(opener *o)
{
    const char *text = qmi_settings_text(&o->model->settings, QMI_OPT_SHARES), *at = text;
    for (int32_t i = 0; i < o->count; i++)
        o->shares[i] = 1;
    for (int32_t i = 0; *text && i < o->count; i++) {
        int64_t share;
        size_t length = strcspn(at, ":");
        bool last = i == o->count - 1;
        if (qmi_number_read_int(at, length, &share) != QMI_NUMBER_OK || share < 1 || share > 1000 || last != !at[length])
            return qmi_fail(QM_ERROR_OPTION, "shares: \"%s\" is no list of %d numbers from 1 to 1000, one a device, as in 3:1", text,
                            o->count);
        o->shares[i] = (int32_t)share;
        at += length + 1;
    }
    return QM_OK;
}

/* ---- devices ---- */

static int32_t open_member(opener *o, int32_t index)
{
    const qmi_settings *settings = &o->model->settings;
    int32_t threads = (int32_t)qmi_settings_int(settings, QMI_OPT_THREADS);
    qmi_exchange_member *member = &o->members[index];
    if (threads == 0 && o->cpus > 1)
        threads = qmi_os_processor_count() / o->cpus > 1 ? qmi_os_processor_count() / o->cpus : 1;
    const qmi_device_settings device = {
        .index = o->choices[index].index,
        .threads = threads,
        .pin = o->cpus == 1 && qmi_settings_bool(settings, QMI_OPT_PIN), /* several would take the same processors */
        .isa = qmi_settings_text(settings, QMI_OPT_ISA),
        .memory_limit = o->limits[index],
        .profile = qmi_settings_bool(settings, QMI_OPT_PROFILE),
        .alloc = settings->alloc,
        .log = settings->log,
    };
    member->backend = o->choices[index].backend;
    int32_t code = member->backend->open(&device, &member->device);
    if (code >= 0)
        member->backend->info(member->device, &o->infos[index]);
    return code < 0 ? qmi_fail_within(code, member->name) : code;
}

static void close_members(opener *o)
{
    for (int32_t i = 0; i < o->count; i++)
        if (o->members[i].backend)
            o->members[i].backend->close(&o->members[i].device);
}

/* ---- plan ---- */

/* What the plan needs to know of all together. */
static qmi_plan_device plan_device_of(const opener *o)
{
    qmi_plan_device all = qmi_plan_devices_of(o->members[0].backend, &o->infos[0]);
    all.name = "group";
    all.memory = -1;
    for (int32_t i = 1; i < o->count; i++) {
        all.fixed += o->infos[i].memory_fixed;
        all.mapped = all.mapped && o->infos[i].mapped;
        all.chunk_low = o->infos[i].chunk_low > all.chunk_low ? o->infos[i].chunk_low : all.chunk_low;
        all.chunk_high = o->infos[i].chunk_high > all.chunk_high ? o->infos[i].chunk_high : all.chunk_high;
    }
    return all;
}

static void share_layers(const opener *o, int32_t layers, qmi_sharing *sharing)
{
    const qmi_stage all = { .members = o->count };
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_sharing_cut(sharing, &all, layers, 1, bounds);
    sharing->stage_count = o->count;
    for (int32_t i = 0; i < o->count; i++)
        sharing->stages[i] = (qmi_stage){ (int32_t)bounds[i], (int32_t)(bounds[i + 1] - bounds[i]), i, 1 };
}

static bool are_alike(const opener *o)
{
    bool alike = true;
    for (int32_t i = 1; i < o->count; i++)
        alike = alike && o->choices[i].backend == o->choices[0].backend && strcmp(o->infos[i].name, o->infos[0].name) == 0;
    return alike;
}

static void choose_sharing(const opener *o, qmi_sharing *sharing)
{
    const qmi_settings *settings = &o->model->settings;
    *sharing = (qmi_sharing){ .members = o->count, .expert_member = -1, .alike = are_alike(o) };
    memcpy(sharing->shares, o->shares, sizeof sharing->shares);
    if (strcmp(qmi_settings_text(settings, QMI_OPT_SPLIT), "tensor") == 0) {
        sharing->stage_count = 1;
        sharing->stages[0] = (qmi_stage){ 0, o->model->plan.hparams.layers, 0, o->count };
    } else {
        share_layers(o, o->model->plan.hparams.layers, sharing);
    }
}

static qmi_cut_sizes sizes_of(const qmi_plan *plan)
{
    return (qmi_cut_sizes){ .page_bytes = plan->kv.page_bytes, .layer_bytes = plan->kv.layer_bytes,
                            .value_offset = plan->kv.value_offset, .recurrent_bytes = plan->state.recurrent_bytes,
                            .hidden_bytes = plan->state.hidden_bytes, .logits_bytes = plan->state.logits_bytes };
}

static int32_t open_group(opener *o)
{
    qm_model *model = o->model;
    const qmi_plan_device device = plan_device_of(o);
    int32_t code = qmi_plan_make(&model->parts.gguf, &model->settings, &device, &model->settings.alloc, &model->plan);
    if (code < 0)
        return qmi_fail_within(code, model->path);
    qmi_group_settings group = { .members = o->members, .sizes = sizes_of(&model->plan),
                                 .timeout_ns = qmi_settings_int(&model->settings, QMI_OPT_EXCHANGE_TIMEOUT) * INT64_C(1000000000),
                                 .alloc = model->settings.alloc, .log = model->settings.log };
    choose_sharing(o, &group.sharing);
    code = qmi_group_open(&group, &model->device);
    if (code < 0)
        return code;
    model->backend = &qmi_group_backend;
    model->backend->info(model->device, &model->info);
    return QM_OK;
}

int32_t qmi_group_load_open(qm_model *model)
{
    opener o = { .model = model };
    int32_t code = read_devices(&o);
    if (code >= 0)
        code = read_shares(&o);
    for (int32_t i = 0; i < o.count && code >= 0; i++)
        code = open_member(&o, i);
    if (code >= 0)
        code = open_group(&o);
    if (code < 0)
        close_members(&o);
    return code;
}

int32_t qmi_group_load_place(qm_model *model, qm_progress_callback progress, void *user, const int32_t *cancel)
{
    const qmi_program *const programs[QMI_GROUP_PROGRAMS] = { &model->program, &model->mtp_program };
    const qmi_group_source source = { .files = model->parts.maps, .file_count = model->parts.count, .progress = progress,
                                      .user = user, .cancel = cancel };
    if (model->backend != &qmi_group_backend)
        return QM_OK;
    return qmi_group_place(model->device, programs, model->plan.mtp ? 2 : 1, &source);
}
