/* Experts that come from the host's memory for each run: see cuda_lend.h. */
#include "cuda_device.h"

extern "C" {
#include "cuda_backend.h"
}

#include <string.h>

#define LENT (UINT64_C(1) << 63) /* no address of a card has this bit */

extern "C" int32_t qmi_cuda_lend(qmi_device *device, const void *data, qmi_matrix *matrix)
{
    cuda_lender *lender = &device->lender;
    void *list = lender->matrices;
    uint32_t type = matrix->type;
    const int64_t rows = matrix->rows * matrix->count, bytes = qmi_cuda_matrix_bytes(&type, matrix->columns, rows);
    int32_t code = qmi_reserve(&device->alloc, &list, &lender->capacity, lender->count + 1, sizeof *lender->matrices,
                               "the list of lent matrices");
    lender->matrices = (cuda_lent_matrix *)list;
    if (code < 0)
        return code;
    const cuda_lent_matrix lent = { data, matrix->type, matrix->columns, rows, bytes };
    matrix->data = LENT | (uint64_t)lender->count;
    matrix->type = type;
    lender->matrices[lender->count++] = lent;
    return QM_OK;
}

int32_t cuda_lend_files(qmi_device *device, const qmi_os_map *files, int32_t count)
{
    cuda_lender *lender = &device->lender;
    qmi_delete(&device->alloc, lender->files);
    lender->files = NULL;
    lender->file_count = 0;
    if (count == 0)
        return QM_OK;
    lender->files = (qmi_os_map *)qmi_new(&device->alloc, (size_t)count, sizeof *files, "the list of files");
    if (!lender->files)
        return QM_ERROR_MEMORY;
    memcpy(lender->files, files, (size_t)count * sizeof *files);
    lender->file_count = count;
    return QM_OK;
}

/* ---- a program ---- */

static void matrices_of(qmi_op *op, qmi_matrix *out[CUDA_LEND_MATRICES])
{
    out[0] = &op->experts.gate;
    out[1] = &op->experts.up;
    out[2] = &op->experts.down;
}

static int32_t note_op(qmi_device *device, cuda_lent *lent, size_t i)
{
    qmi_matrix *matrices[CUDA_LEND_MATRICES];
    cuda_lent_op entry = { i, { -1, -1, -1 }, 0 };
    if (lent->ops[i].kind != QMI_OP_EXPERTS)
        return QM_OK;
    matrices_of(&lent->ops[i], matrices);
    for (int m = 0; m < CUDA_LEND_MATRICES; m++)
        if (matrices[m]->data & LENT) {
            entry.matrix[m] = (int32_t)(matrices[m]->data & ~LENT);
            entry.bytes += device->lender.matrices[entry.matrix[m]].bytes;
        }
    if (entry.bytes == 0)
        return QM_OK;
    void *list = lent->list;
    int32_t code = qmi_reserve(&device->alloc, &list, &lent->list_capacity, lent->list_count + 1, sizeof entry,
                               "the list of lent matrices");
    lent->list = (cuda_lent_op *)list;
    if (code >= 0)
        lent->list[lent->list_count++] = entry;
    return code;
}

void cuda_lend_forget(qmi_device *device, cuda_lent *lent)
{
    cuda_cache_free(device, &lent->cache);
    qmi_delete(&device->alloc, lent->ops);
    qmi_delete(&device->alloc, lent->list);
    memset(lent, 0, sizeof *lent);
}

static int32_t make_rooms(qmi_device *device, int64_t bytes)
{
    cuda_lender *lender = &device->lender;
    int32_t code = QM_OK;
    if (bytes > lender->room_bytes) {
        for (int i = 0; i < CUDA_LEND_ROOMS; i++) {
            cuda_give(device, lender->rooms[i], lender->room_bytes);
            lender->rooms[i] = NULL;
        }
        lender->room_bytes = bytes;
        for (int i = 0; i < CUDA_LEND_ROOMS && code >= 0; i++) {
            void *room = NULL;
            code = cuda_take(device, bytes, "experts from the host's memory", &room);
            lender->rooms[i] = (uint8_t *)room;
        }
        if (code < 0) {
            cuda_give(device, lender->rooms[0], bytes);
            lender->rooms[0] = NULL;
            lender->room_bytes = 0;
        }
    }
    for (int i = 0; i < CUDA_LEND_ROOMS && code >= 0; i++)
        if (!lender->left[i])
            code = cuda_check(device, cudaEventCreateWithFlags(&lender->left[i], cudaEventDisableTiming), "making an event");
    return code;
}

int32_t cuda_lend_prepare(qmi_device *device, const qmi_program *program, int32_t rows, cuda_lent *lent)
{
    int64_t most = 0;
    cuda_lend_forget(device, lent);
    if (device->lender.count == 0)
        return QM_OK;
    lent->count = program->count;
    lent->ops = (qmi_op *)qmi_new(&device->alloc, program->count, sizeof *lent->ops, "a program with lent matrices");
    int32_t code = lent->ops ? QM_OK : QM_ERROR_MEMORY;
    if (code >= 0)
        memcpy(lent->ops, program->ops, program->count * sizeof *lent->ops);
    for (size_t i = 0; i < program->count && code >= 0; i++)
        code = note_op(device, lent, i);
    for (size_t k = 0; k < lent->list_count; k++)
        most = lent->list[k].bytes > most ? lent->list[k].bytes : most;
    if (code >= 0 && most > 0)
        code = make_rooms(device, most);
    for (size_t k = 0; k < lent->list_count && code >= 0; k++)
        code = cuda_help_room(device, rows, &lent->ops[lent->list[k].op].experts);
    if (code >= 0 && device->help.table.compute)
        code = cuda_cache_make(device, lent, device->help.table.cache_bytes);
    if (code < 0 || most == 0)
        cuda_lend_forget(device, lent);
    return code;
}

/* ---- a run ---- */

static int32_t start_uploader(qmi_device *device)
{
    cuda_lender *lender = &device->lender;
    const cuda_upload_files from = { lender->files, lender->file_count, 0 };
    return lender->uploader ? QM_OK : cuda_start_uploader(device, &from, &lender->uploader, &lender->staging);
}

int32_t cuda_lend_start_filler(qmi_device *device)
{
    cuda_lender *lender = &device->lender;
    const cuda_upload_files from = { lender->files, lender->file_count, 1 };
    return lender->filler ? QM_OK : cuda_start_uploader(device, &from, &lender->filler, &lender->filler_staging);
}

/* Op k's matrices begin to come. */
static int32_t send(qmi_device *device, const cuda_lent *lent, size_t k)
{
    cuda_lender *lender = &device->lender;
    uint8_t *to = lender->rooms[k % CUDA_LEND_ROOMS];
    const cudaEvent_t after = k < CUDA_LEND_ROOMS ? NULL : lender->left[k % CUDA_LEND_ROOMS];
    int32_t code = QM_OK;
    for (int m = 0; m < CUDA_LEND_MATRICES && code >= 0; m++) {
        if (lent->list[k].matrix[m] < 0)
            continue;
        const cuda_lent_matrix *matrix = &lender->matrices[lent->list[k].matrix[m]];
        code = cuda_uploader_add_behind(lender->uploader, after, matrix->data, matrix->type, matrix->columns, matrix->rows, to);
        to += matrix->bytes;
    }
    return code;
}

int32_t cuda_lend_start(qmi_device *device, cuda_lent *lent)
{
    for (size_t k = 0; k < lent->list_count; k++) { /* rooms may have moved since the last run */
        qmi_matrix *matrices[CUDA_LEND_MATRICES];
        uint8_t *at = device->lender.rooms[k % CUDA_LEND_ROOMS];
        matrices_of(&lent->ops[lent->list[k].op], matrices);
        for (int m = 0; m < CUDA_LEND_MATRICES; m++)
            if (lent->list[k].matrix[m] >= 0) {
                matrices[m]->data = (qmi_address)at;
                at += device->lender.matrices[lent->list[k].matrix[m]].bytes;
            }
    }
    int32_t code = start_uploader(device);
    return code < 0 ? code : send(device, lent, 0);
}

int32_t cuda_lend_arrive(qmi_device *device, const cuda_lent *lent, size_t k)
{
    int32_t code = cuda_uploader_join(device->lender.uploader, device->stream);
    return code < 0 || k + 1 == lent->list_count ? code : send(device, lent, k + 1);
}

int32_t cuda_lend_leave(qmi_device *device, size_t k)
{
    return cuda_check(device, cudaEventRecord(device->lender.left[k % CUDA_LEND_ROOMS], device->stream), "an event");
}

/* What is still on its way comes before anything of the next run. A reader that failed ends them all; the next run starts new
 * ones. */
int32_t cuda_lend_end(qmi_device *device, int32_t code)
{
    cuda_lender *lender = &device->lender;
    char text[QMI_ERROR_SIZE];
    if (!lender->uploader)
        return code;
    if (code < 0)
        qmi_error_copy(text);
    const int32_t joined = cuda_uploader_join(lender->uploader, device->stream);
    if (joined < 0) {
        cuda_uploader_abandon(&lender->uploader);
        device->memory_used -= lender->staging;
    }
    if (code < 0)
        qmi_error_restore(text);
    return code < 0 ? code : joined;
}

void cuda_lend_close(qmi_device *device)
{
    cuda_lender *lender = &device->lender;
    cuda_uploader_abandon(&lender->uploader);
    cuda_uploader_abandon(&lender->filler);
    for (int i = 0; i < CUDA_LEND_ROOMS; i++) {
        (void)cudaFree(lender->rooms[i]);
        if (lender->left[i])
            (void)cudaEventDestroy(lender->left[i]);
    }
    qmi_delete(&device->alloc, lender->files);
    qmi_delete(&device->alloc, lender->matrices);
}
