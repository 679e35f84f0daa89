/* Several devices for one model: see group_load.h. */
#include "run/group_load.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "base/number.h"
#include "exchange/probe.h"
#include "run/group_choose.h"
#include "run/plan_devices.h"

#define SECOND_NS INT64_C(1000000000)

bool qmi_group_load_wanted(const qmi_settings *settings)
{
    return *qmi_settings_text(settings, QMI_OPT_DEVICES) != 0 || qmi_settings_int(settings, QMI_OPT_RANKS) > 1;
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

/* "rank:1" */
static int32_t read_rank(qmi_group_opener *o, const char *name)
{
    int64_t rank, ranks = qmi_settings_int(&o->model->settings, QMI_OPT_RANKS);
    const char *digits = name + strlen("rank:");
    if (qmi_number_read_int(digits, strlen(digits), &rank) != QMI_NUMBER_OK || rank < 1 || rank >= ranks)
        return qmi_fail(QM_ERROR_OPTION, "devices: \"%s\" is no other rank, of which option ranks says that there are %d", name,
                        (int)ranks - 1);
    for (int32_t i = 0; i < o->count; i++)
        if (o->ranks[i] == rank)
            return qmi_fail(QM_ERROR_OPTION, "devices: %s has one device, and is named twice", name);
    o->ranks[o->count++] = (int32_t)rank;
    return QM_OK;
}

/* "cuda:0@12G" */
static int32_t read_device(qmi_group_opener *o, const char *text, size_t length)
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
    if (strncmp(name, "rank:", 5) == 0 && !limited)
        return read_rank(o, name);
    int32_t code = qmi_registry_find(name, qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY), &settings->log, &found);
    if (code < 0)
        return code;
    o->choices[o->count] = found.list[0];
    o->cpus += found.list[0].backend == &qmi_cpu_backend;
    snprintf(o->members[o->count].name, sizeof o->members[0].name, "%.20s #%d", name, o->count);
    o->count++;
    return QM_OK;
}

/* Without a list: this process's device, and that of each other rank. */
static int32_t take_ranks(qmi_group_opener *o)
{
    const qmi_settings *settings = &o->model->settings;
    qmi_choices found;
    int32_t code = qmi_registry_find(qmi_settings_text(settings, QMI_OPT_DEVICE),
                                     qmi_settings_text(settings, QMI_OPT_CUDA_LIBRARY), &settings->log, &found);
    if (code < 0)
        return code;
    o->choices[0] = found.list[0];
    o->cpus = found.list[0].backend == &qmi_cpu_backend;
    o->limits[0] = qmi_settings_int(settings, QMI_OPT_MEMORY_LIMIT);
    o->count = (int32_t)qmi_settings_int(settings, QMI_OPT_RANKS);
    snprintf(o->members[0].name, sizeof o->members[0].name, "%.20s #0", found.list[0].backend->name);
    for (int32_t i = 1; i < o->count; i++)
        o->ranks[i] = i;
    return QM_OK;
}

static int32_t read_devices(qmi_group_opener *o)
{
    const char *text = qmi_settings_text(&o->model->settings, QMI_OPT_DEVICES);
    int32_t code = QM_OK;
    if (!*text)
        return take_ranks(o);
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
static int32_t read_shares(qmi_group_opener *o)
{
    const char *text = qmi_settings_text(&o->model->settings, QMI_OPT_SHARES), *at = text;
    for (int32_t i = 0; i < o->count; i++)
        o->shares[i] = 1;
    for (int32_t i = 0; *text && i < o->count; i++) {
        int64_t share;
        size_t length = strcspn(at, ":");
        bool last = i == o->count - 1;
        if (qmi_number_read_int(at, length, &share) != QMI_NUMBER_OK || share < 1 || share > 1000 || last != !at[length])
            return qmi_fail(QM_ERROR_OPTION, "shares: \"%s\" is no list of %d numbers from 1 to 1000, one a device, as in 3:1",
                            text, o->count);
        o->shares[i] = (int32_t)share;
        at += length + 1;
    }
    return QM_OK;
}

/* ---- devices ---- */

static int32_t gather_ranks(qmi_group_opener *o, const int32_t *cancel)
{
    qm_model *model = o->model;
    qmi_rank_card card;
    if (qmi_settings_int(&model->settings, QMI_OPT_RANKS) == 1)
        return QM_OK;
    int32_t code = qmi_rank_card_make(&model->settings, &model->parts, &card);
    return code < 0 ? code : qmi_ranks_gather(&card, &model->settings, cancel, &model->ranks);
}

static int32_t open_here(qmi_group_opener *o, int32_t index)
{
    const qmi_settings *settings = &o->model->settings;
    int32_t threads = (int32_t)qmi_settings_int(settings, QMI_OPT_THREADS);
    qmi_exchange_member *member = &o->members[index];
    if (threads == 0 && o->cpus > 1)
        threads = qmi_os_processor_count() / o->cpus > 1 ? qmi_os_processor_count() / o->cpus : 1;
    qmi_device_settings device = qmi_registry_device(settings, o->choices[index].index);
    device.threads = threads;
    device.pin = device.pin && o->cpus == 1; /* several would take the same processors */
    device.memory_limit = o->limits[index];
    member->backend = o->choices[index].backend;
    int32_t code = member->backend->open(&device, &member->device);
    return code < 0 ? qmi_fail_within(code, member->name) : code;
}

static int32_t open_member(qmi_group_opener *o, int32_t index)
{
    qmi_exchange_member *member = &o->members[index];
    int32_t code = o->ranks[index] ? qmi_ranks_open(o->model->ranks, o->ranks[index], &o->model->settings, member)
                                   : open_here(o, index);
    if (code < 0)
        return code;
    member->backend->info(member->device, &o->infos[index]);
    o->devices[index] = qmi_plan_devices_of(member->backend, &o->infos[index]);
    o->devices[index].name = member->name;
    return QM_OK;
}

static void close_members(qmi_group_opener *o)
{
    for (int32_t i = 0; i < o->count; i++)
        if (o->members[i].backend)
            o->members[i].backend->close(&o->members[i].device);
}

/* ---- plan ---- */

/* What the plan needs to know of all together. */
static qmi_plan_device plan_device_of(const qmi_group_opener *o)
{
    qmi_plan_device all = o->devices[0];
    all.name = "group";
    for (int32_t i = 1; i < o->count; i++) {
        const qmi_plan_device *device = &o->devices[i];
        bool known = all.memory >= 0 && device->memory >= 0;
        all.memory = !known ? -1 : device->mapped ? all.memory : all.memory + device->memory;
        all.fixed += device->fixed;
        all.mapped = all.mapped && device->mapped;
        all.chunk_low = device->chunk_low > all.chunk_low ? device->chunk_low : all.chunk_low;
        all.chunk_high = device->chunk_high > all.chunk_high ? device->chunk_high : all.chunk_high;
    }
    return all;
}

/* The plan of the model follows that of the group. */
static void adopt_plan(qm_model *model, const qmi_group_plan *group)
{
    qmi_plan *plan = &model->plan;
    plan->chunk = group->chunk;
    plan->rows = group->rows;
    plan->checkpoints = group->checkpoints;
    plan->checkpoint_memory = plan->workspace = plan->scratch = plan->fixed = plan->total = 0;
    plan->weights = plan->vectors = 0;
    for (int32_t i = 0; i < group->count; i++) {
        const qmi_member_plan *member = &group->members[i];
        plan->weights += member->weights;
        plan->vectors += member->vectors;
        plan->workspace += member->workspace;
        plan->scratch += member->scratch;
        plan->fixed += member->fixed;
        plan->checkpoint_memory += member->checkpoints;
        plan->total += member->total;
    }
    plan->fits = group->fits;
    if (!group->fits)
        snprintf(plan->reason, sizeof plan->reason, "%s", group->reason);
}

static int32_t open_group(qmi_group_opener *o)
{
    qm_model *model = o->model;
    const qmi_plan_device device = plan_device_of(o);
    const qmi_alloc *alloc = &model->settings.alloc;
    int32_t code = qmi_plan_make(&model->parts.gguf, &model->settings, &device, alloc, &model->plan);
    if (code < 0)
        return qmi_fail_within(code, model->path);
    model->group = qmi_new(alloc, 1, sizeof *model->group, "a group of devices");
    if (!model->group)
        return QM_ERROR_MEMORY;
    memcpy(model->group->members, o->members, sizeof o->members);
    memcpy(model->group->devices, o->devices, sizeof o->devices);
    strcpy(model->group->way, "host");
    for (int32_t i = 0; i < o->count; i++)
        model->group->devices[i].name = model->group->members[i].name;
    code = qmi_group_choose(o, model->group);
    if (code < 0)
        return code;
    adopt_plan(model, &model->group->plan);
    qmi_group_settings group = { .members = o->members, .sharing = model->group->sharing,
                                 .sizes = qmi_group_plan_sizes(&model->plan),
                                 .timeout_ns = qmi_settings_int(&model->settings, QMI_OPT_EXCHANGE_TIMEOUT) * SECOND_NS,
                                 .way = model->group->way, .way_needed = model->group->way_needed,
                                 .alloc = *alloc, .log = model->settings.log };
    for (int32_t i = 0; i < o->count; i++)
        group.cache_bytes[i] = model->group->plan.members[i].cache;
    code = qmi_group_open(&group, &model->device);
    if (code < 0)
        return code;
    model->backend = &qmi_group_backend;
    model->backend->info(model->device, &model->info);
    return QM_OK;
}

int32_t qmi_group_load_open(qm_model *model, const int32_t *cancel)
{
    qmi_group_opener o = { .model = model };
    int32_t code = read_devices(&o);
    if (code >= 0)
        code = read_shares(&o);
    if (code >= 0)
        code = gather_ranks(&o, cancel);
    for (int32_t i = 0; i < o.count && code >= 0; i++)
        code = open_member(&o, i);
    if (code >= 0)
        code = open_group(&o);
    if (code < 0) {
        close_members(&o);
        qmi_group_load_forget(model);
    }
    return code;
}

void qmi_group_load_forget(qm_model *model)
{
    qmi_delete(&model->settings.alloc, model->group);
    model->group = NULL;
}

/* ---- what there is to know ---- */

int64_t qmi_group_load_table(const qm_model *model, char *text, int64_t size)
{
    const qmi_group_record *group = model->group;
    int64_t length = qmi_group_plan_table(&group->plan, &group->sharing, group->devices, text, size);
    int64_t room = size > length ? size - length : 0;
    if (*group->found)
        length += snprintf(room ? text + length : NULL, (size_t)room, "  measured and predicted: %s\n", group->found);
    return length;
}

static void describe_rates(qmi_group_record *group, const qmi_group_rates *rates)
{
    int32_t length = snprintf(group->rates, sizeof group->rates, "an exchange by %s %.1f us", group->way,
                              rates->exchange_ns * 1e-3);
    for (int32_t i = 0; i < group->sharing.members && length < (int32_t)sizeof group->rates; i++)
        length += snprintf(group->rates + length, sizeof group->rates - (size_t)length,
                           "; %s: reads %.1f GB/s, an op %.1f us, a program %.1f us", group->members[i].name,
                           rates->read[i] * 1e-9, rates->op_ns[i] * 1e-3, rates->run_ns[i] * 1e-3);
}

/* How many sum together. */
static int32_t sum_size(const qmi_sharing *sharing)
{
    return sharing->stages[0].members > 1 ? sharing->stages[0].members : sharing->members;
}

int64_t qmi_group_load_predict(qm_model *model)
{
    qmi_group_record *group = model->group;
    qmi_group_rates rates;
    qmi_group_plan plan;
    qmi_probe_rates(group->members, group->sharing.members, &rates);
    qmi_group_measure(model, group, sum_size(&group->sharing), &rates);
    describe_rates(group, &rates);
    const qmi_group_question question = { &model->parts.gguf, &model->settings, &model->plan, &group->sharing, group->devices,
                                          &rates };
    int32_t code = qmi_group_plan_make(&question, &model->settings.alloc, &plan);
    return code < 0 ? code : (int64_t)plan.decode_ns;
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
