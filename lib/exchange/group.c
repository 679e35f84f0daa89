/* Several devices as one: opening and closing, and the table of functions. See group.h. */
#include "exchange/group.h"

#include <stdio.h>
#include <string.h>
#include "exchange/exchange_host.h"
#include "exchange/exchange_joint.h"
#include "exchange/group_help.h"
#include "exchange/group_inside.h"

/* ---- opening and closing ---- */

/* By the members' own way to sum, where they have one; else through the host. */
static int32_t open_ends(const qmi_group *group, const qmi_group_settings *settings, const qmi_exchange_member *members,
                         int32_t count, bool sums, qmi_exchange **ends)
{
    int32_t code = QM_ERROR_UNSUPPORTED;
    bool own = sums && count > 1 && strcmp(settings->way, "host") != 0;
    if (own)
        code = qmi_exchange_joint_open(settings->way, members, count, settings->timeout_ns, &group->alloc, ends);
    if (code >= 0 || code == QM_ERROR_MEMORY || (own && settings->way_needed))
        return code;
    if (own)
        qmi_log_line(&group->log, QM_LOG_INFO, "devices sum through the host's memory: %s", qmi_error_text());
    return qmi_exchange_host_open(members, count, settings->timeout_ns, &group->alloc, ends);
}

static int32_t open_circle(qmi_group *group, int32_t index, const qmi_group_settings *settings)
{
    const qmi_circle *circle = &group->circles[index];
    qmi_exchange_member members[QMI_RANKS_MAX];
    qmi_exchange *ends[QMI_RANKS_MAX];
    for (int32_t i = 0; i < circle->count; i++)
        members[i] = group->members[circle->members[i]].base;
    bool sums = index > 0 || group->sharing.stage_count == 1; /* the first, of all, else only sends */
    int32_t code = open_ends(group, settings, members, circle->count, sums, ends);
    if (code >= 0 && sums && circle->count > 1 && !ends[0]->carrier->inside)
        group->sharing.inside = false;
    if (code >= 0 && sums && circle->count > 1 && ends[0]->carrier->inside)
        group->sharing.inside = group->sharing.inside && ends[0]->carrier->inside(ends[0]) != NULL;
    for (int32_t i = 0; i < circle->count && code >= 0; i++)
        group->ends[index][circle->members[i]] = ends[i];
    return code;
}

/* Frees what the group itself has taken of a member. */
static void leave_member(const qmi_group *group, int32_t index)
{
    const group_member *member = &group->members[index];
    const qmi_backend *backend = member->base.backend;
    backend->release(member->base.device, member->vectors);
    for (int32_t p = 0; p < group->program_count; p++)
        for (int32_t i = 0; i < QMI_SLOTS_MAX; i++)
            backend->release(member->base.device, group->programs[p].own[index][i]);
    for (size_t i = 0; i < member->buffer_count; i++)
        qmi_delete(&group->alloc, member->buffers[i]);
    qmi_delete(&group->alloc, member->buffers);
    qmi_delete(&group->alloc, member->sequences);
    qmi_delete(&group->alloc, member->pages);
    qmi_delete(&group->alloc, member->picks);
}

static void free_group(qmi_group *group)
{
    const qmi_alloc alloc = group->alloc;
    qmi_group_stop_threads(group);
    for (int32_t c = 0; c < group->circle_count; c++)
        for (int32_t i = 0; i < group->count; i++)
            if (group->ends[c][i])
                group->ends[c][i]->carrier->close(group->ends[c][i]);
    for (int32_t i = 0; i < group->count; i++)
        leave_member(group, i);
    for (int32_t i = 0; i < group->program_count; i++) {
        qmi_cut_free(&group->programs[i].cut, &alloc);
        qmi_cut_free(&group->programs[i].wide, &alloc);
    }
    qmi_group_help_stop(group);
    qmi_cut_maps_free(&group->maps, &alloc);
    qmi_piece_map_free(&group->whole_map, &alloc);
    qmi_delete(&alloc, group->blocks);
    qmi_delete(&alloc, group->outputs);
    qmi_delete(&alloc, group);
}

static int32_t map_whole(qmi_group *group)
{
    int32_t code = QM_OK;
    group->whole_map.period = INT64_MAX / 2; /* more than any block: one record */
    for (int32_t i = 0; i < group->count && code >= 0; i++)
        code = qmi_piece_map_add(&group->whole_map, &group->alloc, i, 0, group->whole_map.period);
    return code;
}

int32_t qmi_group_open(const qmi_group_settings *settings, qmi_device **out)
{
    *out = NULL;
    qmi_group *group = qmi_new(&settings->alloc, 1, sizeof *group, "a group of devices");
    if (!group)
        return QM_ERROR_MEMORY;
    group->alloc = settings->alloc;
    group->log = settings->log;
    group->sharing = settings->sharing;
    group->sizes = settings->sizes;
    group->timeout_ns = settings->timeout_ns;
    memcpy(group->cache_bytes, settings->cache_bytes, sizeof group->cache_bytes);
    group->count = settings->sharing.members;
    group->next = 4096; /* 0 is no address */
    for (int32_t i = 0; i < group->count; i++) {
        group->members[i].base = settings->members[i];
        group->members[i].group = group;
        settings->members[i].backend->info(settings->members[i].device, &group->members[i].info);
    }
    group->circle_count = qmi_cut_circles(&group->sharing, group->circles);
    group->spin_ns = qmi_exchange_spin(settings->members, group->count);
    int32_t code = map_whole(group);
    for (int32_t i = 0; i < group->circle_count && code >= 0; i++)
        code = open_circle(group, i, settings);
    if (code >= 0)
        code = qmi_group_start_threads(group);
    if (code < 0) {
        free_group(group);
        return code;
    }
    *out = (qmi_device *)(void *)group;
    return QM_OK;
}

static int32_t device_count(void)
{
    return 0;
}

static int32_t open_device(const qmi_device_settings *settings, qmi_device **out)
{
    (void)settings;
    *out = NULL;
    return qmi_fail(QM_ERROR_DEVICE, "a group of devices is made of devices that are open");
}

static void close_device(qmi_device **device)
{
    qmi_group *group = qmi_group_of(*device);
    qmi_exchange_member members[QMI_RANKS_MAX];
    if (!group)
        return;
    int32_t count = group->count;
    for (int32_t i = 0; i < count; i++)
        members[i] = group->members[i].base;
    free_group(group);
    for (int32_t i = 0; i < count; i++)
        members[i].backend->close(&members[i].device);
    *device = NULL;
}

/* ---- what there is to know ---- */

/* Highest logits are put together of the parts' highest, so a part must have that many. */
static bool can_pick(const qmi_group *group)
{
    const qmi_stage *last = &group->sharing.stages[group->sharing.stage_count - 1];
    int64_t vocabulary = group->sizes.logits_bytes / (int64_t)sizeof(float), rows[QMI_RANKS_MAX + 1];
    qmi_sharing_cut(&group->sharing, last, vocabulary, 1, rows);
    bool all = true;
    for (int32_t i = 0; i < last->members; i++)
        all = all && group->members[last->member + i].info.picks &&
              (last->members == 1 || rows[i + 1] - rows[i] >= 2 * QMI_PICKS_MAX);
    return all;
}

static void info(qmi_device *device, qmi_device_info *out)
{
    qmi_group *group = qmi_group_of(device);
    int32_t length = 0;
    *out = (qmi_device_info){ .picks = can_pick(group) };
    for (int32_t i = 0; i < group->count; i++) {
        group_member *member = &group->members[i];
        const qmi_device_info *own = &member->info;
        member->base.backend->info(member->base.device, &member->info);
        if (length >= 0 && length < (int32_t)sizeof out->name)
            length += snprintf(out->name + length, sizeof out->name - (size_t)length, "%s%s", i ? ", " : "", member->base.name);
        if (i == 0)
            memcpy(out->isa, own->isa, sizeof out->isa);
        out->threads += own->threads;
        out->memory_total += own->memory_total;
        out->memory_free += own->memory_free;
        out->memory_fixed += own->memory_fixed;
        out->mapped = out->mapped || own->mapped;
        out->chunk_low = own->chunk_low > out->chunk_low ? own->chunk_low : out->chunk_low;
        out->chunk_high = own->chunk_high > out->chunk_high ? own->chunk_high : out->chunk_high;
    }
}

/* ---- getting ready ---- */

static int32_t prepare_part(const group_member *member, const qmi_part_of *part, int32_t rows)
{
    int32_t code = QM_OK;
    for (size_t i = 0; i < part->program_count && code >= 0; i++)
        code = member->base.backend->prepare(member->base.device, &part->programs[i], rows);
    return code;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int32_t prepare_member(qmi_group *group, group_program *program, int32_t index, int32_t rows)
{
    const group_member *member = &group->members[index];
    const qmi_part_of *part = &program->cut.parts[index], *wide = &program->wide.parts[index];
    const bool narrow = !group->helps || index == group->sharing.expert_member;
    int32_t code = QM_OK, end = program->cut.slot_count + program->cut.own_slots;
    for (int32_t i = program->cut.slot_count; i < end && code >= 0 && !group->helps; i++) {
        int64_t bytes = rows * larger(part->slots[i].width, wide->slots[i].width) * (int64_t)sizeof(float);
        member->base.backend->release(member->base.device, program->own[index][i]);
        program->own[index][i] = 0;
        if (bytes > 0)
            code = member->base.backend->allocate(member->base.device, bytes, part->slots[i].name, &program->own[index][i]);
    }
    if (code >= 0 && narrow)
        code = prepare_part(member, part, rows);
    if (code >= 0 && program->has_wide)
        code = prepare_part(member, wide, rows);
    return code < 0 ? qmi_fail_within(code, member->base.name) : code;
}

static int32_t prepare(qmi_device *device, const qmi_program *whole, int32_t rows)
{
    qmi_group *group = qmi_group_of(device);
    group_program *program = (group_program *)qmi_group_find_program(group, whole);
    int32_t code = program ? QM_OK : qmi_fail(QM_ERROR_STATE, "a program that was not placed");
    if (code < 0 || rows <= program->own_rows)
        return code;
    program->own_rows = 0;
    for (int32_t i = 0; i < group->count && code >= 0; i++)
        code = prepare_member(group, program, i, rows);
    if (code >= 0)
        program->own_rows = rows;
    return code;
}

/* The place of the matrix in the mapped file tells it apart until it is placed. */
static int32_t upload(qmi_device *device, const void *data, qmi_matrix *matrix)
{
    (void)device;
    matrix->data = (qmi_address)(uintptr_t)data;
    return QM_OK;
}

const qmi_backend qmi_group_backend = {
    .abi = QMI_BACKEND_ABI,
    .name = "group",
    .device_count = device_count,
    .open = open_device,
    .close = close_device,
    .info = info,
    .allocate = qmi_group_allocate,
    .release = qmi_group_release,
    .upload = upload,
    .write = qmi_group_write,
    .read = qmi_group_read,
    .copy = qmi_group_copy,
    .clear = qmi_group_clear,
    .prepare = prepare,
    .run = qmi_group_run,
    .allocate_content = qmi_group_allocate_content,
};
