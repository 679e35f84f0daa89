/* A backend whose device is another rank's: see remote.h. */
#include "exchange/remote.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "exchange/remote_message.h"
#include "quant/quant.h"

#define CANCEL_LOOK_NS INT64_C(5000000) /* how often a caller who waits looks whether he shall */

struct qmi_device {
    qmi_link *link;
    qmi_alloc alloc;
    qmi_backend table;
    qmi_joint joint;
    const qmi_joint *joints[2];     /* NULL behind it */
    qmi_device_info info;
    const qmi_os_map *files;        /* of the model, between upload_start and upload_finish */
    int32_t file_count;
    const qmi_program **programs;   /* prepared; their number is their place */
    size_t program_count, program_capacity, last_program;
    qmi_remote_sequence *sequences; /* of a batch, as they travel */
    size_t sequence_capacity;
    qmi_address *pages;
    size_t page_capacity;
    int32_t number;                 /* of what was asked last that can be cancelled */
};

/* ---- asking ---- */

/* Whatever ended the link, for this process the device is lost. */
static int32_t lost(int32_t code)
{
    return code < 0 ? qmi_fail(QM_ERROR_DEVICE, "%s", qmi_error_text()) : code;
}

static int32_t check_reply(const qmi_device *device, const qmi_message *reply, int64_t bytes)
{
    if (reply->kind != QMI_REMOTE_REPLY || reply->code < QM_ERROR_STATE || reply->code > QM_OK)
        return qmi_fail(QM_ERROR_FORMAT, "%s: sent message %d with code %d, which answers nothing", device->link->name,
                        reply->kind, reply->code);
    int length = reply->bytes < QMI_ERROR_SIZE ? (int)reply->bytes : QMI_ERROR_SIZE;
    if (reply->code < 0)
        return qmi_fail(reply->code, "%s: %.*s", device->link->name, length, (const char *)reply->data);
    if (reply->bytes != bytes)
        return qmi_fail(QM_ERROR_FORMAT, "%s: answered with %lld bytes in place of %lld", device->link->name,
                        (long long)reply->bytes, (long long)bytes);
    return QM_OK;
}

/* Waits for the answer, and asks to stop as long as *cancel says so and none is there. */
static int32_t wait_for_reply(qmi_device *device, const int32_t *cancel, qmi_message **out)
{
    for (;;) {
        int32_t code = lost(qmi_link_receive(device->link, cancel ? CANCEL_LOOK_NS : -1, out));
        if (code != 0)
            return code;
        if (__atomic_load_n(cancel, __ATOMIC_ACQUIRE))
            code = lost(qmi_link_send(device->link, QMI_MESSAGE_CANCEL, device->number, NULL, 0));
        if (code < 0)
            return code;
    }
}

/* A request without an answer. */
static int32_t post(qmi_device *device, int32_t kind, const qmi_os_part *parts, int32_t count)
{
    return lost(qmi_link_send(device->link, kind, 0, parts, count));
}

/* A request with an answer of `bytes` bytes, which go to `to`. */
static int32_t ask(qmi_device *device, int32_t kind, const qmi_os_part *parts, int32_t count, const int32_t *cancel, void *to,
                   int64_t bytes)
{
    qmi_message *reply;
    int32_t code = post(device, kind, parts, count);
    if (code < 0)
        return code;
    code = wait_for_reply(device, cancel, &reply);
    if (code < 0)
        return code;
    code = check_reply(device, reply, bytes);
    if (code >= 0 && bytes > 0)
        memcpy(to, reply->data, (size_t)bytes);
    qmi_link_give_back(device->link, reply);
    return code;
}

/* ---- memory ---- */

static void close_device(qmi_device **device)
{
    if (!*device)
        return;
    qmi_alloc alloc = (*device)->alloc;
    qmi_delete(&alloc, (*device)->programs);
    qmi_delete(&alloc, (*device)->sequences);
    qmi_delete(&alloc, (*device)->pages);
    qmi_delete(&alloc, *device);
    *device = NULL;
}

/* What the rank says of its device, as this process may use it. */
static void take_info(qmi_device *device, const qmi_device_info *from)
{
    unsigned char picks;
    device->info = *from;
    memcpy(&picks, &from->picks, 1); /* whatever byte lies there */
    device->info.picks = picks != 0;
    device->info.shares_host = false;
    device->info.mapped = false; /* of this process's mapping it uses nothing */
    device->info.name[sizeof device->info.name - 1] = device->info.isa[sizeof device->info.isa - 1] = 0;
}

/* As it is now; or, when the rank is gone, as it was. */
static void info(qmi_device *device, qmi_device_info *out)
{
    qmi_device_info now;
    if (ask(device, QMI_REMOTE_INFO, NULL, 0, NULL, &now, sizeof now) >= 0)
        take_info(device, &now);
    *out = device->info;
}

static int32_t allocate(qmi_device *device, int64_t bytes, const char *what, qmi_address *out)
{
    const qmi_os_part parts[] = { { &bytes, sizeof bytes }, { what, (int64_t)strlen(what) } };
    *out = 0;
    return ask(device, QMI_REMOTE_ALLOCATE, parts, 2, NULL, out, sizeof *out);
}

static void release(qmi_device *device, qmi_address address)
{
    const qmi_os_part part = { &address, sizeof address };
    if (address)
        post(device, QMI_REMOTE_RELEASE, &part, 1);
}

/* Bytes go in several messages where one would be too large. */
static int64_t piece_of(int64_t left)
{
    const int64_t most = QMI_MESSAGE_MAX - 4096; /* room for what stands before them */
    return left < most ? left : most;
}

static int32_t write_memory(qmi_device *device, qmi_address to, const void *from, int64_t bytes)
{
    int32_t code = QM_OK;
    for (int64_t done = 0; done < bytes && code >= 0;) {
        const qmi_address at = to + (qmi_address)done;
        int64_t piece = piece_of(bytes - done);
        const qmi_os_part parts[] = { { &at, sizeof at }, { (const char *)from + done, piece } };
        code = post(device, QMI_REMOTE_WRITE, parts, 2);
        done += piece;
    }
    return code;
}

static int32_t read_memory(qmi_device *device, void *to, qmi_address from, int64_t bytes)
{
    int32_t code = QM_OK;
    for (int64_t done = 0; done < bytes && code >= 0;) {
        const qmi_remote_range range = { from + (qmi_address)done, piece_of(bytes - done) };
        const qmi_os_part part = { &range, sizeof range };
        code = ask(device, QMI_REMOTE_READ, &part, 1, NULL, (char *)to + done, range.bytes);
        done += range.bytes;
    }
    return code;
}

static int32_t copy_memory(qmi_device *device, qmi_address to, qmi_address from, int64_t bytes)
{
    const qmi_remote_range range = { from, bytes };
    const qmi_os_part parts[] = { { &to, sizeof to }, { &range, sizeof range } };
    return post(device, QMI_REMOTE_COPY, parts, 2);
}

static int32_t clear_memory(qmi_device *device, qmi_address at, int64_t bytes)
{
    const qmi_remote_range range = { at, bytes };
    const qmi_os_part part = { &range, sizeof range };
    return post(device, QMI_REMOTE_CLEAR, &part, 1);
}

/* ---- weights ---- */

static int32_t upload_start(qmi_device *device, int64_t bytes, const qmi_os_map *files, int32_t file_count)
{
    const qmi_os_part part = { &bytes, sizeof bytes };
    device->files = files;
    device->file_count = file_count;
    return ask(device, QMI_REMOTE_START, &part, 1, NULL, NULL, 0);
}

/* The rank has the same file, so its place there is enough. False: it is not in the file. */
static bool find_in_files(const qmi_device *device, const void *data, qmi_remote_upload *out)
{
    uintptr_t at = (uintptr_t)data;
    for (int32_t i = 0; i < device->file_count; i++) {
        uintptr_t start = (uintptr_t)device->files[i].data;
        if (at >= start && at - start < (uint64_t)device->files[i].size) {
            out->file = i;
            out->offset = (int64_t)(at - start);
            return true;
        }
    }
    return false;
}

static int32_t stage(qmi_device *device, const void *data, int64_t total)
{
    int32_t code = QM_OK;
    for (int64_t done = 0; done < total && code >= 0;) {
        const qmi_remote_stage head = { done, total };
        int64_t piece = piece_of(total - done);
        const qmi_os_part parts[] = { { &head, sizeof head }, { (const char *)data + done, piece } };
        code = post(device, QMI_REMOTE_STAGE, parts, 2);
        done += piece;
    }
    return code;
}

static int32_t upload(qmi_device *device, const void *data, qmi_matrix *matrix)
{
    qmi_remote_upload body = { .matrix = *matrix, .file = -1 };
    const qmi_os_part part = { &body, sizeof body };
    qmi_matrix there;
    int32_t code = QM_OK;
    if (!find_in_files(device, data, &body))
        code = stage(device, data, qmi_quant_row_bytes(matrix->type, matrix->columns) * matrix->rows * matrix->count);
    if (code >= 0)
        code = ask(device, QMI_REMOTE_UPLOAD, &part, 1, NULL, &there, sizeof there);
    if (code < 0)
        return code;
    if (there.columns != matrix->columns || there.rows != matrix->rows || there.count != matrix->count)
        return qmi_fail(QM_ERROR_FORMAT, "%s: has taken a matrix for one of another shape", device->link->name);
    *matrix = there;
    return QM_OK;
}

static int32_t upload_finish(qmi_device *device, qm_progress_callback progress, void *user, const int32_t *cancel)
{
    (void)progress;
    (void)user;
    const qmi_os_part part = { &device->number, sizeof device->number };
    device->number++;
    int32_t code = ask(device, QMI_REMOTE_FINISH, &part, 1, cancel, NULL, 0);
    device->files = NULL;
    device->file_count = 0;
    return code;
}

/* ---- programs ---- */

static size_t place_of(qmi_device *device, const qmi_program *program)
{
    size_t count = device->program_count;
    for (size_t i = 0; i < count; i++) { /* they are run in the order of their places */
        size_t place = (device->last_program + 1 + i) % count;
        if (device->programs[place] == program)
            return device->last_program = place;
    }
    return count;
}

static int32_t send_program(qmi_device *device, int32_t number, const qmi_program *program, int32_t rows)
{
    qmi_remote_slot slots[QMI_SLOTS_MAX] = { 0 };
    const qmi_remote_program head = { number, rows, program->slot_count, (int32_t)program->count };
    for (int32_t i = 0; i < program->slot_count; i++) {
        snprintf(slots[i].name, sizeof slots[i].name, "%s", program->slots[i].name);
        slots[i].width = program->slots[i].width;
        slots[i].outputs = program->slots[i].outputs;
    }
    const qmi_os_part parts[] = { { &head, sizeof head }, { slots, program->slot_count * (int64_t)sizeof *slots },
                                  { program->ops, (int64_t)(program->count * sizeof *program->ops) } };
    return ask(device, QMI_REMOTE_PREPARE, parts, 3, NULL, NULL, 0);
}

static int32_t prepare(qmi_device *device, const qmi_program *program, int32_t rows)
{
    size_t place = place_of(device, program);
    if (place == QMI_REMOTE_PROGRAMS_MAX)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "%s: more than %d programs", device->link->name, QMI_REMOTE_PROGRAMS_MAX);
    if (place == device->program_count) {
        void *programs = device->programs;
        int32_t code = qmi_reserve(&device->alloc, &programs, &device->program_capacity, place + 1, sizeof *device->programs,
                                   "the list of programs");
        if (code < 0)
            return code;
        device->programs = programs;
        device->programs[device->program_count++] = program;
    }
    return send_program(device, (int32_t)place, program, rows);
}

static int32_t page_tokens(const qmi_program *program)
{
    for (size_t i = 0; i < program->count; i++)
        if (program->ops[i].kind == QMI_OP_ATTEND)
            return program->ops[i].attend.page_tokens;
    return 0;
}

/* Sequences and pages as they travel; *pages: how many of all. */
static int32_t pack_sequences(qmi_device *device, const qmi_program *program, const qmi_batch *batch, size_t *pages)
{
    void *list = device->sequences;
    int32_t tokens = page_tokens(program);
    int32_t code = qmi_reserve(&device->alloc, &list, &device->sequence_capacity, (size_t)batch->sequence_count,
                               sizeof *device->sequences, "sequences of a batch");
    if (code < 0)
        return code;
    device->sequences = list;
    *pages = 0;
    for (int32_t i = 0; i < batch->sequence_count; i++) {
        const qmi_sequence *from = &batch->sequences[i];
        size_t count = tokens ? (size_t)((from->start + from->count + tokens - 1) / tokens) : 0;
        void *table = device->pages;
        device->sequences[i] = (qmi_remote_sequence){ from->start, from->state, from->next_state, from->first, from->count,
                                                      (int64_t)count };
        code = qmi_reserve(&device->alloc, &table, &device->page_capacity, *pages + count, sizeof *device->pages,
                           "pages of a batch");
        if (code < 0)
            return code;
        device->pages = table;
        if (count > 0)
            memcpy(device->pages + *pages, from->pages, count * sizeof *device->pages);
        *pages += count;
    }
    return QM_OK;
}

static int32_t run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch)
{
    size_t pages, place = place_of(device, program);
    if (place == device->program_count)
        return qmi_fail(QM_ERROR_STATE, "%s: the program was not prepared", device->link->name);
    int32_t code = pack_sequences(device, program, batch, &pages);
    if (code < 0)
        return code;
    int64_t picks = batch->picks ? (int64_t)batch->output_count * QMI_PICKS_MAX * (int64_t)sizeof *batch->picks : 0;
    const qmi_remote_run head = { (int32_t)place, ++device->number, *workspace, batch->count, batch->sequence_count,
                                  batch->output_count, picks > 0 };
    const qmi_os_part parts[] = {
        { &head, sizeof head },
        { device->sequences, batch->sequence_count * (int64_t)sizeof *device->sequences },
        { device->pages, (int64_t)(pages * sizeof *device->pages) },
        { batch->tokens, batch->count * (int64_t)sizeof *batch->tokens },
        { batch->outputs, batch->output_count * (int64_t)sizeof *batch->outputs },
    };
    return ask(device, QMI_REMOTE_RUN, parts, 5, batch->cancel, batch->picks, picks);
}

static int64_t read_rate(qmi_device *device)
{
    int64_t rate = 0;
    int32_t code = ask(device, QMI_REMOTE_RATE, NULL, 0, NULL, &rate, sizeof rate);
    return code < 0 ? code : rate;
}

/* ---- sums with devices of its kind ---- */

struct qmi_joint_end {
    qmi_device *device;
    int64_t number;
};

static int32_t name_circle(qmi_device *device, uint8_t id[QMI_JOINT_ID])
{
    return ask(device, QMI_REMOTE_NAME_CIRCLE, NULL, 0, NULL, id, QMI_JOINT_ID);
}

static int32_t join(qmi_device *device, const uint8_t id[QMI_JOINT_ID], const qmi_joint_terms *terms, qmi_joint_end **out)
{
    qmi_remote_join body = { .rank = terms->rank, .ranks = terms->ranks, .timeout_ns = terms->timeout_ns,
                             .number = ++device->number };
    const qmi_os_part part = { &body, sizeof body };
    *out = NULL;
    memcpy(body.id, id, sizeof body.id);
    qmi_joint_end *end = qmi_new(&device->alloc, 1, sizeof *end, "an end of a circle");
    if (!end)
        return QM_ERROR_MEMORY;
    end->device = device;
    int32_t code = ask(device, QMI_REMOTE_JOIN, &part, 1, terms->cancel, &end->number, sizeof end->number);
    if (code < 0) {
        qmi_delete(&device->alloc, end);
        return code;
    }
    *out = end;
    return QM_OK;
}

static int32_t sum(qmi_joint_end *end, qmi_address from, qmi_address to, int64_t count)
{
    const qmi_remote_sum body = { end->number, from, to, count };
    const qmi_os_part part = { &body, sizeof body };
    return post(end->device, QMI_REMOTE_SUM, &part, 1);
}

static void abort_all(qmi_joint_end *end)
{
    qmi_link_send(end->device->link, QMI_MESSAGE_URGENT, 0, NULL, 0);
}

static void leave(qmi_joint_end **end)
{
    if (!*end)
        return;
    qmi_device *device = (*end)->device;
    const qmi_os_part part = { &(*end)->number, sizeof (*end)->number };
    qmi_link_send(device->link, QMI_REMOTE_LEAVE, 0, &part, 1);
    qmi_delete(&device->alloc, *end);
    *end = NULL;
}

static const qmi_joint remote_joint = { .make_id = name_circle, .join = join, .sum = sum, .abort = abort_all, .leave = leave };

/* ---- opening ---- */

static const qmi_backend remote_backend = {
    .abi = QMI_BACKEND_ABI,
    .close = close_device,
    .info = info,
    .allocate = allocate,
    .release = release,
    .upload_start = upload_start,
    .upload = upload,
    .upload_finish = upload_finish,
    .write = write_memory,
    .read = read_memory,
    .copy = copy_memory,
    .clear = clear_memory,
    .prepare = prepare,
    .run = run,
    .read_rate = read_rate,
};

/* What a backend takes, without a device of it, its table here says. */
static int32_t take_pure_parts(qmi_device *device, const qmi_remote_opened *opened, const char *cuda_library, const qmi_log *log)
{
    qmi_choices choices;
    int32_t code = qmi_registry_find(opened->backend, cuda_library, log, &choices);
    if (code < 0)
        return qmi_fail_within(code, "a rank computes on a card, and what it needs there the same CUDA backend has to say here");
    device->table = remote_backend;
    const qmi_backend *here = choices.list[0].backend;
    device->table.name = here->name;
    const qmi_joint *joint = qmi_joint_find(here, opened->joint);
    if (joint) {
        device->joint = remote_joint;
        device->joint.name = joint->name;
        device->joints[0] = &device->joint;
        device->table.joints = device->joints;
    }
    device->table.matrix_bytes = here->matrix_bytes;
    device->table.scratch_bytes = here->scratch_bytes;
    return QM_OK;
}

int32_t qmi_remote_open(qmi_link *link, const char *cuda_library, const qmi_alloc *alloc, const qmi_log *log,
                        const qmi_backend **backend, qmi_device **out)
{
    qmi_remote_opened opened;
    *out = NULL;
    qmi_device *device = qmi_new(alloc, 1, sizeof *device, "device of another rank");
    if (!device)
        return QM_ERROR_MEMORY;
    device->link = link;
    device->alloc = *alloc;
    int32_t code = ask(device, QMI_REMOTE_OPEN, NULL, 0, NULL, &opened, sizeof opened);
    if (code >= 0) {
        opened.backend[sizeof opened.backend - 1] = opened.joint[sizeof opened.joint - 1] = 0;
        take_info(device, &opened.info);
        code = take_pure_parts(device, &opened, cuda_library, log);
    }
    if (code < 0) {
        close_device(&device);
        return code;
    }
    *backend = &device->table;
    *out = device;
    return QM_OK;
}
