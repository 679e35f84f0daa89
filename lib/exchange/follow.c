/* Executing what rank 0 asks for: see follow.h, and remote_message.h for the messages. */
#include "exchange/follow.h"

#include <stdio.h>
#include <string.h>
#include "backend/registry.h"
#include "exchange/follow_joint.h"
#include "exchange/message_reader.h"
#include "quant/quant.h"

#define CANCEL_LOOK_NS INT64_C(50000000) /* how often a rank that waits looks whether it shall go on */

typedef struct prepared {
    qmi_program program;
    int32_t rows;                   /* 0: there is no program of this number */
    char names[QMI_SLOTS_MAX][32];
} prepared;

typedef struct staged {             /* weights that are not in the file as the device needs them */
    struct staged *next;
    int64_t bytes, arrived;
    uint8_t data[];
} staged;

typedef struct follower {
    qmi_link *link;
    const qmi_parts *parts;
    const qmi_settings *settings;
    qmi_alloc alloc;
    const qmi_backend *backend;
    qmi_device *device;
    bool mapped, picks;
    qmi_given given;
    prepared *programs[QMI_REMOTE_PROGRAMS_MAX];
    qmi_follow_ends ends;
    staged *staged;                 /* the last one first; a device that uses the file's mapping uses them where they are */
    int32_t late_code;              /* of a request without an answer that failed; 0: none did */
    char late_text[QMI_ERROR_SIZE];
    uint8_t *answer;                /* bytes read */
    size_t answer_capacity;
    int64_t *page_counts;
    qmi_sequence *sequences;
    size_t page_count_capacity, sequence_capacity;
} follower;

static int32_t send_result(follower *f, const void *data, int64_t bytes)
{
    const qmi_os_part part = { data, bytes };
    return qmi_link_send(f->link, QMI_REMOTE_REPLY, QM_OK, &part, 1);
}

/* ---- device and memory ---- */

static int32_t try_open(follower *f, const qmi_choice *choice)
{
    const qmi_device_settings wanted = qmi_registry_device(f->settings, choice->index);
    f->backend = choice->backend;
    return f->backend->open(&wanted, &f->device);
}

static int32_t open_device(follower *f, qmi_reader *r)
{
    qmi_choices choices;
    qmi_remote_opened opened = { 0 };
    int32_t code = qmi_reader_check(r, "open");
    if (code >= 0 && f->device)
        code = qmi_fail(QM_ERROR_STATE, "rank 0 opens the device a second time");
    if (code >= 0)
        code = qmi_registry_find(qmi_settings_text(f->settings, QMI_OPT_DEVICE),
                                 qmi_settings_text(f->settings, QMI_OPT_CUDA_LIBRARY), &f->settings->log, &choices);
    if (code < 0)
        return code;
    code = QM_ERROR_DEVICE;
    for (int32_t i = 0; i < choices.count && code < 0; i++)
        code = try_open(f, &choices.list[i]);
    if (code < 0)
        return code;
    f->backend->info(f->device, &opened.info);
    f->mapped = opened.info.mapped;
    f->picks = opened.info.picks;
    qmi_follow_ends_device(&f->ends, f->backend, f->device);
    snprintf(opened.backend, sizeof opened.backend, "%s", f->backend->name);
    snprintf(opened.joint, sizeof opened.joint, "%s", f->ends.joint ? f->ends.joint->name : "");
    return send_result(f, &opened, sizeof opened);
}

static int32_t tell_info(follower *f, qmi_reader *r)
{
    qmi_device_info info = { 0 };
    int32_t code = qmi_reader_check(r, "info");
    if (code < 0)
        return code;
    f->backend->info(f->device, &info);
    return send_result(f, &info, sizeof info);
}

static int32_t tell_rate(follower *f, qmi_reader *r)
{
    int32_t code = qmi_reader_check(r, "rate");
    if (code < 0)
        return code;
    int64_t rate = f->backend->read_rate ? f->backend->read_rate(f->device) : 0;
    return rate < 0 ? (int32_t)rate : send_result(f, &rate, sizeof rate);
}

static int32_t allocate(follower *f, qmi_reader *r)
{
    char what[64];
    int64_t bytes;
    qmi_address address;
    qmi_take(r, &bytes, sizeof bytes);
    snprintf(what, sizeof what, "%.*s", (int)(r->left < 60 ? r->left : 60), (const char *)r->at);
    r->left = 0;
    int32_t code = qmi_reader_check(r, "allocate");
    if (code >= 0 && bytes < 0)
        code = qmi_fail(QM_ERROR_ARGUMENT, "rank 0 asks for %lld bytes", (long long)bytes);
    if (code >= 0)
        code = f->backend->allocate(f->device, bytes, what, &address);
    if (code < 0)
        return code;
    const qmi_given_block block = { .at = address, .bytes = bytes };
    code = qmi_given_add(&f->given, &f->alloc, &block);
    if (code < 0) {
        f->backend->release(f->device, address);
        return code;
    }
    return send_result(f, &address, sizeof address);
}

static int32_t release(follower *f, qmi_reader *r)
{
    qmi_address address;
    qmi_take(r, &address, sizeof address);
    int32_t code = qmi_reader_check(r, "release");
    if (code >= 0 && !qmi_given_starts(&f->given, address))
        code = qmi_fail(QM_ERROR_ARGUMENT, "rank 0 gives back %llx, which it was not given", (unsigned long long)address);
    if (code < 0)
        return code;
    qmi_given_remove(&f->given, address);
    f->backend->release(f->device, address);
    return QM_OK;
}

static int32_t write_memory(follower *f, qmi_reader *r)
{
    qmi_address at;
    qmi_take(r, &at, sizeof at);
    int32_t code = qmi_given_check(&f->given, at, r->left);
    return code < 0 ? code : f->backend->write(f->device, at, r->at, r->left);
}

static int32_t read_memory(follower *f, qmi_reader *r)
{
    qmi_remote_range range;
    qmi_take(r, &range, sizeof range);
    int32_t code = qmi_reader_check(r, "read");
    if (code >= 0 && range.bytes > QMI_MESSAGE_MAX)
        code = qmi_fail(QM_ERROR_ARGUMENT, "rank 0 reads %lld bytes at once", (long long)range.bytes);
    if (code >= 0)
        code = qmi_given_check(&f->given, range.at, range.bytes);
    void *answer = f->answer;
    if (code >= 0)
        code = qmi_reserve(&f->alloc, &answer, &f->answer_capacity, (size_t)range.bytes, 1, "an answer to rank 0");
    if (code < 0)
        return code;
    f->answer = answer;
    code = f->backend->read(f->device, f->answer, range.at, range.bytes);
    return code < 0 ? code : send_result(f, f->answer, range.bytes);
}

static int32_t copy_memory(follower *f, qmi_reader *r)
{
    qmi_address to;
    qmi_remote_range range;
    qmi_take(r, &to, sizeof to);
    qmi_take(r, &range, sizeof range);
    int32_t code = qmi_reader_check(r, "copy");
    if (code >= 0)
        code = qmi_given_check(&f->given, range.at, range.bytes);
    if (code >= 0)
        code = qmi_given_check(&f->given, to, range.bytes);
    return code < 0 ? code : f->backend->copy(f->device, to, range.at, range.bytes);
}

static int32_t clear_memory(follower *f, qmi_reader *r)
{
    qmi_remote_range range;
    qmi_take(r, &range, sizeof range);
    int32_t code = qmi_reader_check(r, "clear");
    if (code >= 0)
        code = qmi_given_check(&f->given, range.at, range.bytes);
    return code < 0 ? code : f->backend->clear(f->device, range.at, range.bytes);
}

/* ---- weights ---- */

static int32_t upload_start(follower *f, qmi_reader *r)
{
    int64_t bytes;
    qmi_take(r, &bytes, sizeof bytes);
    int32_t code = qmi_reader_check(r, "start of uploads");
    if (code >= 0 && bytes < 0)
        code = qmi_fail(QM_ERROR_ARGUMENT, "rank 0 announces weights of %lld bytes", (long long)bytes);
    if (code >= 0 && f->backend->upload_start)
        code = f->backend->upload_start(f->device, bytes, f->parts->maps, f->parts->count);
    return code < 0 ? code : send_result(f, NULL, 0);
}

static int32_t stage(follower *f, qmi_reader *r)
{
    qmi_remote_stage head;
    qmi_take(r, &head, sizeof head);
    staged *block = f->staged;
    if (r->short_of || head.total < 0 || r->left > head.total)
        return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent weights in pieces that do not fit");
    if (head.offset == 0) {
        block = qmi_new(&f->alloc, 1, sizeof *block + (size_t)head.total, "weights of rank 0");
        if (!block)
            return QM_ERROR_MEMORY;
        *block = (staged){ .next = f->staged, .bytes = head.total };
        f->staged = block;
    }
    if (!block || head.offset != block->arrived || head.total != block->bytes || r->left > block->bytes - block->arrived)
        return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent weights in pieces that do not fit");
    memcpy(block->data + block->arrived, r->at, (size_t)r->left);
    block->arrived += r->left;
    return QM_OK;
}

/* Where the bytes of an upload are, if they are all there. */
static const uint8_t *find_weights(follower *f, const qmi_remote_upload *body, int64_t bytes)
{
    if (body->file < 0)
        return f->staged && f->staged->arrived == f->staged->bytes && f->staged->bytes == bytes ? f->staged->data : NULL;
    if (body->file >= f->parts->count)
        return NULL;
    const qmi_os_map *map = &f->parts->maps[body->file];
    if (body->offset < 0 || body->offset > map->size || bytes > map->size - body->offset)
        return NULL;
    return map->data + body->offset;
}

static int32_t upload(follower *f, qmi_reader *r)
{
    qmi_remote_upload body;
    qmi_take(r, &body, sizeof body);
    int32_t code = qmi_reader_check(r, "upload");
    if (code < 0)
        return code;
    qmi_matrix *m = &body.matrix;
    const qmi_quant_format *format = qmi_quant_format_of(m->type);
    int64_t row = format && format->unpack ? qmi_quant_row_bytes(m->type, m->columns) : -1;
    if (row <= 0 || m->columns > QMI_COLUMNS_MAX || m->rows < 1 || m->rows > QMI_ROWS_MAX || m->count < 1 ||
        m->count > QMI_EXPERTS_MAX || m->rows > QMI_ROWS_MAX / m->count)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 uploads a matrix of type %u, %lld x %lld x %lld", m->type,
                        (long long)m->columns, (long long)m->rows, (long long)m->count);
    int64_t bytes = row * m->rows * m->count;
    const uint8_t *data = find_weights(f, &body, bytes);
    if (!data)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 uploads %lld bytes at %lld of part %lld, which are not in the file",
                        (long long)bytes, (long long)body.offset, (long long)body.file);
    code = f->backend->upload(f->device, data, m);
    if (code < 0)
        return code;
    const qmi_given_block block = { .at = m->data, .bytes = bytes, .matrix = true, .shape = *m };
    code = qmi_given_add(&f->given, &f->alloc, &block);
    return code < 0 ? code : send_result(f, m, sizeof *m);
}

static void free_staged(follower *f)
{
    while (f->staged) {
        staged *block = f->staged;
        f->staged = block->next;
        qmi_delete(&f->alloc, block);
    }
}

static int32_t upload_finish(follower *f, qmi_reader *r)
{
    int32_t number;
    qmi_take(r, &number, sizeof number);
    int32_t code = qmi_reader_check(r, "end of uploads");
    if (code < 0)
        return code;
    qmi_link_begin(f->link, number);
    if (f->backend->upload_finish)
        code = f->backend->upload_finish(f->device, NULL, NULL, &f->link->cancelled);
    if (!f->mapped)
        free_staged(f);
    return code < 0 ? code : send_result(f, NULL, 0);
}

/* ---- programs ---- */

static void free_program(follower *f, prepared **p)
{
    if (*p)
        qmi_program_free(&(*p)->program, &f->alloc);
    qmi_delete(&f->alloc, *p);
    *p = NULL;
}

static int32_t take_slots(qmi_reader *r, int32_t count, prepared *p)
{
    for (int32_t i = 0; i < count; i++) {
        qmi_remote_slot slot;
        qmi_take(r, &slot, sizeof slot);
        if (r->short_of || slot.width < 0 || slot.width > QMI_SLOT_WIDTH_MAX)
            return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent a slot of width %lld", (long long)slot.width);
        memcpy(p->names[i], slot.name, sizeof slot.name);
        p->names[i][sizeof slot.name - 1] = 0;
        p->program.slots[i] = (qmi_slot_shape){ p->names[i], slot.width, slot.outputs != 0 };
    }
    p->program.slot_count = count;
    return QM_OK;
}

static int32_t take_program(follower *f, qmi_reader *r, const qmi_remote_program *head, prepared *p)
{
    int32_t code = take_slots(r, head->slots, p);
    for (int32_t i = 0; i < head->ops && code >= 0 && !r->short_of; i++) {
        qmi_op op;
        qmi_take(r, &op, sizeof op);
        code = qmi_program_append(&p->program, &f->alloc, &op);
    }
    if (code >= 0)
        code = qmi_reader_check(r, "program");
    if (code >= 0)
        code = qmi_follow_check_program(&f->given, &p->program);
    if (code >= 0)
        code = f->backend->prepare(f->device, &p->program, head->rows);
    p->rows = head->rows;
    return code;
}

static int32_t prepare(follower *f, qmi_reader *r)
{
    qmi_remote_program head;
    qmi_take(r, &head, sizeof head);
    if (r->short_of || head.number < 0 || head.number >= QMI_REMOTE_PROGRAMS_MAX || head.rows < 1 || head.slots < 0 ||
        head.slots > QMI_SLOTS_MAX || head.ops < 0)
        return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent a program that is cut");
    free_program(f, &f->programs[head.number]);
    prepared *p = qmi_new(&f->alloc, 1, sizeof *p, "a program of rank 0");
    if (!p)
        return QM_ERROR_MEMORY;
    int32_t code = take_program(f, r, &head, p);
    if (code < 0) {
        free_program(f, &p);
        return code;
    }
    f->programs[head.number] = p;
    return send_result(f, NULL, 0);
}

static int32_t take_sequences(follower *f, qmi_reader *r, qmi_batch *batch)
{
    void *sequences = f->sequences, *counts = f->page_counts;
    const qmi_remote_sequence *from = qmi_take_array(r, batch->sequence_count, sizeof *from);
    if (!from)
        return QM_OK; /* qmi_reader_check says it */
    int32_t code = qmi_reserve(&f->alloc, &sequences, &f->sequence_capacity, (size_t)batch->sequence_count, sizeof *f->sequences,
                               "sequences of a batch");
    if (code < 0)
        return code;
    f->sequences = sequences;
    code = qmi_reserve(&f->alloc, &counts, &f->page_count_capacity, (size_t)batch->sequence_count, sizeof *f->page_counts,
                       "sequences of a batch");
    if (code < 0)
        return code;
    f->page_counts = counts;
    for (int32_t i = 0; i < batch->sequence_count; i++) {
        const qmi_address *pages = qmi_take_array(r, from[i].pages, sizeof *pages);
        f->page_counts[i] = from[i].pages;
        f->sequences[i] = (qmi_sequence){ .first = from[i].first, .count = from[i].count, .start = from[i].start, .pages = pages,
                                          .state = from[i].state, .next_state = from[i].next_state };
    }
    batch->sequences = f->sequences;
    return QM_OK;
}

/* Computes, and answers with the picks if they are wanted. */
static int32_t compute(follower *f, const prepared *p, const qmi_workspace *workspace, qmi_batch *batch, bool picks)
{
    int64_t bytes = picks ? (int64_t)batch->output_count * QMI_PICKS_MAX * (int64_t)sizeof *batch->picks : 0;
    void *answer = f->answer;
    int32_t code = qmi_reserve(&f->alloc, &answer, &f->answer_capacity, (size_t)bytes, 1, "an answer to rank 0");
    if (code < 0)
        return code;
    f->answer = answer;
    batch->picks = picks ? (qmi_pick *)(void *)f->answer : NULL;
    batch->cancel = &f->link->cancelled;
    if (f->mapped)
        code = qmi_parts_check(f->parts);
    if (code >= 0)
        code = f->backend->run(f->device, &p->program, workspace, batch);
    return code < 0 ? code : send_result(f, f->answer, bytes);
}

static int32_t run(follower *f, qmi_reader *r)
{
    qmi_remote_run head;
    qmi_take(r, &head, sizeof head);
    bool known = !r->short_of && head.program >= 0 && head.program < QMI_REMOTE_PROGRAMS_MAX;
    const prepared *p = known ? f->programs[head.program] : NULL;
    if (!p)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 runs program %d, which it has not sent", head.program);
    if (head.picks && !f->picks)
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 wants picks that this device does not give");
    qmi_link_begin(f->link, head.number);
    qmi_batch batch = { .count = head.count, .sequence_count = head.sequences, .output_count = head.outputs };
    int32_t code = take_sequences(f, r, &batch);
    if (code < 0)
        return code;
    batch.tokens = qmi_take_array(r, head.count, sizeof *batch.tokens);
    batch.outputs = qmi_take_array(r, head.outputs, sizeof *batch.outputs);
    code = qmi_reader_check(r, "batch");
    if (code >= 0)
        code = qmi_follow_check_batch(&f->given, &p->program, &head.workspace, &batch, f->page_counts, p->rows);
    return code < 0 ? code : compute(f, p, &head.workspace, &batch, head.picks != 0);
}

/* ---- sums with other devices ---- */

static int32_t name_circle(follower *f, qmi_reader *r)
{
    uint8_t id[QMI_JOINT_ID];
    int32_t code = qmi_reader_check(r, "name of a circle");
    if (code >= 0)
        code = qmi_follow_ends_name(&f->ends, id);
    return code < 0 ? code : send_result(f, id, sizeof id);
}

static int32_t join_circle(follower *f, qmi_reader *r)
{
    qmi_remote_join body;
    int64_t number;
    qmi_take(r, &body, sizeof body);
    int32_t code = qmi_reader_check(r, "circle to join");
    qmi_link_begin(f->link, (int32_t)body.number);
    if (code >= 0)
        code = qmi_follow_ends_join(&f->ends, &body, &f->link->cancelled, &number);
    return code < 0 ? code : send_result(f, &number, sizeof number);
}

static int32_t sum(follower *f, qmi_reader *r)
{
    qmi_remote_sum body;
    qmi_take(r, &body, sizeof body);
    int32_t code = qmi_reader_check(r, "sum");
    return code < 0 ? code : qmi_follow_ends_sum(&f->ends, &f->given, &body);
}

static int32_t leave_circle(follower *f, qmi_reader *r)
{
    int64_t number;
    qmi_take(r, &number, sizeof number);
    int32_t code = qmi_reader_check(r, "circle to leave");
    return code < 0 ? code : qmi_follow_ends_leave(&f->ends, number);
}

static void circles_urgent(void *user)
{
    follower *f = user;
    qmi_follow_ends_abort(&f->ends, false);
}

static void circles_over(qmi_link *link, void *user)
{
    follower *f = user;
    (void)link;
    qmi_follow_ends_abort(&f->ends, true);
}

/* ---- the loop ---- */

typedef struct verb {
    int32_t (*function)(follower *f, qmi_reader *r);
    bool answers;
} verb;

static const verb verbs[] = {
    [QMI_REMOTE_OPEN] = { open_device, true },     [QMI_REMOTE_INFO] = { tell_info, true },
    [QMI_REMOTE_RATE] = { tell_rate, true },       [QMI_REMOTE_ALLOCATE] = { allocate, true },
    [QMI_REMOTE_RELEASE] = { release, false },     [QMI_REMOTE_WRITE] = { write_memory, false },
    [QMI_REMOTE_READ] = { read_memory, true },     [QMI_REMOTE_COPY] = { copy_memory, false },
    [QMI_REMOTE_CLEAR] = { clear_memory, false },  [QMI_REMOTE_START] = { upload_start, true },
    [QMI_REMOTE_STAGE] = { stage, false },         [QMI_REMOTE_UPLOAD] = { upload, true },
    [QMI_REMOTE_FINISH] = { upload_finish, true }, [QMI_REMOTE_PREPARE] = { prepare, true },
    [QMI_REMOTE_RUN] = { run, true },              [QMI_REMOTE_NAME_CIRCLE] = { name_circle, true },
    [QMI_REMOTE_JOIN] = { join_circle, true },     [QMI_REMOTE_SUM] = { sum, false },
    [QMI_REMOTE_LEAVE] = { leave_circle, false },
};

static int32_t send_failure(follower *f, int32_t code, const char *text)
{
    const qmi_os_part part = { text, (int64_t)strlen(text) };
    return qmi_link_send(f->link, QMI_REMOTE_REPLY, code, &part, 1);
}

/* A failure of a request goes to rank 0 and is no end; that of the link is. */
static int32_t execute(follower *f, const qmi_message *message)
{
    qmi_reader r = { message->data, message->bytes, false };
    size_t kind = (size_t)message->kind;
    if (message->kind < 0 || kind >= sizeof verbs / sizeof *verbs || !verbs[kind].function)
        return qmi_fail(QM_ERROR_FORMAT, "rank 0 sent message %d, which is no request", message->kind);
    const verb *v = &verbs[kind];
    int32_t code = f->late_code;
    char text[QMI_ERROR_SIZE];
    if (code < 0 && !v->answers)
        return QM_OK;
    if (code < 0)
        memcpy(text, f->late_text, sizeof text);
    f->late_code = QM_OK;
    if (code >= 0 && !f->device && kind != QMI_REMOTE_OPEN)
        code = qmi_fail(QM_ERROR_STATE, "rank 0 has not opened the device");
    else if (code >= 0)
        code = v->function(f, &r);
    else
        qmi_error_restore(text);
    if (code >= 0)
        return QM_OK;
    qmi_error_copy(text);
    if (v->answers)
        return send_failure(f, code, text);
    f->late_code = code;
    memcpy(f->late_text, text, sizeof text);
    return QM_OK;
}

static void leave(follower *f)
{
    qmi_link_watch(f->link, NULL, NULL, NULL);
    qmi_follow_ends_close(&f->ends);
    for (int32_t i = 0; i < QMI_REMOTE_PROGRAMS_MAX; i++)
        free_program(f, &f->programs[i]);
    for (size_t i = 0; i < f->given.count; i++)
        if (!f->given.list[i].matrix)
            f->backend->release(f->device, f->given.list[i].at);
    if (f->device)
        f->backend->close(&f->device);
    free_staged(f);
    qmi_given_free(&f->given, &f->alloc);
    qmi_delete(&f->alloc, f->answer);
    qmi_delete(&f->alloc, f->page_counts);
    qmi_delete(&f->alloc, f->sequences);
}

int32_t qmi_follow(qmi_link *link, const qmi_parts *parts, const qmi_settings *settings, const int32_t *cancel)
{
    follower *f = qmi_new(&settings->alloc, 1, sizeof *f, "a rank");
    if (!f)
        return QM_ERROR_MEMORY;
    f->link = link;
    f->parts = parts;
    f->settings = settings;
    f->alloc = settings->alloc;
    int32_t code = qmi_follow_ends_start(&f->ends);
    if (code >= 0)
        qmi_link_watch(link, circles_over, circles_urgent, f);
    while (code >= 0) {
        qmi_message *message;
        code = qmi_link_receive(link, cancel ? CANCEL_LOOK_NS : -1, &message);
        if (code == 0 && __atomic_load_n(cancel, __ATOMIC_ACQUIRE))
            code = qmi_fail(QM_ERROR_CANCELLED, "following rank 0 was cancelled");
        if (code > 0)
            code = execute(f, message);
        qmi_link_give_back(link, message);
    }
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    leave(f);
    qmi_delete(&settings->alloc, f);
    qmi_error_restore(text);
    return code == QM_ERROR_STATE ? QM_OK : code;
}
