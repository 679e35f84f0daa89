/* Matrices from the file to the card: see cuda_upload.h.
 *
 * Readers take pieces (some rows of a matrix) in the order of `add`. Each has a stream and two pinned buffers: while one is being
 * sent it reads the next piece into the other. On the card a piece lies in the reader's staging memory only until the kernel
 * behind its copy has put it into the planes; what needs no re-ordering, or got it on the host, is copied to its place. */
#include "cuda_upload.h"

#include <string.h>
#include "chip.cuh"

extern "C" {
#include "reorder.h"
}

#define BUFFERS 2
#define ROOM_ALIGN (QMI_CUDA_PLANES * QMI_CUDA_PLANE_ALIGN) /* what the planes of a piece add to its bytes, at most */
#define KERNEL_THREADS 128

enum upload_way {
    UPLOAD_AS_IS,  /* the plane holds the file's bytes */
    UPLOAD_KERNEL, /* re-ordered on the card */
    UPLOAD_HOST    /* converted or filled up on the host */
};

typedef struct upload_matrix {
    const uint8_t *data;   /* NULL: rows are asked of: */
    qmi_row_source source;
    const qmi_os_map *map; /* that data lies in, or NULL */
    uint32_t type, card_type;
    int64_t columns, rows, row_bytes;
    int64_t first;         /* of its rows, where they are a part of those on the card */
    uint8_t *to;
    qmi_cuda_planes planes;
    enum upload_way way;
    int64_t piece_rows;
    cudaEvent_t after;     /* what the card's memory is in use for until then, or NULL */
} upload_matrix;

typedef struct upload_piece {
    upload_matrix matrix;
    int64_t first, rows;
} upload_piece;

typedef struct upload_buffer {
    uint8_t *host;      /* pinned */
    int64_t room;
    cudaEvent_t sent;   /* its last copy */
} upload_buffer;

typedef struct upload_reader {
    cuda_uploader *uploader;
    qmi_os_thread *thread;
    cudaStream_t stream;
    upload_buffer buffers[BUFFERS];
    cudaEvent_t latest; /* behind all that it sent; NULL until it has sent something */
    uint8_t *card;      /* staging memory there */
    int64_t card_room;
} upload_reader;

struct cuda_uploader {
    cuda_upload_settings settings;
    int32_t threads, started;
    upload_reader readers[CUDA_UPLOAD_THREADS_MAX];

    qmi_os_mutex *mutex;       /* of what follows */
    qmi_os_condition *changed; /* more to read, a piece done, an end */
    upload_matrix *matrices;
    size_t count, capacity;
    size_t next;               /* matrix and row of the first piece that nobody has taken */
    int64_t next_row;
    bool closed;               /* no more will be added */
    int32_t running;           /* readers */
    int64_t total, done;       /* bytes of the file */
    int32_t code;              /* of the first failure; all stop then */
    char message[QMI_ERROR_SIZE];
};

/* ---- failures ---- */

static int32_t check_cuda(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return QM_OK;
    return qmi_fail(error == cudaErrorMemoryAllocation ? QM_ERROR_MEMORY : QM_ERROR_DEVICE, "cannot upload the weights: %s: %s",
                    what, cudaGetErrorString(error));
}

/* Of the calling thread, for `finish`. */
static void keep_failure(cuda_uploader *u, int32_t code)
{
    qmi_os_mutex_lock(u->mutex);
    if (u->code >= 0) {
        u->code = code;
        qmi_error_copy(u->message);
    }
    qmi_os_condition_signal_all(u->changed);
    qmi_os_mutex_unlock(u->mutex);
}

/* ---- a piece ---- */

typedef struct upload_planes {
    uint8_t *plane[QMI_CUDA_PLANES];
} upload_planes;

/* A thread a block of 32: blocks first ... first + count - 1 of the matrix. from: blocks of the file, of `bytes` bytes and
 * 2^shift blocks of 32 each. */
static __global__ void reorder_kernel(uint32_t type, const uint8_t *from, int32_t bytes, int32_t shift, int64_t first,
                                      int64_t count, upload_planes to)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        reorder_block(type, from + (i >> shift) * bytes, first + i, to.plane);
}

static int32_t launch_reorder(const upload_reader *r, const upload_piece *piece)
{
    const upload_matrix *m = &piece->matrix;
    const qmi_quant_format *format = qmi_quant_format_of(m->type);
    const int64_t blocks = m->columns / QMI_CUDA_BLOCK, count = piece->rows * blocks;
    cuda_run run = {};
    upload_planes planes;
    run.stream = r->stream;
    for (int i = 0; i < QMI_CUDA_PLANES; i++)
        planes.plane[i] = m->to + m->planes.offset[i];
    const dim3 grid((uint32_t)((count + KERNEL_THREADS - 1) / KERNEL_THREADS)), block(KERNEL_THREADS);
    cuda_launch(&run, grid, block, 0, reorder_kernel, m->type, r->card, format->bytes, format->block == QMI_CUDA_BLOCK ? 0 : 3,
                piece->first * blocks, count, planes);
    return check_cuda(cudaGetLastError(), "re-ordering");
}

static int32_t read_file(const upload_piece *piece, uint8_t *to)
{
    const upload_matrix *m = &piece->matrix;
    if (!m->data)
        return m->source.read(m->source.user, piece->first, piece->rows, to);
    const uint8_t *from = m->data + (piece->first - m->first) * m->row_bytes;
    const int64_t bytes = piece->rows * m->row_bytes;
    if (m->map)
        return qmi_os_map_read(m->map, from - m->map->data, to, bytes);
    memcpy(to, from, (size_t)bytes);
    return QM_OK;
}

static int32_t make_room(upload_reader *r, upload_buffer *buffer, int64_t bytes)
{
    const int64_t piece = r->uploader->settings.piece;
    if (bytes <= buffer->room)
        return QM_OK;
    if (buffer->host)
        cudaFreeHost(buffer->host);
    buffer->host = NULL;
    buffer->room = 0;
    bytes = bytes > piece + ROOM_ALIGN ? bytes : piece + ROOM_ALIGN;
    const int32_t code = check_cuda(cudaMallocHost((void **)&buffer->host, (size_t)bytes), "pinned memory of the host");
    if (code >= 0)
        buffer->room = bytes;
    return code;
}

static int32_t make_card_room(upload_reader *r, int64_t bytes)
{
    const int64_t piece = r->uploader->settings.piece;
    if (bytes <= r->card_room)
        return QM_OK;
    int32_t code = check_cuda(cudaStreamSynchronize(r->stream), "waiting for a copy");
    cudaFree(r->card);
    r->card = NULL;
    r->card_room = 0;
    bytes = bytes > piece ? bytes : piece;
    if (code >= 0)
        code = check_cuda(cudaMalloc((void **)&r->card, (size_t)bytes), "staging memory of the card");
    if (code >= 0)
        r->card_room = bytes;
    return code;
}

static int32_t copy_to_card(const upload_reader *r, void *to, const uint8_t *from, int64_t bytes)
{
    return check_cuda(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyHostToDevice, r->stream), "a copy");
}

/* Where rows of a plane begin in the matrix on the card. */
static uint8_t *place_of(const upload_piece *piece, int32_t plane)
{
    const upload_matrix *m = &piece->matrix;
    return m->to + m->planes.offset[plane] + qmi_cuda_plane_bytes(m->card_type, plane, m->columns, piece->first);
}

static int32_t send_planes(const upload_reader *r, const upload_piece *piece, const uint8_t *from, const qmi_cuda_planes *planes)
{
    const upload_matrix *m = &piece->matrix;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < QMI_CUDA_PLANES && code >= 0; i++) {
        const int64_t bytes = qmi_cuda_plane_bytes(m->card_type, i, m->columns, piece->rows);
        if (bytes)
            code = copy_to_card(r, place_of(piece, i), from + planes->offset[i], bytes);
    }
    return code;
}

static int32_t send_piece(upload_reader *r, upload_buffer *buffer, const upload_piece *piece)
{
    const upload_matrix *m = &piece->matrix;
    const int64_t bytes = piece->rows * m->row_bytes;
    qmi_cuda_planes planes = {}; /* of this piece, before its bytes of the file */
    if (m->way == UPLOAD_HOST)
        qmi_cuda_planes_of(m->card_type, m->columns, piece->rows, &planes);
    int32_t code = check_cuda(cudaEventSynchronize(buffer->sent), "waiting for a copy");
    if (code >= 0)
        code = make_room(r, buffer, planes.bytes + bytes);
    if (code >= 0 && m->way == UPLOAD_KERNEL)
        code = make_card_room(r, bytes);
    if (code >= 0)
        code = read_file(piece, buffer->host + planes.bytes);
    if (code >= 0 && m->after)
        code = check_cuda(cudaStreamWaitEvent(r->stream, m->after, 0), "waiting for the card");
    if (code < 0)
        return code;
    switch (m->way) {
    case UPLOAD_AS_IS:
        code = copy_to_card(r, place_of(piece, 0), buffer->host, bytes);
        break;
    case UPLOAD_KERNEL:
        code = copy_to_card(r, r->card, buffer->host, bytes);
        if (code >= 0)
            code = launch_reorder(r, piece);
        break;
    case UPLOAD_HOST:
        qmi_cuda_reorder(m->type, m->columns, buffer->host + planes.bytes, 0, piece->rows, &planes, buffer->host);
        code = send_planes(r, piece, buffer->host, &planes);
        break;
    }
    return code < 0 ? code : check_cuda(cudaEventRecord(buffer->sent, r->stream), "an event");
}

/* ---- readers ---- */

/* False: nothing is left, or it failed. */
static bool take_piece(cuda_uploader *u, upload_piece *out)
{
    bool found = false;
    qmi_os_mutex_lock(u->mutex);
    while (u->code >= 0 && !found) {
        if (u->next < u->count) {
            const upload_matrix *m = &u->matrices[u->next];
            const int64_t left = m->rows - u->next_row;
            out->matrix = *m;
            out->first = m->first + u->next_row;
            out->rows = left < m->piece_rows ? left : m->piece_rows;
            found = true;
            u->next_row += out->rows;
            if (u->next_row == m->rows) {
                u->next++;
                u->next_row = 0;
            }
        } else if (u->closed) {
            break;
        } else {
            qmi_os_condition_wait(u->changed, u->mutex, -1);
        }
    }
    qmi_os_mutex_unlock(u->mutex);
    return found;
}

static void count_done(upload_reader *r, cudaEvent_t latest, int64_t bytes)
{
    cuda_uploader *u = r->uploader;
    qmi_os_mutex_lock(u->mutex);
    r->latest = latest;
    u->done += bytes;
    qmi_os_condition_signal_all(u->changed);
    qmi_os_mutex_unlock(u->mutex);
}

static int32_t reader_open(upload_reader *r)
{
    int32_t code = check_cuda(cudaSetDevice(r->uploader->settings.device), "choosing the card");
    if (code >= 0)
        code = check_cuda(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking), "a stream");
    for (int i = 0; i < BUFFERS && code >= 0; i++) /* waiting in the kernel: the processor has other readers */
        code = check_cuda(cudaEventCreateWithFlags(&r->buffers[i].sent, cudaEventDisableTiming | cudaEventBlockingSync),
                          "an event");
    return code;
}

static void reader_close(upload_reader *r)
{
    for (int i = 0; i < BUFFERS; i++) {
        if (r->buffers[i].sent)
            cudaEventDestroy(r->buffers[i].sent);
        if (r->buffers[i].host)
            cudaFreeHost(r->buffers[i].host);
    }
    cudaFree(r->card);
    if (r->stream)
        cudaStreamDestroy(r->stream);
}

static void reader_body(void *argument)
{
    upload_reader *r = (upload_reader *)argument;
    cuda_uploader *u = r->uploader;
    upload_piece piece = {};
    int32_t code = reader_open(r);
    for (int n = 0; code >= 0 && take_piece(u, &piece); n = (n + 1) % BUFFERS) {
        code = send_piece(r, &r->buffers[n], &piece);
        if (code >= 0)
            count_done(r, r->buffers[n].sent, piece.rows * piece.matrix.row_bytes);
    }
    if (code < 0)
        keep_failure(u, code);
    if (r->stream && (code = check_cuda(cudaStreamSynchronize(r->stream), "waiting for the last copy")) < 0)
        keep_failure(u, code);
    reader_close(r);
    qmi_os_mutex_lock(u->mutex);
    u->running--;
    qmi_os_condition_signal_all(u->changed);
    qmi_os_mutex_unlock(u->mutex);
}

/* As many as there is work for. */
static int32_t start_readers(cuda_uploader *u, int64_t total)
{
    while (u->started < u->threads && u->started * u->settings.piece < total) {
        upload_reader *r = &u->readers[u->started];
        r->uploader = u;
        qmi_os_mutex_lock(u->mutex);
        u->running++;
        qmi_os_mutex_unlock(u->mutex);
        const int32_t code = qmi_os_thread_start(&r->thread, reader_body, r, "qmi-upload");
        if (code >= 0) {
            u->started++;
            continue;
        }
        qmi_os_mutex_lock(u->mutex);
        u->running--;
        qmi_os_mutex_unlock(u->mutex);
        if (!u->started)
            return code;
        u->threads = u->started; /* fewer do it as well */
    }
    return QM_OK;
}

/* ---- the uploader ---- */

static int32_t threads_of(const cuda_upload_settings *settings)
{
    int32_t threads = settings->threads;
    if (threads <= 0) {
        threads = qmi_os_processor_count();
        threads = threads < 2 ? 2 : threads;
    }
    return threads < CUDA_UPLOAD_THREADS_MAX ? threads : CUDA_UPLOAD_THREADS_MAX;
}

static int64_t piece_of(const cuda_upload_settings *settings)
{
    return settings->piece > 0 ? settings->piece : CUDA_UPLOAD_PIECE;
}

int64_t cuda_uploader_staging(const cuda_upload_settings *settings)
{
    return threads_of(settings) * piece_of(settings);
}

static void join_readers(cuda_uploader *u)
{
    for (int32_t i = 0; i < u->started; i++)
        qmi_os_thread_join(&u->readers[i].thread);
}

static void uploader_free(cuda_uploader **uploader)
{
    cuda_uploader *u = *uploader;
    const qmi_alloc alloc = u->settings.alloc;
    qmi_os_condition_free(&u->changed);
    qmi_os_mutex_free(&u->mutex);
    qmi_delete(&alloc, u->matrices);
    qmi_delete(&alloc, u);
    *uploader = NULL;
}

int32_t cuda_uploader_new(const cuda_upload_settings *settings, cuda_uploader **out)
{
    *out = NULL;
    cuda_uploader *u = (cuda_uploader *)qmi_new(&settings->alloc, 1, sizeof *u, "uploader");
    if (!u)
        return QM_ERROR_MEMORY;
    u->settings = *settings;
    u->settings.piece = piece_of(settings);
    u->threads = threads_of(settings);
    int32_t code = qmi_os_mutex_new(&u->mutex);
    if (code >= 0)
        code = qmi_os_condition_new(&u->changed);
    if (code < 0)
        uploader_free(&u);
    *out = u;
    return code;
}

static const qmi_os_map *map_of(const cuda_upload_settings *settings, const uint8_t *data)
{
    for (int32_t i = 0; i < settings->map_count; i++) {
        const qmi_os_map *map = &settings->maps[i];
        if (data >= map->data && data < map->data + map->size)
            return map;
    }
    return NULL;
}

static enum upload_way way_of(uint32_t type, int64_t columns)
{
    if (qmi_cuda_type(type) != type)
        return UPLOAD_HOST;
    if (qmi_quant_format_of(type)->block > 1)
        return UPLOAD_KERNEL;
    return columns % QMI_CUDA_BLOCK ? UPLOAD_HOST : UPLOAD_AS_IS;
}

static int32_t append(cuda_uploader *u, const upload_matrix *matrix)
{
    qmi_os_mutex_lock(u->mutex);
    int32_t code = u->code;
    if (code < 0) {
        qmi_error_restore(u->message);
    } else {
        if (u->next == u->count) /* all were taken */
            u->next = u->count = 0;
        code = qmi_reserve(&u->settings.alloc, (void **)&u->matrices, &u->capacity, u->count + 1, sizeof *u->matrices,
                           "list of uploads");
        if (code >= 0) {
            u->matrices[u->count++] = *matrix;
            u->total += matrix->rows * matrix->row_bytes;
            qmi_os_condition_signal_all(u->changed);
        }
    }
    qmi_os_mutex_unlock(u->mutex);
    return code;
}

/* m->rows: where they are not all. */
static int32_t add(cuda_uploader *u, upload_matrix *m, uint32_t type, int64_t columns, int64_t rows, void *to)
{
    if (rows <= 0)
        return QM_OK;
    m->type = type;
    m->card_type = qmi_cuda_type(type);
    m->columns = columns;
    m->rows = m->rows ? m->rows : rows;
    m->row_bytes = qmi_quant_row_bytes(type, columns);
    m->to = (uint8_t *)to;
    m->way = way_of(type, columns);
    qmi_cuda_planes_of(m->card_type, columns, rows, &m->planes);
    int64_t row_room = m->row_bytes; /* of a buffer */
    for (int32_t i = 0; i < QMI_CUDA_PLANES && m->way == UPLOAD_HOST; i++)
        row_room += qmi_cuda_plane_bytes(m->card_type, i, columns, 1);
    m->piece_rows = u->settings.piece / row_room > 0 ? u->settings.piece / row_room : 1;
    const int32_t code = append(u, m);
    return code < 0 ? code : start_readers(u, u->total);
}

int32_t cuda_uploader_add(cuda_uploader *u, const void *data, uint32_t type, int64_t columns, int64_t rows, void *to)
{
    return cuda_uploader_add_behind(u, NULL, data, type, columns, rows, to);
}

int32_t cuda_uploader_add_behind(cuda_uploader *u, cudaEvent_t after, const void *data, uint32_t type, int64_t columns,
                                 int64_t rows, void *to)
{
    upload_matrix m = {};
    m.data = (const uint8_t *)data;
    m.map = map_of(&u->settings, m.data);
    m.after = after;
    return add(u, &m, type, columns, rows, to);
}

int32_t cuda_uploader_add_rows(cuda_uploader *u, const qmi_row_source *source, uint32_t type, int64_t columns, int64_t rows,
                               void *to)
{
    upload_matrix m = {};
    m.source = *source;
    return add(u, &m, type, columns, rows, to);
}

int32_t cuda_uploader_add_part(cuda_uploader *u, const cuda_upload_part *part, uint32_t type, int64_t columns, int64_t rows,
                               void *to)
{
    upload_matrix m = {};
    m.data = (const uint8_t *)part->data;
    m.map = map_of(&u->settings, m.data);
    m.first = part->first;
    m.rows = part->count;
    return add(u, &m, type, columns, rows, to);
}

bool cuda_uploader_has_read(cuda_uploader *u)
{
    qmi_os_mutex_lock(u->mutex);
    const bool read = u->code < 0 || u->done >= u->total;
    qmi_os_mutex_unlock(u->mutex);
    return read;
}

int32_t cuda_uploader_join(cuda_uploader *u, cudaStream_t stream)
{
    qmi_os_mutex_lock(u->mutex);
    while (u->code >= 0 && u->done < u->total)
        qmi_os_condition_wait(u->changed, u->mutex, -1);
    int32_t code = u->code;
    if (code < 0)
        qmi_error_restore(u->message);
    for (int32_t i = 0; i < u->started && code >= 0; i++)
        if (u->readers[i].latest)
            code = check_cuda(cudaStreamWaitEvent(stream, u->readers[i].latest, 0), "waiting for a copy");
    qmi_os_mutex_unlock(u->mutex);
    return code;
}

int32_t cuda_uploader_finish(cuda_uploader **uploader, qm_progress_callback progress, void *user, const int32_t *cancel)
{
    cuda_uploader *u = *uploader;
    int64_t shown = -1;
    if (!u)
        return QM_OK;
    qmi_os_mutex_lock(u->mutex);
    u->closed = true;
    qmi_os_condition_signal_all(u->changed);
    while (u->code >= 0 && (u->running > 0 || shown < u->done)) {
        if (shown == u->done) /* a cancel word changes without a signal */
            qmi_os_condition_wait(u->changed, u->mutex, cancel ? 5000000 : -1);
        shown = u->done;
        qmi_os_mutex_unlock(u->mutex);
        if ((progress && progress("load", shown, u->total, user)) || (cancel && __atomic_load_n(cancel, __ATOMIC_ACQUIRE)))
            keep_failure(u, qmi_fail(QM_ERROR_CANCELLED, "loading was cancelled"));
        qmi_os_mutex_lock(u->mutex);
    }
    qmi_os_mutex_unlock(u->mutex);
    join_readers(u);
    const int32_t code = u->code;
    if (code < 0)
        qmi_error_restore(u->message);
    uploader_free(uploader);
    return code;
}

void cuda_uploader_abandon(cuda_uploader **uploader)
{
    cuda_uploader *u = *uploader;
    if (!u)
        return;
    qmi_os_mutex_lock(u->mutex);
    u->code = QM_ERROR_CANCELLED;
    qmi_os_condition_signal_all(u->changed);
    qmi_os_mutex_unlock(u->mutex);
    join_readers(u);
    uploader_free(uploader);
}
