/* Weights of a group: programs are cut, and each member gets its slices of matrices and vectors. */
#include "exchange/group_help.h"
#include "exchange/group_inside.h"

#include <string.h>
#include "exchange/operands.h"
#include "exchange/slices.h"

typedef struct slice_source {      /* of a qmi_row_source */
    const qmi_slice *slice;
    const qmi_os_map *map;         /* that it lies in, or NULL */
} slice_source;

typedef struct placer {
    qmi_group *group;
    group_member *member;
    int32_t index;
    qmi_slice_list matrices, vectors;
    size_t lent;                   /* matrices from here on are of wide batches alone: experts of them are lent */
    qmi_matrix *placed;            /* of each slice of a matrix, as it lies on the device */
    slice_source *sources;         /* likewise */
    qmi_address *addresses;        /* of each slice of a vector */
    const qmi_group_source *source;
    int64_t bytes, before, total;  /* of this member's matrices; of those before it; and of all */
} placer;

/* ---- matrices ---- */

static int64_t device_bytes(const placer *p, const qmi_slice *slice)
{
    qmi_matrix matrix = qmi_slice_matrix(slice);
    if (!p->member->base.backend->matrix_bytes)
        return qmi_slice_bytes(slice);
    return p->member->base.backend->matrix_bytes(&matrix.type, matrix.columns, matrix.rows * matrix.count);
}

/* What of the mapped file, or of a copy, is a slice's matrix. */
static int32_t find_data(placer *p, const qmi_slice *slice, const void **data)
{
    group_member *member = p->member;
    const qmi_alloc *alloc = &p->group->alloc;
    const char *whole = (const char *)(uintptr_t)slice->whole.data;
    int64_t offset;
    if (qmi_slice_is_run(slice, &offset)) {
        *data = whole + offset;
        return QM_OK;
    }
    int32_t code = qmi_reserve(alloc, (void **)&member->buffers, &member->buffer_capacity, member->buffer_count + 1,
                               sizeof *member->buffers, "slices of weights");
    void *buffer = code < 0 ? NULL : qmi_new(alloc, (size_t)qmi_slice_bytes(slice), 1, "a slice of weights");
    if (!buffer)
        return QM_ERROR_MEMORY;
    member->buffers[member->buffer_count++] = buffer;
    qmi_slice_gather(slice, whole, buffer);
    *data = buffer;
    return QM_OK;
}

static int32_t read_rows(const void *user, int64_t first, int64_t count, void *to)
{
    const slice_source *source = user;
    return qmi_slice_gather_rows(source->slice, (const void *)(uintptr_t)source->slice->whole.data, source->map, first, count,
                                 to);
}

static const qmi_os_map *map_of(const qmi_group_source *source, const qmi_slice *slice)
{
    const uint8_t *data = (const uint8_t *)(uintptr_t)slice->whole.data;
    for (int32_t i = 0; i < source->file_count; i++)
        if (data >= source->files[i].data && data < source->files[i].data + source->files[i].size)
            return &source->files[i];
    return NULL;
}

static int32_t report_progress(const char *stage, int64_t done, int64_t total, void *user)
{
    const placer *p = user;
    (void)total;
    return p->source->progress(stage, p->before + done, p->total, p->source->user);
}

static bool is_cancelled(const placer *p)
{
    return p->source->cancel && __atomic_load_n(p->source->cancel, __ATOMIC_ACQUIRE);
}

static void free_buffers(const qmi_group *group, group_member *member)
{
    for (size_t i = 0; i < member->buffer_count; i++)
        qmi_delete(&group->alloc, member->buffers[i]);
    member->buffer_count = 0;
}

static bool is_lent(const placer *p, size_t i)
{
    return i >= p->lent && p->matrices.list[i]->whole.count > 1;
}

static int32_t upload_matrix(placer *p, size_t i)
{
    const qmi_backend *backend = p->member->base.backend;
    qmi_device *device = p->member->base.device;
    const qmi_slice *slice = p->matrices.list[i];
    const void *data = NULL;
    int64_t offset;
    p->placed[i] = qmi_slice_matrix(slice);
    if (backend->upload_rows && !is_lent(p, i) && !qmi_slice_is_run(slice, &offset)) {
        p->sources[i] = (slice_source){ slice, map_of(p->source, slice) };
        const qmi_row_source source = { read_rows, &p->sources[i] };
        return backend->upload_rows(device, &source, &p->placed[i]);
    }
    int32_t code = find_data(p, slice, &data);
    return code < 0 ? code : (is_lent(p, i) ? backend->lend : backend->upload)(device, data, &p->placed[i]);
}

/* Ends the uploads that are under way, as they read from the sources, which go. */
static void stop_uploads(const placer *p)
{
    static const int32_t stop = 1;
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    p->member->base.backend->upload_finish(p->member->base.device, NULL, NULL, &stop);
    qmi_error_restore(text);
}

static int32_t upload_matrices(placer *p)
{
    group_member *member = p->member;
    const qmi_backend *backend = member->base.backend;
    qmi_device *device = member->base.device;
    int32_t code = QM_OK;
    if (backend->upload_start)
        code = backend->upload_start(device, p->bytes, p->source->files, p->source->file_count);
    for (size_t i = 0; i < p->matrices.count && code >= 0; i++)
        code = is_cancelled(p) ? qmi_fail(QM_ERROR_CANCELLED, "loading was cancelled") : upload_matrix(p, i);
    if (code < 0 && backend->upload_rows)
        stop_uploads(p);
    if (code >= 0 && backend->upload_finish)
        code = backend->upload_finish(device, p->source->progress ? report_progress : NULL, p, p->source->cancel);
    if (code >= 0 && !member->info.mapped)
        free_buffers(p->group, member);
    return code;
}

/* ---- vectors: whole ones are in the block that every member has; parts are put into one of the member's own ---- */

static bool is_whole(const qmi_slice *slice)
{
    return qmi_slice_bytes(slice) == slice->whole.rows * slice->whole.columns * (int64_t)sizeof(float);
}

static int64_t room_of(const qmi_slice *slice)
{
    return (qmi_slice_bytes(slice) + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
}

static int32_t gather_vector(const placer *p, const qmi_slice *slice, char *to)
{
    int64_t bytes = slice->whole.rows * slice->whole.columns * (int64_t)sizeof(float);
    void *whole = qmi_new(&p->group->alloc, (size_t)bytes, 1, "a vector");
    int32_t code = whole ? qmi_group_read((qmi_device *)(void *)p->group, whole, slice->whole.data, bytes) : QM_ERROR_MEMORY;
    if (code >= 0)
        qmi_slice_gather(slice, whole, to);
    qmi_delete(&p->group->alloc, whole);
    return code;
}

static int32_t place_vectors(placer *p)
{
    group_member *member = p->member;
    int64_t bytes = 0, at = 0;
    int32_t code = QM_OK;
    for (size_t i = 0; i < p->vectors.count; i++)
        bytes += is_whole(p->vectors.list[i]) ? 0 : room_of(p->vectors.list[i]);
    char *parts = bytes ? qmi_new(&p->group->alloc, (size_t)bytes, 1, "parts of vectors") : NULL;
    if (bytes)
        code = !parts ? QM_ERROR_MEMORY
                      : member->base.backend->allocate(member->base.device, bytes, "parts of vectors", &member->vectors);
    for (size_t i = 0; i < p->vectors.count && code >= 0; i++) {
        const qmi_slice *slice = p->vectors.list[i];
        p->addresses[i] = is_whole(slice) ? qmi_group_member_address(p->group, p->index, slice->whole.data)
                                          : member->vectors + (qmi_address)at;
        if (is_whole(slice))
            continue;
        code = gather_vector(p, slice, parts + at);
        at += room_of(slice);
    }
    if (bytes && code >= 0)
        code = member->base.backend->write(member->base.device, member->vectors, parts, bytes);
    qmi_delete(&p->group->alloc, parts);
    return code;
}

/* ---- programs get the addresses ---- */

typedef struct resolver {
    const placer *placer;
    const qmi_part_of *part;
} resolver;

static void resolve_matrix(const resolver *r, qmi_matrix *matrix)
{
    if (matrix->data)
        *matrix = r->placer->placed[qmi_slices_find(&r->placer->matrices, &r->part->slices[matrix->data - 1])];
}

static void resolve_vector(const resolver *r, qmi_vector *vector)
{
    if (vector->data)
        vector->data = r->placer->addresses[qmi_slices_find(&r->placer->vectors, &r->part->slices[vector->data - 1])];
}

static void resolve_op(const resolver *r, qmi_op *op)
{
    qmi_operands operands = qmi_operands_of(op);
    for (int32_t i = 0; i < operands.matrix_count; i++)
        resolve_matrix(r, operands.matrices[i]);
    for (int32_t i = 0; i < operands.vector_count; i++)
        resolve_vector(r, operands.vectors[i]);
}

static void resolve_part(const placer *p, qmi_part_of *part)
{
    const resolver r = { p, part };
    for (size_t n = 0; n < part->program_count; n++)
        for (size_t o = 0; o < part->programs[n].count; o++)
            resolve_op(&r, &part->programs[n].ops[o]);
}

static void resolve(const placer *p)
{
    for (int32_t i = 0; i < p->group->program_count; i++) {
        resolve_part(p, &p->group->programs[i].cut.parts[p->index]);
        resolve_part(p, &p->group->programs[i].wide.parts[p->index]);
    }
}

/* ---- all of it ---- */

static int32_t collect(placer *p)
{
    const qmi_alloc *alloc = &p->group->alloc;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < p->group->program_count && code >= 0; i++) {
        code = qmi_slices_collect(&p->matrices, &p->group->programs[i].cut, p->index, false, alloc);
        if (code >= 0)
            code = qmi_slices_collect(&p->vectors, &p->group->programs[i].cut, p->index, true, alloc);
    }
    p->lent = p->matrices.count;
    for (int32_t i = 0; i < p->group->program_count && code >= 0; i++) {
        code = qmi_slices_collect(&p->matrices, &p->group->programs[i].wide, p->index, false, alloc);
        if (code >= 0)
            code = qmi_slices_collect(&p->vectors, &p->group->programs[i].wide, p->index, true, alloc);
    }
    for (size_t i = 0; i < p->matrices.count && code >= 0; i++)
        p->bytes += is_lent(p, i) ? 0 : device_bytes(p, p->matrices.list[i]);
    return code;
}

static int32_t place_member(placer *p)
{
    const qmi_alloc *alloc = &p->group->alloc;
    p->placed = qmi_new(alloc, p->matrices.count, sizeof *p->placed, "slices of weights");
    p->sources = qmi_new(alloc, p->matrices.count, sizeof *p->sources, "slices of weights");
    p->addresses = qmi_new(alloc, p->vectors.count, sizeof *p->addresses, "slices of weights");
    int32_t code = p->placed && p->sources && p->addresses ? place_vectors(p) : QM_ERROR_MEMORY;
    if (code >= 0)
        code = upload_matrices(p);
    if (code >= 0)
        resolve(p);
    return code < 0 ? qmi_fail_within(code, p->member->base.name) : code;
}

static int32_t place_members(qmi_group *group, placer *placers, const qmi_group_source *source)
{
    int64_t total = 0, before = 0;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        placers[i] = (placer){ .group = group, .member = &group->members[i], .index = i, .source = source };
        code = collect(&placers[i]);
        total += placers[i].bytes;
    }
    for (int32_t i = 0; i < group->count && code >= 0; i++) {
        placers[i].total = total;
        placers[i].before = before;
        code = place_member(&placers[i]);
        before += placers[i].bytes;
    }
    for (int32_t i = 0; i < group->count; i++) {
        qmi_slices_free(&placers[i].matrices, &group->alloc);
        qmi_slices_free(&placers[i].vectors, &group->alloc);
        qmi_delete(&group->alloc, placers[i].placed);
        qmi_delete(&group->alloc, placers[i].sources);
        qmi_delete(&group->alloc, placers[i].addresses);
    }
    return code;
}

int32_t qmi_group_place(qmi_device *device, const qmi_program *const *programs, int32_t count, const qmi_group_source *source)
{
    qmi_group *group = qmi_group_of(device);
    bool lends[QMI_RANKS_MAX] = { false };
    qmi_sharing wide;
    for (int32_t i = 0; i < group->count; i++)
        lends[i] = group->members[i].base.backend->lend != NULL;
    bool widens = qmi_sharing_widen(&group->sharing, lends, &wide);
    int32_t code = qmi_cut_map(programs, count, &group->sharing, &group->sizes, &group->alloc, &group->maps);
    for (int32_t i = 0; i < count && code >= 0; i++) {
        group_program *program = &group->programs[i];
        code = qmi_cut_make(programs[i], &group->sharing, &group->maps, &group->alloc, &program->cut);
        program->whole = programs[i];
        group->program_count += code >= 0;
        if (code >= 0 && widens)
            code = qmi_cut_make(programs[i], &wide, &group->maps, &group->alloc, &program->wide);
        program->has_wide = code >= 0 && widens;
    }
    placer *placers = code < 0 ? NULL : qmi_new(&group->alloc, (size_t)group->count, sizeof *placers, "slices of weights");
    if (code >= 0)
        code = placers ? place_members(group, placers, source) : QM_ERROR_MEMORY;
    qmi_delete(&group->alloc, placers);
    return code < 0 ? code : qmi_group_help_start(group);
}
