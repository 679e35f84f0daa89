/* Several devices for one model: see group_load.h. */
#include "run/group_load.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "base/number.h"
#include "exchange/probe.h"
#include "memory/split.h"
#include "run/plan_devices.h"

#define SECOND_NS INT64_C(1000000000)

typedef struct opener {
    qm_model *model;
    int32_t count, cpus;
    qmi_choice choices[QMI_RANKS_MAX];
    int32_t ranks[QMI_RANKS_MAX];            /* whose device it is; 0: this process's, as `choices` says */
    int64_t limits[QMI_RANKS_MAX];           /* bytes; 0: none */
    qmi_exchange_member members[QMI_RANKS_MAX];
    qmi_device_info infos[QMI_RANKS_MAX];
    qmi_plan_device devices[QMI_RANKS_MAX];
    int32_t shares[QMI_RANKS_MAX];
} opener;

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
static int32_t read_rank(opener *o, const char *name)
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
static int32_t take_ranks(opener *o)
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

static int32_t read_devices(opener *o)
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
            return qmi_fail(QM_ERROR_OPTION, "shares: \"%s\" is no list of %d numbers from 1 to 1000, one a device, as in 3:1",
                            text, o->count);
        o->shares[i] = (int32_t)share;
        at += length + 1;
    }
    return QM_OK;
}

/* ---- devices ---- */

static int32_t gather_ranks(opener *o, const int32_t *cancel)
{
    qm_model *model = o->model;
    qmi_rank_card card;
    if (qmi_settings_int(&model->settings, QMI_OPT_RANKS) == 1)
        return QM_OK;
    int32_t code = qmi_rank_card_make(&model->settings, &model->parts, &card);
    return code < 0 ? code : qmi_ranks_gather(&card, &model->settings, cancel, &model->ranks);
}

static int32_t open_here(opener *o, int32_t index)
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

static int32_t open_member(opener *o, int32_t index)
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

static qmi_sharing start_sharing(const opener *o)
{
    qmi_sharing sharing = { .members = o->count, .expert_member = -1, .alike = true };
    memcpy(sharing.shares, o->shares, sizeof sharing.shares);
    for (int32_t i = 1; i < o->count; i++)
        sharing.alike = sharing.alike && strcmp(o->members[i].backend->name, o->members[0].backend->name) == 0 &&
                        strcmp(o->infos[i].name, o->infos[0].name) == 0 && strcmp(o->infos[i].isa, o->infos[0].isa) == 0;
    return sharing;
}

/* Layers in proportion to the shares. */
static void share_layers(const opener *o, qmi_sharing *sharing)
{
    const qmi_stage all = { .members = o->count };
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_sharing_cut(sharing, &all, o->model->plan.hparams.layers, 1, bounds);
    for (int32_t i = 0; i < o->count; i++)
        qmi_sharing_add(sharing, (int32_t)bounds[i], (int32_t)(bounds[i + 1] - bounds[i]), i);
}

/* Cards, and the CPU as the last for what they have no room for: as the split by memory has it. */
static int32_t share_by_memory(const opener *o, qmi_sharing *sharing)
{
    const qm_model *model = o->model;
    qmi_split split;
    int32_t code = qmi_split_make(&model->parts.gguf, &model->settings, &model->plan, o->devices, o->count,
                                  &model->settings.alloc, &split);
    if (code < 0)
        return code;
    if (!split.fits) { /* the plan of the group says what is wanting */
        share_layers(o, sharing);
        return QM_OK;
    }
    const bool alike = sharing->alike;
    qmi_group_plan_by_memory(&split, o->devices, model->plan.hparams.layers, sharing);
    sharing->alike = alike;
    return QM_OK;
}

/* The last device computes the experts of so many last layers, and nothing else. */
static int32_t share_experts(opener *o, int64_t count, qmi_sharing *sharing)
{
    const qmi_hparams *h = &o->model->plan.hparams;
    if (h->experts == 0 || count > h->layers)
        return qmi_fail(QM_ERROR_OPTION, "host-experts: %lld, but the model has %d layers%s", (long long)count, h->layers,
                        h->experts ? "" : ", and none with experts");
    sharing->expert_member = --o->count;
    sharing->expert_count = (int32_t)count;
    sharing->expert_first = h->layers - sharing->expert_count;
    share_layers(o, sharing);
    o->count++;
    return QM_OK;
}

static int32_t choose_layers(opener *o, qmi_sharing *sharing)
{
    const qmi_settings *settings = &o->model->settings;
    int64_t experts = qmi_settings_int(settings, QMI_OPT_HOST_EXPERTS);
    int32_t code = QM_OK, cards = 0;
    for (int32_t i = 0; i < o->count; i++)
        cards += !o->devices[i].mapped;
    *sharing = start_sharing(o);
    bool by_memory = *qmi_settings_text(settings, QMI_OPT_SHARES) == 0 && cards >= o->count - 1 && cards > 0 &&
                     (cards == o->count || o->devices[o->count - 1].mapped);
    if (experts >= 0)
        code = share_experts(o, experts, sharing);
    else if (by_memory)
        code = share_by_memory(o, sharing);
    else
        share_layers(o, sharing);
    return code;
}

/* Each `size` neighbours have parts of layers; several of such groups have layers, in proportion to their shares. */
static void choose_tensor(const opener *o, int32_t size, bool inside, qmi_sharing *sharing)
{
    qmi_sharing groups = { .members = o->count / size };
    const qmi_stage all = { .members = groups.members };
    int64_t bounds[QMI_RANKS_MAX + 1];
    *sharing = start_sharing(o);
    sharing->inside = inside;
    for (int32_t i = 0; i < o->count; i++)
        groups.shares[i / size] += o->shares[i];
    qmi_sharing_cut(&groups, &all, o->model->plan.hparams.layers, 1, bounds);
    for (int32_t i = 0; i < groups.members; i++)
        if (bounds[i + 1] > bounds[i])
            sharing->stages[sharing->stage_count++] =
                (qmi_stage){ (int32_t)bounds[i], (int32_t)(bounds[i + 1] - bounds[i]), i * size, size };
}

static int32_t plan_group(const opener *o, const qmi_sharing *sharing, const qmi_group_rates *rates, qmi_group_plan *out)
{
    const qmi_group_question question = { &o->model->parts.gguf, &o->model->settings, &o->model->plan, sharing, o->devices,
                                          rates };
    return qmi_group_plan_make(&question, &o->model->settings.alloc, out);
}

/* The split by memory does not know of the room for experts that come for each run: experts of more layers go to the host until
 * all fits. */
static int32_t move_experts(const opener *o, qmi_group_record *record)
{
    qmi_sharing *sharing = &record->sharing;
    int32_t code = QM_OK;
    while (code >= 0 && !record->plan.fits && sharing->expert_member >= 0 && sharing->expert_first > 0) {
        sharing->expert_first--;
        sharing->expert_count++;
        code = plan_group(o, sharing, NULL, &record->plan);
    }
    return code;
}

/* ---- how they sum ---- */

static void note_found(qmi_group_record *record, const char *format, const char *what, double number)
{
    size_t length = strlen(record->found);
    snprintf(record->found + length, sizeof record->found - length, format, length ? ", " : "", what, number);
}

static bool have_way(const opener *o, const char *way)
{
    bool all = true;
    for (int32_t i = 0; i < o->count; i++)
        all = all && qmi_joint_find(o->members[i].backend, way) != NULL;
    return all;
}

/* Between ranks; and where one card is several devices, as kernels that wait for each other had better not share one. */
static bool are_apart(const opener *o)
{
    bool apart = true;
    for (int32_t i = 0; i < o->count; i++)
        for (int32_t j = 0; j < i; j++)
            apart = apart && o->ranks[i] == 0 && o->ranks[j] == 0 &&
                    (o->choices[i].backend != o->choices[j].backend || o->choices[i].index != o->choices[j].index);
    return apart;
}

/* The fastest of the ways that need nothing else: by trial. */
static void measure_ways(const opener *o, int32_t size, qmi_group_record *record)
{
    static const char *const ways[] = { "peer", "pinned", "host" };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        double ns = 0;
        int32_t code = QM_OK;
        if (i < 2 && !have_way(o, ways[i]))
            continue;
        code = qmi_probe_sum(ways[i], o->members, size, o->model->plan.hparams.hidden, &o->model->settings.alloc, &ns);
        if (code < 0) {
            qmi_log_line(&o->model->settings.log, QM_LOG_INFO, "devices can't sum by %s: %s", ways[i], qmi_error_text());
            continue;
        }
        note_found(record, "%sa sum by %s %.1f us", ways[i], ns * 1e-3);
        if (i == 2)
            record->host_ns = ns;
        if (record->way_ns == 0 || ns < record->way_ns) {
            record->way_ns = ns;
            snprintf(record->way, sizeof record->way, "%s", ways[i]);
        }
    }
}

/* size: how many sum. NCCL is taken where there is nothing else, as it takes a second to start. */
static void choose_way(const opener *o, int32_t size, qmi_group_record *record)
{
    const char *wanted = qmi_settings_text(&o->model->settings, QMI_OPT_EXCHANGE);
    bool apart = are_apart(o), any = have_way(o, "peer") || have_way(o, "pinned");
    snprintf(record->way, sizeof record->way, "host");
    if (strcmp(wanted, "auto") != 0) {
        snprintf(record->way, sizeof record->way, "%s", wanted);
        record->way_needed = true;
    } else if (apart && any) {
        measure_ways(o, size, record);
    }
    bool between_ranks = false;
    for (int32_t i = 0; i < o->count; i++)
        between_ranks = between_ranks || o->ranks[i] > 0;
    if (strcmp(wanted, "auto") == 0 && strcmp(record->way, "host") == 0 && have_way(o, "nccl") && (between_ranks || size > 4))
        snprintf(record->way, sizeof record->way, "nccl");
}

static bool sums_inside(const opener *o, const qmi_group_record *record)
{
    const qmi_joint *joint = qmi_joint_find(o->members[0].backend, record->way);
    return joint && joint->inside;
}

/* What was not measured yet of sums; messages go through the host's memory, which costs about as much as a sum there. */
static void measure_rest(const qm_model *model, qmi_group_record *record, const qmi_exchange_member *members, int32_t size,
                         qmi_group_rates *rates)
{
    const int64_t width = model->plan.hparams.hidden;
    const qmi_alloc *alloc = &model->settings.alloc;
    if (record->host_ns == 0) /* it stays 0 where it can't be measured */
        (void)qmi_probe_sum("host", members, size, width, alloc, &record->host_ns);
    if (record->way_ns == 0 && strcmp(record->way, "host") == 0)
        record->way_ns = record->host_ns;
    if (record->way_ns == 0)
        (void)qmi_probe_sum(record->way, members, size, width, alloc, &record->way_ns);
    rates->exchange_ns = record->way_ns;
    rates->message_ns = record->host_ns;
}

/* ---- which split ---- */

/* How many of option split have parts of layers together; 0: it does not say. */
static int32_t read_size(const opener *o, int32_t *size)
{
    const char *split = qmi_settings_text(&o->model->settings, QMI_OPT_SPLIT);
    *size = 0;
    if (strncmp(split, "tensor", 6) != 0)
        return QM_OK;
    *size = split[6] ? split[7] - '0' : o->count;
    if (o->count % *size != 0)
        return qmi_fail(QM_ERROR_OPTION, "split: %s takes a number of devices that %d divides, and these are %d", split, *size,
                        o->count);
    return QM_OK;
}

typedef struct candidate {
    qmi_sharing sharing;
    qmi_group_plan plan;
} candidate;

/* Keeps the better one in the record: which fits; of those, what is predicted to be faster. */
static int32_t try_sharing(const opener *o, const qmi_sharing *sharing, const qmi_group_rates *rates, const char *name,
                           qmi_group_record *record)
{
    candidate *other = qmi_new(&o->model->settings.alloc, 1, sizeof *other, "a split");
    if (!other)
        return QM_ERROR_MEMORY;
    int32_t code = plan_group(o, sharing, rates, &other->plan);
    if (code >= 0)
        note_found(record, "%s%s %.3f ms a token", name, other->plan.decode_ns * 1e-6);
    if (code >= 0 && other->plan.fits &&
        (!record->plan.fits || (other->plan.decode_ns > 0 && other->plan.decode_ns < record->plan.decode_ns))) {
        record->sharing = *sharing;
        record->plan = other->plan;
    }
    qmi_delete(&o->model->settings.alloc, other);
    return code;
}

/* Several sizes of groups with parts of layers, beside layers, which the record has. */
static int32_t try_tensor(const opener *o, const qmi_group_rates *rates, qmi_group_record *record)
{
    int32_t code = QM_OK;
    for (int32_t size = 2; size <= o->count && code >= 0; size++) {
        char name[32];
        qmi_sharing sharing;
        if (o->count % size != 0 || size > o->model->plan.hparams.layers)
            continue;
        snprintf(name, sizeof name, size < o->count ? "tensor:%d" : "tensor", size);
        choose_tensor(o, size, sums_inside(o, record), &sharing);
        code = try_sharing(o, &sharing, rates, name, record);
    }
    return code;
}

/* Layers, unless parts of layers fit and are predicted to be faster, or are asked for. Devices that are all the CPU gain nothing
 * by parts. */
static int32_t choose_sharing(opener *o, qmi_group_record *record)
{
    const qmi_settings *settings = &o->model->settings;
    bool all_cards = true;
    int32_t size, code = read_size(o, &size);
    qmi_group_rates rates = { 0 };
    for (int32_t i = 0; i < o->count; i++)
        all_cards = all_cards && !o->devices[i].mapped;
    if (code < 0)
        return code;
    if (size > 0) {
        choose_way(o, size, record);
        choose_tensor(o, size, sums_inside(o, record), &record->sharing);
        return plan_group(o, &record->sharing, NULL, &record->plan);
    }
    code = choose_layers(o, &record->sharing);
    bool open = strcmp(qmi_settings_text(settings, QMI_OPT_SPLIT), "auto") == 0 && all_cards && o->count > 1 &&
                record->sharing.expert_member < 0;
    if (code >= 0 && open) {
        choose_way(o, o->count < 4 ? o->count : 4, record);
        qmi_probe_rates(o->members, o->count, &rates);
    }
    if (code >= 0 && open)
        measure_rest(o->model, record, o->members, o->count, &rates);
    if (code >= 0)
        code = plan_group(o, &record->sharing, open ? &rates : NULL, &record->plan);
    if (code >= 0 && qmi_settings_int(settings, QMI_OPT_HOST_EXPERTS) < 0)
        code = move_experts(o, record);
    if (code < 0 || !open)
        return code;
    note_found(record, "%s%s %.3f ms a token", "layers", record->plan.decode_ns * 1e-6);
    code = try_tensor(o, &rates, record);
    if (code >= 0)
        qmi_log_line(&settings->log, QM_LOG_INFO, "splits: %s", record->found);
    return code;
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

static int32_t open_group(opener *o)
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
    code = choose_sharing(o, model->group);
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
    opener o = { .model = model };
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
    measure_rest(model, group, group->members, sum_size(&group->sharing), &rates);
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
