/* The plan of a group: see group_plan.h. */
#include "exchange/group_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "exchange/operands.h"
#include "exchange/predict.h"
#include "exchange/slices.h"

#define CHUNK_LEAST 32
#define PROGRAMS 2

typedef struct maker {
    const qmi_group_question *question;
    const qmi_alloc *alloc;
    qmi_group_plan *out;
    qmi_weights weights;             /* of a survey, by the file's types */
    qmi_program programs[PROGRAMS];
    int32_t program_count;
    qmi_cut_maps maps;
    qmi_cut cuts[PROGRAMS], wide[PROGRAMS]; /* wide: of batches of many rows, where they differ */
    int32_t cut_count, wide_count;
} maker;

qmi_cut_sizes qmi_group_plan_sizes(const qmi_plan *plan)
{
    return (qmi_cut_sizes){ .page_bytes = plan->kv.page_bytes, .layer_bytes = plan->kv.layer_bytes,
                            .value_offset = plan->kv.value_offset, .recurrent_bytes = plan->state.recurrent_bytes,
                            .hidden_bytes = plan->state.hidden_bytes, .logits_bytes = plan->state.logits_bytes };
}

static int32_t build(maker *m)
{
    const qmi_group_question *q = m->question;
    const qmi_plan *plan = q->plan;
    const qmi_cut_sizes sizes = qmi_group_plan_sizes(plan);
    const qmi_program *const programs[PROGRAMS] = { &m->programs[0], &m->programs[1] };
    qmi_weight_sums sums;
    int32_t code = qmi_weights_survey(q->gguf, &plan->hparams, plan->mtp, NULL, m->alloc, &m->weights, &sums);
    if (code >= 0)
        code = qmi_forward_build(&plan->hparams, &m->weights, &plan->kv, m->alloc, &m->programs[0]);
    m->program_count = 1;
    if (code >= 0 && plan->mtp) {
        code = qmi_forward_build_mtp(&plan->hparams, &m->weights, &plan->kv, m->alloc, &m->programs[1]);
        m->program_count = 2;
    }
    if (code >= 0)
        code = qmi_cut_map(programs, m->program_count, q->sharing, &sizes, m->alloc, &m->maps);
    for (int32_t i = 0; i < m->program_count && code >= 0; i++) {
        code = qmi_cut_make(&m->programs[i], q->sharing, &m->maps, m->alloc, &m->cuts[i]);
        m->cut_count += code >= 0;
    }
    qmi_sharing wide;
    bool lends[QMI_RANKS_MAX] = { false };
    for (int32_t i = 0; i < q->sharing->members; i++)
        lends[i] = q->devices[i].lends;
    bool widens = qmi_sharing_widen(q->sharing, lends, &wide);
    for (int32_t i = 0; i < m->program_count && code >= 0 && widens; i++) {
        code = qmi_cut_make(&m->programs[i], &wide, &m->maps, m->alloc, &m->wide[i]);
        m->wide_count += code >= 0;
    }
    return code;
}

/* ---- bytes that do not change with the chunk ---- */

static int64_t bytes_on(const qmi_plan_device *device, const qmi_slice *slice)
{
    qmi_matrix matrix = qmi_slice_matrix(slice);
    if (!device->matrix_bytes)
        return qmi_slice_bytes(slice);
    int64_t bytes = device->matrix_bytes(&matrix.type, matrix.columns, matrix.rows * matrix.count);
    return bytes > 0 ? bytes : 0;
}

/* Room for the experts that come for each run: for twice those of the op that has most of them. */
static int64_t count_lent(const maker *m, int32_t index, const qmi_slice_list *list, size_t held)
{
    int64_t most = 0;
    for (int32_t c = 0; c < m->wide_count; c++) {
        const qmi_part_of *part = &m->wide[c].parts[index];
        for (size_t p = 0; p < part->program_count; p++)
            for (size_t o = 0; o < part->programs[p].count; o++) {
                const qmi_operands all = qmi_operands_of(&part->programs[p].ops[o]);
                int64_t bytes = 0;
                for (int32_t i = 0; i < all.matrix_count; i++) {
                    const qmi_slice *slice = all.matrices[i]->data ? &part->slices[all.matrices[i]->data - 1] : NULL;
                    if (slice && slice->whole.count > 1 && qmi_slices_find(list, slice) >= held)
                        bytes += bytes_on(&m->question->devices[index], slice);
                }
                most = bytes > most ? bytes : most;
            }
    }
    return 2 * most;
}

static int32_t count_weights(maker *m, int32_t index)
{
    const qmi_plan_device *device = &m->question->devices[index];
    qmi_member_plan *member = &m->out->members[index];
    qmi_slice_list list = { 0 };
    int32_t code = QM_OK;
    for (int32_t i = 0; i < m->cut_count && code >= 0; i++)
        code = qmi_slices_collect(&list, &m->cuts[i], index, false, m->alloc);
    const size_t held = list.count;
    for (int32_t i = 0; i < m->wide_count && code >= 0; i++)
        code = qmi_slices_collect(&list, &m->wide[i], index, false, m->alloc);
    for (size_t i = 0; i < list.count && code >= 0; i++) {
        int64_t offset;
        if (i >= held && list.list[i]->whole.count > 1)
            continue;
        member->weights += bytes_on(device, list.list[i]);
        if (device->mapped && !qmi_slice_is_run(list.list[i], &offset))
            member->copied += qmi_slice_bytes(list.list[i]);
    }
    member->lent = device->mapped ? 0 : count_lent(m, index, &list, held);
    const int64_t cache = qmi_settings_int(m->question->settings, QMI_OPT_EXPERT_CACHE);
    member->cache = member->lent > 0 && cache > 0 ? cache : 0;
    qmi_slices_free(&list, m->alloc);
    return code;
}

static void count_vectors(maker *m, int32_t index)
{
    qmi_member_plan *member = &m->out->members[index];
    member->vectors = m->question->plan->vectors;
    for (int32_t c = 0; c < m->cut_count; c++)
        for (size_t i = 0; i < m->cuts[c].parts[index].slice_count; i++) {
            const qmi_slice *slice = &m->cuts[c].parts[index].slices[i];
            int64_t bytes = qmi_slice_bytes(slice);
            if (slice->vector && bytes < slice->whole.rows * slice->whole.columns * (int64_t)sizeof(float))
                member->vectors += (bytes + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
        }
}

static void describe(maker *m, int32_t index)
{
    const qmi_sharing *sharing = m->question->sharing;
    qmi_member_plan *member = &m->out->members[index];
    for (int32_t i = 0; i < sharing->stage_count; i++) {
        const qmi_stage *stage = &sharing->stages[i];
        int32_t total = 0;
        for (int32_t k = 0; k < stage->members; k++)
            total += sharing->shares[stage->member + k];
        if (index >= stage->member && index < stage->member + stage->members) {
            member->first = stage->first;
            member->count = stage->count;
            member->part = (double)sharing->shares[index] / total;
        }
    }
    if (index == sharing->expert_member)
        member->expert_layers = sharing->expert_count;
}

/* The device's own types, for the sizes of its scratch. */
static void convert_types(maker *m, int32_t index)
{
    const qmi_plan_device *device = &m->question->devices[index];
    for (int32_t c = 0; c < m->cut_count + m->wide_count && device->matrix_bytes; c++) {
        qmi_part_of *part = c < m->cut_count ? &m->cuts[c].parts[index] : &m->wide[c - m->cut_count].parts[index];
        for (size_t p = 0; p < part->program_count; p++)
            for (size_t o = 0; o < part->programs[p].count; o++) {
                qmi_operands all = qmi_operands_of(&part->programs[p].ops[o]);
                for (int32_t i = 0; i < all.matrix_count; i++)
                    if (all.matrices[i]->rows)
                        device->matrix_bytes(&all.matrices[i]->type, all.matrices[i]->columns,
                                             all.matrices[i]->rows * all.matrices[i]->count);
            }
    }
}

static int32_t count_fixed(maker *m)
{
    const qmi_plan *plan = m->question->plan;
    int64_t pages = plan->kv.page_bytes ? plan->kv_pool / plan->kv.page_bytes : 0;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < m->out->count && code >= 0; i++) {
        qmi_member_plan *member = &m->out->members[i];
        code = count_weights(m, i);
        count_vectors(m, i);
        describe(m, i);
        convert_types(m, i);
        member->kv = pages * m->maps.pages.members[i].period;
        member->state = 2 * m->maps.state.members[i].period; /* and the copy that a prompt is computed into */
        member->fixed = m->question->devices[i].fixed;
        member->available = m->question->devices[i].memory;
    }
    return code;
}

/* ---- a chunk and its activations ---- */

static int64_t workspace_of(const maker *m, const qmi_cut *cut, int32_t index)
{
    int64_t bytes = 0;
    for (int32_t i = 0; i < cut->slot_count + cut->own_slots; i++) {
        const qmi_slot_shape *slot = &cut->parts[index].slots[i];
        int64_t size = slot->width * (slot->outputs ? m->question->plan->outputs : m->out->rows) * (int64_t)sizeof(float);
        bytes += (size + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
    }
    return bytes;
}

static int32_t add_scratch(const maker *m, const qmi_part_of *part, int32_t index, int64_t *scratch)
{
    const qmi_plan_device *device = &m->question->devices[index];
    for (size_t p = 0; p < part->program_count && device->scratch_bytes; p++) {
        int64_t bytes = device->scratch_bytes(&part->programs[p], m->out->rows, device->threads);
        if (bytes < 0)
            return (int32_t)bytes;
        *scratch = bytes > *scratch ? bytes : *scratch;
    }
    return QM_OK;
}

static int64_t checkpoint_bytes(const maker *m, int32_t index)
{
    bool any = m->question->plan->state.recurrent_bytes > 0;
    return any ? m->maps.state.members[index].period + m->maps.pages.members[index].period : 0;
}

static void sum_member(const maker *m, int32_t index)
{
    qmi_member_plan *member = &m->out->members[index];
    member->checkpoints = m->out->checkpoints * checkpoint_bytes(m, index);
    member->total = member->vectors + member->kv + member->state + member->checkpoints + member->workspace + member->scratch +
                    member->fixed + member->lent + member->cache +
                    (m->question->devices[index].mapped ? member->copied : member->weights);
}

static int32_t set_chunk(maker *m, int32_t chunk)
{
    const qmi_plan *plan = m->question->plan;
    int32_t code = QM_OK;
    m->out->chunk = chunk;
    m->out->rows = chunk > plan->sequences ? chunk : plan->sequences;
    m->out->rows = m->out->rows < 2 ? 2 : m->out->rows;
    m->out->fits = true;
    for (int32_t i = 0; i < m->out->count && code >= 0; i++) {
        qmi_member_plan *member = &m->out->members[i];
        member->workspace = member->scratch = 0;
        for (int32_t c = 0; c < m->cut_count && code >= 0; c++) {
            member->workspace += workspace_of(m, &m->cuts[c], i);
            code = add_scratch(m, &m->cuts[c].parts[i], i, &member->scratch);
        }
        for (int32_t c = 0; c < m->wide_count && code >= 0; c++)
            code = add_scratch(m, &m->wide[c].parts[i], i, &member->scratch);
        sum_member(m, i);
        m->out->fits = m->out->fits && (member->available < 0 || member->total <= member->available);
    }
    return code;
}

/* Several members may be of one memory, which the host's are: then it is theirs together. */
static void share_host(maker *m)
{
    int64_t total = 0, available = -1;
    for (int32_t i = 0; i < m->out->count; i++)
        if (m->question->devices[i].mapped) {
            total += m->out->members[i].total;
            available = m->out->members[i].available > available ? m->out->members[i].available : available;
        }
    if (available >= 0 && total > available)
        m->out->fits = false;
}

static int32_t choose_chunk(maker *m)
{
    int32_t chunk = m->question->plan->chunk, code;
    bool given = qmi_settings_int(m->question->settings, QMI_OPT_CHUNK) > 0;
    for (;; chunk /= 2) {
        code = set_chunk(m, chunk);
        share_host(m);
        if (code < 0 || m->out->fits || given || chunk / 2 < CHUNK_LEAST)
            return code;
    }
}

/* As many as the plan would keep where there is enough memory: at most a quarter of what is left on each. */
static void choose_checkpoints(maker *m)
{
    const qmi_plan *plan = m->question->plan;
    int64_t count = qmi_plan_checkpoints(plan);
    if (plan->state.recurrent_bytes == 0 || qmi_settings_int(m->question->settings, QMI_OPT_CHECKPOINT_MEMORY) >= 0)
        return;
    for (int32_t i = 0; i < m->out->count; i++) {
        const qmi_member_plan *member = &m->out->members[i];
        int64_t each = checkpoint_bytes(m, i), left = (member->available - member->total) / 4;
        if (member->available >= 0 && each > 0 && left / each < count)
            count = left > 0 ? left / each : 0;
    }
    m->out->checkpoints = (int32_t)count;
    for (int32_t i = 0; i < m->out->count; i++)
        sum_member(m, i);
}

static void choose_caches(maker *m)
{
    if (qmi_settings_int(m->question->settings, QMI_OPT_EXPERT_CACHE) >= 0)
        return;
    for (int32_t i = 0; i < m->out->count; i++) {
        qmi_member_plan *member = &m->out->members[i];
        if (member->lent > 0 && member->available >= 0)
            member->cache = (member->available - member->total) / 4 * 3;
        sum_member(m, i);
    }
}

static void explain(maker *m)
{
    for (int32_t i = 0; i < m->out->count; i++) {
        const qmi_member_plan *member = &m->out->members[i];
        if (member->available < 0 || member->total <= member->available)
            continue;
        snprintf(m->out->reason, sizeof m->out->reason, "%s needs %" PRId64 " bytes for its part, and %" PRId64 " are available; "
                 "lower context, take a smaller kv-type, or give it less by shares", m->question->devices[i].name, member->total,
                 member->available);
        return;
    }
    snprintf(m->out->reason, sizeof m->out->reason, "the devices that compute in the host's memory need more than it has; lower "
             "context, or take a smaller kv-type");
}

int32_t qmi_group_plan_make(const qmi_group_question *question, const qmi_alloc *alloc, qmi_group_plan *out)
{
    *out = (qmi_group_plan){ .count = question->sharing->members };
    maker *m = qmi_new(alloc, 1, sizeof *m, "the plan of several devices");
    if (!m)
        return QM_ERROR_MEMORY;
    *m = (maker){ .question = question, .alloc = alloc, .out = out };
    if (qmi_settings_int(question->settings, QMI_OPT_CHECKPOINT_MEMORY) >= 0)
        out->checkpoints = question->plan->checkpoints;
    int32_t code = build(m);
    if (code >= 0)
        code = count_fixed(m);
    if (code >= 0)
        code = choose_chunk(m);
    if (code >= 0 && out->fits) {
        choose_checkpoints(m);
        choose_caches(m);
    } else if (code >= 0) {
        explain(m);
    }
    if (code >= 0)
        code = qmi_predict(&m->cuts[0], question->sharing, question->devices, question->rates, alloc, out);
    for (int32_t i = 0; i < m->cut_count; i++)
        qmi_cut_free(&m->cuts[i], alloc);
    for (int32_t i = 0; i < m->wide_count; i++)
        qmi_cut_free(&m->wide[i], alloc);
    qmi_cut_maps_free(&m->maps, alloc);
    for (int32_t i = 0; i < m->program_count; i++)
        qmi_program_free(&m->programs[i], alloc);
    qmi_weights_free(&m->weights, NULL, NULL, alloc);
    qmi_delete(alloc, m);
    return code;
}

void qmi_group_plan_by_memory(const qmi_split *split, const qmi_plan_device *devices, int32_t layers, qmi_sharing *out)
{
    int32_t host = devices[split->count - 1].mapped ? split->count - 1 : -1;
    *out = (qmi_sharing){ .members = split->count, .expert_member = -1, .alike = true };
    for (int32_t i = 0; i < split->count; i++)
        out->shares[i] = 1;
    if (host >= 0)
        qmi_sharing_add(out, split->shares[host].part.first, split->shares[host].part.count, host);
    for (int32_t i = 0; i < split->count; i++)
        if (i != host)
            qmi_sharing_add(out, split->shares[i].part.first, split->shares[i].part.count, i);
    if (host >= 0 && split->shares[host].expert_layers > 0) {
        out->expert_member = host;
        out->expert_count = split->shares[host].expert_layers;
        out->expert_first = layers - out->expert_count;
    }
}
