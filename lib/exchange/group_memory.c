/* The memory of a group: blocks whose pieces the members have. */
#include "exchange/group_inside.h"

#include <string.h>

#define SPACE ((qmi_address)1 << 20)  /* between blocks, and before the first: an address behind a block's end is in no other */

/* ---- blocks ---- */

/* How many blocks begin at `address` or before. */
static size_t blocks_to(const qmi_group *group, qmi_address address)
{
    size_t low = 0, high = group->block_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (group->blocks[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const group_block *qmi_group_find_block(const qmi_group *group, qmi_address address)
{
    size_t i = blocks_to(group, address);
    const group_block *block = i > 0 ? &group->blocks[i - 1] : NULL;
    return block && address - block->base <= (qmi_address)block->bytes ? block : NULL;
}

qmi_address qmi_group_member_address(const qmi_group *group, int32_t member, qmi_address address)
{
    const group_block *block = address ? qmi_group_find_block(group, address) : NULL;
    if (!block || !block->members[member])
        return 0;
    return block->members[member] + (qmi_address)qmi_piece_map_below(block->map, member, (int64_t)(address - block->base));
}

static void release_members(qmi_group *group, const group_block *block)
{
    for (int32_t i = 0; i < group->count; i++)
        if (block->members[i])
            group->members[i].base.backend->release(group->members[i].base.device, block->members[i]);
}

/* Within a member's own failure its name. */
static int32_t fail_of(const group_member *member, int32_t code)
{
    return code < 0 ? qmi_fail_within(code, member->base.name) : code;
}

static int32_t allocate(qmi_group *group, const qmi_piece_map *map, int64_t bytes, const char *what, qmi_address *out)
{
    group_block block = { .base = group->next, .bytes = bytes, .map = map };
    *out = 0;
    int32_t code = qmi_reserve(&group->alloc, (void **)&group->blocks, &group->block_capacity, group->block_count + 1,
                               sizeof block, "the list of several devices' memory");
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        int64_t own = qmi_piece_map_below(map, i, bytes);
        const group_member *member = &group->members[i];
        if (own > 0)
            code = fail_of(member, member->base.backend->allocate(member->base.device, own, what, &block.members[i]));
    }
    if (code < 0) {
        release_members(group, &block);
        return code;
    }
    group->blocks[group->block_count++] = block;
    group->next += ((qmi_address)bytes + SPACE) / QMI_ALIGNMENT * QMI_ALIGNMENT;
    *out = block.base;
    return QM_OK;
}

/* What is of no use to a group: each member would have to have all of it. */
int32_t qmi_group_allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out)
{
    (void)device;
    *out = 0;
    return qmi_fail(QM_ERROR_STATE, "%s: %lld bytes for several devices, of unknown content", what, (long long)bytes);
}

int32_t qmi_group_allocate_content(qmi_device *device, const qmi_content *content, int64_t bytes, const char *what,
                                   qmi_address *out)
{
    qmi_group *group = qmi_group_of(device);
    const qmi_piece_map *map = &group->maps.pages;
    *out = 0;
    if (content->kind == QMI_CONTENT_VECTORS) {
        map = &group->whole_map;
    } else if (content->kind == QMI_CONTENT_STATES) {
        map = &group->maps.state;
    } else if (content->kind == QMI_CONTENT_SLOT) {
        const group_program *program = qmi_group_find_program(group, content->program);
        if (!program)
            return qmi_fail(QM_ERROR_STATE, "a program that was not placed");
        map = &program->cut.slots[content->slot];
    }
    return allocate(group, map, bytes, what, out);
}

void qmi_group_release(qmi_device *device, qmi_address address)
{
    qmi_group *group = qmi_group_of(device);
    size_t i = address ? blocks_to(group, address) : 0;
    if (i == 0)
        return;
    release_members(group, &group->blocks[i - 1]);
    memmove(&group->blocks[i - 1], &group->blocks[i], (group->block_count - i) * sizeof *group->blocks);
    group->block_count--;
}

/* ---- to and from the host ---- */

int32_t qmi_group_write(qmi_device *device, qmi_address to, const void *from, int64_t bytes)
{
    qmi_group *group = qmi_group_of(device);
    const group_block *block = qmi_group_find_block(group, to);
    int64_t start = (int64_t)(to - block->base), end = start + bytes;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < group->count; i++) {
        const group_member *member = &group->members[i];
        qmi_piece_run run;
        for (int64_t at = start; code >= 0 && qmi_piece_map_find(block->map, i, at, end - at, &run); at = run.offset + run.bytes)
            code = fail_of(member, member->base.backend->write(member->base.device,
                                                               block->members[i] + (qmi_address)run.member_at,
                                                               (const char *)from + (run.offset - start), run.bytes));
    }
    return code;
}

/* The members' run that begins first in [at, end); false: nobody has any of it. */
static bool find_first(const qmi_group *group, const group_block *block, int64_t at, int64_t end, int32_t *member,
                       qmi_piece_run *first)
{
    bool found = false;
    for (int32_t i = 0; i < group->count && !(found && first->offset == at); i++) {
        qmi_piece_run run;
        if (qmi_piece_map_find(block->map, i, at, end - at, &run) && (!found || run.offset < first->offset)) {
            found = true;
            *first = run;
            *member = i;
        }
    }
    return found;
}

int32_t qmi_group_read(qmi_device *device, void *to, qmi_address from, int64_t bytes)
{
    qmi_group *group = qmi_group_of(device);
    const group_block *block = qmi_group_find_block(group, from);
    int64_t start = (int64_t)(from - block->base), end = start + bytes, at = start;
    int32_t code = QM_OK, index = 0;
    while (at < end && code >= 0) {
        qmi_piece_run run = { .offset = end };
        char *place = (char *)to + (at - start);
        bool found = find_first(group, block, at, end, &index, &run);
        memset(place, 0, (size_t)(run.offset - at)); /* what nobody has is padding */
        if (!found)
            break;
        const group_member *member = &group->members[index];
        code = fail_of(member, member->base.backend->read(member->base.device, place + (run.offset - at),
                                                          block->members[index] + (qmi_address)run.member_at, run.bytes));
        at = run.offset + run.bytes;
    }
    return code;
}

/* ---- within ---- */

int32_t qmi_group_clear(qmi_device *device, qmi_address at, int64_t bytes)
{
    qmi_group *group = qmi_group_of(device);
    const group_block *block = qmi_group_find_block(group, at);
    int64_t start = (int64_t)(at - block->base);
    int32_t code = QM_OK;
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        const group_member *member = &group->members[i];
        int64_t first = qmi_piece_map_below(block->map, i, start), end = qmi_piece_map_below(block->map, i, start + bytes);
        if (end > first)
            code = fail_of(member, member->base.backend->clear(member->base.device, block->members[i] + (qmi_address)first,
                                                               end - first));
    }
    return code;
}

/* Records that lie alike on every member: in one go each. */
static int32_t copy_alike(qmi_group *group, const group_block *to, int64_t to_at, const group_block *from, int64_t from_at,
                          int64_t bytes)
{
    int32_t code = QM_OK;
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        const group_member *member = &group->members[i];
        int64_t target = qmi_piece_map_below(to->map, i, to_at), source = qmi_piece_map_below(from->map, i, from_at);
        int64_t size = qmi_piece_map_below(to->map, i, to_at + bytes) - target;
        if (size > 0)
            code = fail_of(member, member->base.backend->copy(member->base.device, to->members[i] + (qmi_address)target,
                                                              from->members[i] + (qmi_address)source, size));
    }
    return code;
}

static int32_t copy_over_host(qmi_group *group, int32_t index, qmi_address to, qmi_address from, int64_t bytes)
{
    const group_member *member = &group->members[index];
    void *buffer = qmi_new(&group->alloc, (size_t)bytes, 1, "a copy between devices");
    int32_t code = buffer ? qmi_group_read((qmi_device *)(void *)group, buffer, from, bytes) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = fail_of(member, member->base.backend->write(member->base.device, to, buffer, bytes));
    qmi_delete(&group->alloc, buffer);
    return code;
}

/* What a member has of the target: from itself where it has the source too, else from whoever has it. */
static int32_t copy_run(qmi_group *group, int32_t index, qmi_address to, const group_block *from, int64_t from_at, int64_t bytes)
{
    const group_member *member = &group->members[index];
    int32_t code = QM_OK;
    while (bytes > 0 && code >= 0) {
        qmi_piece_run run;
        bool found = qmi_piece_map_find(from->map, index, from_at, bytes, &run);
        int64_t size = !found ? bytes : run.offset > from_at ? run.offset - from_at : run.bytes;
        if (found && run.offset == from_at)
            code = fail_of(member, member->base.backend->copy(member->base.device, to,
                                                              from->members[index] + (qmi_address)run.member_at, size));
        else
            code = copy_over_host(group, index, to, from->base + (qmi_address)from_at, size);
        to += (qmi_address)size;
        from_at += size;
        bytes -= size;
    }
    return code;
}

int32_t qmi_group_copy(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes)
{
    qmi_group *group = qmi_group_of(device);
    const group_block *target = qmi_group_find_block(group, to), *source = qmi_group_find_block(group, from);
    int64_t to_at = (int64_t)(to - target->base), from_at = (int64_t)(from - source->base);
    int32_t code = QM_OK;
    if (target->map == source->map && to_at % target->map->period == from_at % source->map->period)
        return copy_alike(group, target, to_at, source, from_at, bytes);
    for (int32_t i = 0; i < group->count; i++) {
        qmi_piece_run run;
        for (int64_t at = to_at; code >= 0 && qmi_piece_map_find(target->map, i, at, to_at + bytes - at, &run);
             at = run.offset + run.bytes)
            code = copy_run(group, i, target->members[i] + (qmi_address)run.member_at, source, from_at + (run.offset - to_at),
                            run.bytes);
    }
    return code;
}
