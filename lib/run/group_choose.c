/* How devices share a model, and by what way they sum: see group_choose.h. */
#include "run/group_choose.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "exchange/probe.h"
#include "memory/split.h"

static qmi_sharing start_sharing(const qmi_group_opener *o)
{
    qmi_sharing sharing = { .members = o->count, .expert_member = -1, .alike = true };
    memcpy(sharing.shares, o->shares, sizeof sharing.shares);
    for (int32_t i = 1; i < o->count; i++)
        sharing.alike = sharing.alike && strcmp(o->members[i].backend->name, o->members[0].backend->name) == 0 &&
                        strcmp(o->infos[i].name, o->infos[0].name) == 0 && strcmp(o->infos[i].isa, o->infos[0].isa) == 0;
    return sharing;
}

/* Layers in proportion to the shares. */
static void share_layers(const qmi_group_opener *o, qmi_sharing *sharing)
{
    const qmi_stage all = { .members = o->count };
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_sharing_cut(sharing, &all, o->model->plan.hparams.layers, 1, bounds);
    for (int32_t i = 0; i < o->count; i++)
        qmi_sharing_add(sharing, (int32_t)bounds[i], (int32_t)(bounds[i + 1] - bounds[i]), i);
}

/* Cards, and the CPU as the last for what they have no room for: as the split by memory has it. */
static int32_t share_by_memory(const qmi_group_opener *o, qmi_sharing *sharing)
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
static int32_t share_experts(qmi_group_opener *o, int64_t count, qmi_sharing *sharing)
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

static int32_t choose_layers(qmi_group_opener *o, qmi_sharing *sharing)
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
static void choose_tensor(const qmi_group_opener *o, int32_t size, bool inside, qmi_sharing *sharing)
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

static int32_t plan_group(const qmi_group_opener *o, const qmi_sharing *sharing, const qmi_group_rates *rates,
                          qmi_group_plan *out)
{
    const qmi_group_question question = { &o->model->parts.gguf, &o->model->settings, &o->model->plan, sharing, o->devices,
                                          rates };
    return qmi_group_plan_make(&question, &o->model->settings.alloc, out);
}

/* The split by memory does not know of the room for experts that come for each run: experts of more layers go to the host until
 * all fits. */
static int32_t move_experts(const qmi_group_opener *o, qmi_group_record *record)
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

static void QMI_PRINTF(2, 3) note_found(qmi_group_record *record, const char *format, ...)
{
    size_t length = strlen(record->found);
    va_list arguments;
    if (length > 0)
        length += (size_t)snprintf(record->found + length, sizeof record->found - length, ", ");
    va_start(arguments, format);
    if (length < sizeof record->found)
        vsnprintf(record->found + length, sizeof record->found - length, format, arguments);
    va_end(arguments);
}

static bool have_way(const qmi_group_opener *o, const char *way)
{
    bool all = true;
    for (int32_t i = 0; i < o->count; i++)
        all = all && qmi_joint_find(o->members[i].backend, way) != NULL;
    return all;
}

/* Between ranks; and where one card is several devices, as kernels that wait for each other had better not share one. */
static bool are_apart(const qmi_group_opener *o)
{
    bool apart = true;
    for (int32_t i = 0; i < o->count; i++)
        for (int32_t j = 0; j < i; j++)
            apart = apart && o->ranks[i] == 0 && o->ranks[j] == 0 &&
                    (o->choices[i].backend != o->choices[j].backend || o->choices[i].index != o->choices[j].index);
    return apart;
}

/* The fastest of the ways that need nothing else: by trial. */
static void measure_ways(const qmi_group_opener *o, int32_t size, qmi_group_record *record)
{
    static const char *const ways[] = { "peer", "pinned", "host" };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        double ns = 0;
        if (i < 2 && !have_way(o, ways[i]))
            continue;
        int32_t code = qmi_probe_sum(ways[i], o->members, size, o->model->plan.hparams.hidden, &o->model->settings.alloc,
                                     &ns);
        if (code < 0) {
            qmi_log_line(&o->model->settings.log, QM_LOG_INFO, "devices can't sum by %s: %s", ways[i], qmi_error_text());
            continue;
        }
        note_found(record, "a sum by %s %.1f us", ways[i], ns * 1e-3);
        if (i == 2)
            record->host_ns = ns;
        if (record->way_ns == 0 || ns < record->way_ns) {
            record->way_ns = ns;
            snprintf(record->way, sizeof record->way, "%s", ways[i]);
        }
    }
}

/* size: how many sum. NCCL is taken where there is nothing else, as it takes a second to start. */
static void choose_way(const qmi_group_opener *o, int32_t size, qmi_group_record *record)
{
    const char *wanted = qmi_settings_text(&o->model->settings, QMI_OPT_EXCHANGE);
    bool between_ranks = false;
    record->way_needed = strcmp(wanted, "auto") != 0;
    snprintf(record->way, sizeof record->way, "%s", record->way_needed ? wanted : "host");
    if (record->way_needed)
        return;
    if (are_apart(o) && (have_way(o, "peer") || have_way(o, "pinned")))
        measure_ways(o, size, record);
    for (int32_t i = 0; i < o->count; i++)
        between_ranks = between_ranks || o->ranks[i] > 0;
    if (strcmp(record->way, "host") == 0 && have_way(o, "nccl") && (between_ranks || size > 4))
        snprintf(record->way, sizeof record->way, "nccl");
}

static bool sums_inside(const qmi_group_opener *o, const qmi_group_record *record)
{
    const qmi_joint *joint = qmi_joint_find(o->members[0].backend, record->way);
    return joint && joint->inside;
}

void qmi_group_measure(const qm_model *model, qmi_group_record *record, int32_t size, qmi_group_rates *rates)
{
    const qmi_exchange_member *members = record->members;
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
static int32_t read_size(const qmi_group_opener *o, int32_t *size)
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
static int32_t try_sharing(const qmi_group_opener *o, const qmi_sharing *sharing, const qmi_group_rates *rates, const char *name,
                           qmi_group_record *record)
{
    candidate *other = qmi_new(&o->model->settings.alloc, 1, sizeof *other, "a split");
    if (!other)
        return QM_ERROR_MEMORY;
    int32_t code = plan_group(o, sharing, rates, &other->plan);
    if (code >= 0)
        note_found(record, "%s %.3f ms a token", name, other->plan.decode_ns * 1e-6);
    if (code >= 0 && other->plan.fits &&
        (!record->plan.fits || (other->plan.decode_ns > 0 && other->plan.decode_ns < record->plan.decode_ns))) {
        record->sharing = *sharing;
        record->plan = other->plan;
    }
    qmi_delete(&o->model->settings.alloc, other);
    return code;
}

/* Several sizes of groups with parts of layers, beside layers, which the record has. */
static int32_t try_tensor(const qmi_group_opener *o, const qmi_group_rates *rates, qmi_group_record *record)
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

int32_t qmi_group_choose(qmi_group_opener *o, qmi_group_record *record)
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
        qmi_group_measure(o->model, record, o->count, &rates);
    }
    if (code >= 0)
        code = plan_group(o, &record->sharing, open ? &rates : NULL, &record->plan);
    if (code >= 0 && qmi_settings_int(settings, QMI_OPT_HOST_EXPERTS) < 0)
        code = move_experts(o, record);
    if (code < 0 || !open)
        return code;
    note_found(record, "layers %.3f ms a token", record->plan.decode_ns * 1e-6);
    code = try_tensor(o, &rates, record);
    if (code >= 0)
        qmi_log_line(&settings->log, QM_LOG_INFO, "splits: %s", record->found);
    return code;
}
