/* GGUF files on disk, in one part or several: see gguf_parts.h. */
#include "file/gguf_parts.h"

#include <stdio.h>
#include <string.h>
#include "base/checksum.h"
#include "base/error.h"

#define SUFFIX_LENGTH 20         /* "-00001-of-00003.gguf" */
#define STEP (INT64_C(64) << 20) /* of reading ahead: some 20 ms of a fast disk, so that cancelling is prompt */

void qmi_parts_close(qmi_parts *parts, const qmi_alloc *alloc)
{
    for (int32_t i = 0; i < parts->count; i++) {
        qmi_gguf_free(&parts->headers[i], alloc);
        qmi_os_map_close(&parts->maps[i]);
        qmi_delete(alloc, parts->paths[i]);
    }
    qmi_delete(alloc, parts->paths);
    qmi_delete(alloc, parts->maps);
    qmi_delete(alloc, parts->headers);
    qmi_delete(alloc, parts->gguf.tensors);
    qmi_delete(alloc, parts->gguf.tensor_order);
    *parts = (qmi_parts){ 0 };
}

static bool five_digits(const char *text, int32_t *out)
{
    *out = 0;
    for (int i = 0; i < 5; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *out = 10 * *out + (text[i] - '0');
    }
    return true;
}

/* Takes NAME-00001-of-00003.gguf apart; *number counts from 1. False when the name is another. */
static bool part_name(const char *path, int32_t *number, int32_t *count)
{
    const size_t length = strlen(path);
    const char *suffix = path + length - SUFFIX_LENGTH;
    return length >= SUFFIX_LENGTH && suffix[0] == '-' && five_digits(suffix + 1, number) && memcmp(suffix + 6, "-of-", 4) == 0 &&
           five_digits(suffix + 10, count) && strcmp(suffix + 15, ".gguf") == 0;
}

/* Room for the parts and their files' names; of several, `path` is the name of one. */
static int32_t parts_new(qmi_parts *parts, const char *path, int32_t count, const qmi_alloc *alloc)
{
    const size_t length = strlen(path);
    parts->paths = qmi_new(alloc, (size_t)count, sizeof *parts->paths, "the names of the file's parts");
    parts->maps = qmi_new(alloc, (size_t)count, sizeof *parts->maps, "the maps of the file's parts");
    parts->headers = qmi_new(alloc, (size_t)count, sizeof *parts->headers, "the headers of the file's parts");
    if (!parts->paths || !parts->maps || !parts->headers)
        return QM_ERROR_MEMORY;
    parts->count = count;
    for (int32_t i = 0; i < count; i++) {
        parts->paths[i] = qmi_new_text(alloc, path, length);
        if (!parts->paths[i])
            return QM_ERROR_MEMORY;
        char *digit = parts->paths[i] + length - SUFFIX_LENGTH + 5; /* the last of the five after the first hyphen */
        for (int32_t rest = i + 1, d = 0; count > 1 && d < 5; d++, rest /= 10)
            *digit-- = (char)('0' + rest % 10);
    }
    return QM_OK;
}

static int32_t read_part(qmi_parts *parts, int32_t index, const qmi_alloc *alloc)
{
    int32_t status = qmi_os_map_open(parts->paths[index], &parts->maps[index]);
    if (status < 0)
        return status;
    status = qmi_gguf_read(parts->maps[index].data, parts->maps[index].size, alloc, &parts->headers[index]);
    return status < 0 ? qmi_fail_within(status, parts->paths[index]) : QM_OK;
}

/* How many parts the file says there are: split.count, or 1 without it. */
static int32_t split_count(const qmi_gguf *header, const char *path, int32_t *out)
{
    int64_t count = 1;
    int32_t status = qmi_gguf_int(header, "split.count", &count);
    if (status < 0)
        return qmi_fail_within(status, path);
    if (count < 1 || count > QMI_PARTS_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "%s: split.count is %lld, which must be 1 to %d", path, (long long)count, QMI_PARTS_MAX);
    *out = (int32_t)count;
    return QM_OK;
}

/* A part's name and its own keys must tell the same story; index counts from 0. */
static int32_t check_part(const qmi_gguf *header, const char *path, int32_t index, int32_t count)
{
    int64_t number = -1;
    int32_t own_count = count;
    int32_t status = split_count(header, path, &own_count);
    if (status < 0)
        return status;
    if (own_count != count)
        return qmi_fail(QM_ERROR_FORMAT, "%s: split.count is %d, but its name says %d parts; are parts of different files mixed?",
                        path, own_count, count);
    status = qmi_gguf_int(header, "split.no", &number);
    if (status < 0)
        return qmi_fail_within(status, path);
    if (number != index)
        return qmi_fail(QM_ERROR_FORMAT, "%s: split.no is %lld, but its name says part %d (number %d, from 0); was it renamed?",
                        path, (long long)number, index + 1, index);
    return QM_OK;
}

/* Asks the named file how many parts there are, and checks that against its name. */
static int32_t count_parts(const char *path, const qmi_alloc *alloc, int32_t *out)
{
    qmi_os_map map;
    qmi_gguf header;
    int32_t number, name_count = 1, status = qmi_os_map_open(path, &map);
    if (status < 0)
        return status;
    status = qmi_gguf_read(map.data, map.size, alloc, &header);
    if (status < 0) {
        qmi_fail_within(status, path);
        goto done;
    }
    const bool named = part_name(path, &number, &name_count);
    if ((status = split_count(&header, path, out)) < 0)
        goto done;
    if (*out > 1 && !named)
        status = qmi_fail(QM_ERROR_FORMAT, "%s: split.count is %d, so its name must end in -0000N-of-%05d.gguf for the others "
                          "to be found", path, *out, *out);
    else if (named && name_count != *out)
        status = qmi_fail(QM_ERROR_FORMAT, "%s: its name says %d parts, but its split.count %d", path, name_count, *out);
done:
    qmi_gguf_free(&header, alloc);
    qmi_os_map_close(&map);
    return status;
}

/* The tensors of all parts in one array, with one index. */
static int32_t merge(qmi_parts *parts, const qmi_alloc *alloc)
{
    qmi_gguf *all = &parts->gguf;
    const qmi_gguf *first = &parts->headers[0];
    int64_t count = 0, promised = -1;
    for (int32_t i = 0; i < parts->count; i++) {
        count += parts->headers[i].tensor_count;
        parts->bytes += parts->maps[i].size;
    }
    int32_t status = qmi_gguf_int(first, "split.tensors.count", &promised);
    if (status < 0)
        return qmi_fail_within(status, parts->paths[0]);
    if (status > 0 && promised != count)
        return qmi_fail(QM_ERROR_FORMAT, "%s: split.tensors.count is %lld, but the parts have %lld tensors", parts->paths[0],
                        (long long)promised, (long long)count);
    if (count > QMI_GGUF_COUNT_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "%s: its parts have %lld tensors; this library takes %d", parts->paths[0],
                        (long long)count, QMI_GGUF_COUNT_MAX);
    *all = (qmi_gguf){ .version = first->version, .value_count = first->value_count, .values = first->values,
                       .value_order = first->value_order, .header_bytes = first->header_bytes };
    all->tensors = qmi_new(alloc, (size_t)count, sizeof *all->tensors, "the tensors of all parts");
    all->tensor_order = qmi_new(alloc, (size_t)count, sizeof *all->tensor_order, "the index of all tensors");
    if (!all->tensors || !all->tensor_order)
        return QM_ERROR_MEMORY;
    for (int32_t i = 0; i < parts->count; i++)
        for (int64_t j = 0; j < parts->headers[i].tensor_count; j++) {
            all->tensors[all->tensor_count] = parts->headers[i].tensors[j];
            all->tensors[all->tensor_count++].part = i;
        }
    status = qmi_gguf_order_tensors(all);
    return status < 0 ? qmi_fail_within(status, parts->paths[0]) : QM_OK;
}

int32_t qmi_parts_open(const char *path, const qmi_alloc *alloc, qmi_parts *out)
{
    int32_t count = 0;
    *out = (qmi_parts){ 0 };
    int32_t status = count_parts(path, alloc, &count);
    if (status == QM_OK)
        status = parts_new(out, path, count, alloc);
    for (int32_t i = 0; i < count && status == QM_OK; i++) {
        if (count > 1 && !qmi_os_file_exists(out->paths[i]))
            status = qmi_fail(QM_ERROR_FILE, "part %d of %d is missing: %s", i + 1, count, out->paths[i]);
        else
            status = read_part(out, i, alloc);
        if (status == QM_OK && count > 1)
            status = check_part(&out->headers[i], out->paths[i], i, count);
    }
    if (status == QM_OK)
        status = merge(out, alloc);
    if (status < 0)
        qmi_parts_close(out, alloc);
    return status;
}

int32_t qmi_parts_check(const qmi_parts *parts)
{
    for (int32_t i = 0; i < parts->count; i++) {
        const int32_t status = qmi_os_map_check(&parts->maps[i]);
        if (status < 0)
            return qmi_fail_within(status, parts->paths[i]);
    }
    return QM_OK;
}

int32_t qmi_parts_read_ahead(const qmi_parts *parts, qm_progress_callback progress, void *user)
{
    int64_t done = 0;
    for (int32_t i = 0; i < parts->count; i++) {
        const qmi_os_map *map = &parts->maps[i];
        for (int64_t at = 0; at < map->size; at += STEP) {
            const int64_t step = map->size - at < STEP ? map->size - at : STEP;
            qmi_os_map_will_need(map, at + step, STEP);
            const int32_t status = qmi_os_map_touch(map, at, step);
            if (status < 0)
                return qmi_fail_within(status, parts->paths[i]);
            done += step;
            if (progress && progress("load", done, parts->bytes, user))
                return qmi_fail(QM_ERROR_CANCELLED, "loading %s was cancelled after %lld of %lld bytes", parts->paths[0],
                                (long long)done, (long long)parts->bytes);
        }
    }
    return QM_OK;
}

int32_t qmi_parts_lock(qmi_parts *parts)
{
    for (int32_t i = 0; i < parts->count; i++) {
        const int32_t status = qmi_os_map_lock(&parts->maps[i]);
        if (status < 0)
            return qmi_fail_within(status, parts->paths[i]);
    }
    return QM_OK;
}

/* ---- which model ---- */

#define SAMPLE 256 /* bytes of each tensor that are looked at: models of one family differ there if anywhere */

static int32_t add_bytes(const qmi_os_map *map, int64_t offset, int64_t size, uint64_t *sum)
{
    uint8_t bytes[16384];
    for (int64_t done = 0; done < size;) {
        int64_t piece = size - done < (int64_t)sizeof bytes ? size - done : (int64_t)sizeof bytes;
        int32_t code = qmi_os_map_read(map, offset + done, bytes, piece);
        if (code < 0)
            return code;
        *sum = qmi_fnv_add(*sum, bytes, (size_t)piece);
        done += piece;
    }
    return QM_OK;
}

int32_t qmi_parts_identify(const qmi_parts *parts, uint64_t *out)
{
    uint64_t sum = qmi_fnv_add(QMI_FNV_START, &parts->bytes, sizeof parts->bytes);
    int32_t code = QM_OK;
    for (int32_t i = 0; i < parts->count && code >= 0; i++)
        code = add_bytes(&parts->maps[i], 0, parts->headers[i].header_bytes, &sum);
    for (int64_t i = 0; i < parts->gguf.tensor_count && code >= 0; i++) {
        const qmi_gguf_tensor *tensor = &parts->gguf.tensors[i];
        const qmi_os_map *map = &parts->maps[tensor->part];
        code = add_bytes(map, tensor->data - map->data, tensor->bytes < SAMPLE ? tensor->bytes : SAMPLE, &sum);
    }
    *out = sum;
    return code;
}
