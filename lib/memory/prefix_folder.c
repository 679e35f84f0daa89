/* A folder of prefixes: see prefix_folder.h. */
#include "memory/prefix_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/checksum.h"
#include "base/error.h"
#include "base/os.h"

#define SUFFIX ".prefix"
#define NAME_LENGTH (3 * 16 + 2 + sizeof SUFFIX - 1)
#define PART_AGE (INT64_C(24) * 3600 * 1000000000) /* what nobody has finished in a day was left by a process that is gone */

typedef struct file {
    char name[NAME_LENGTH + 1];
    int64_t bytes, used;
} file;

typedef struct listing {
    const qmi_prefix_folder *folder;
    const qmi_alloc *alloc;
    const char *start;       /* of the names that are wanted */
    file *files;
    size_t count, capacity;
    int64_t bytes, now;
} listing;

static bool make_path(const qmi_prefix_folder *folder, const char *name, char path[QMI_OS_PATH_SIZE])
{
    int length = snprintf(path, QMI_OS_PATH_SIZE, "%s/%s", folder->path, name);
    return length > 0 && length < QMI_OS_PATH_SIZE - 32; /* with room for the name that it has while it is written */
}

static uint64_t tokens_sum(const int32_t *tokens, int64_t count)
{
    return qmi_fnv_add(QMI_FNV_START, tokens, (size_t)count * sizeof *tokens);
}

/* The start that all files have in their names which may hold a start of these tokens. */
static void make_start(const qmi_snapshot_place *place, const int32_t *tokens, char start[35])
{
    snprintf(start, 35, "%016" PRIx64 "-%016" PRIx64 "-", qmi_snapshot_identity(place), tokens_sum(tokens, QMI_PREFIX_LEAST));
}

static bool is_ours(const char *name)
{
    return strlen(name) == NAME_LENGTH && strspn(name, "0123456789abcdef") == 16 && name[16] == '-' &&
           strspn(name + 17, "0123456789abcdef") == 16 && name[33] == '-' && strspn(name + 34, "0123456789abcdef") == 16 &&
           strcmp(name + 50, SUFFIX) == 0;
}

/* One that a process began and never finished: the name of one of ours with more behind it. */
static bool is_part(const char *name)
{
    char whole[NAME_LENGTH + 1];
    size_t length = strlen(name);
    snprintf(whole, sizeof whole, "%s", name);
    return length > NAME_LENGTH + 5 && is_ours(whole) && strcmp(name + length - 5, ".part") == 0;
}

static void add_file(const char *name, int64_t bytes, int64_t used, void *user)
{
    listing *l = user;
    char path[QMI_OS_PATH_SIZE];
    if (is_part(name) && used < l->now - PART_AGE && make_path(l->folder, name, path))
        qmi_os_file_remove(path);
    if (!is_ours(name) || strncmp(name, l->start, strlen(l->start)) != 0 ||
        qmi_reserve(l->alloc, (void **)&l->files, &l->capacity, l->count + 1, sizeof *l->files, "names of prefixes") < 0)
        return;
    file *f = &l->files[l->count++];
    *f = (file){ .bytes = bytes, .used = used };
    memcpy(f->name, name, NAME_LENGTH);
    l->bytes += bytes;
}

static listing list_files(const qmi_prefix_folder *folder, const qmi_alloc *alloc, const char *start)
{
    listing l = { .folder = folder, .alloc = alloc, .start = start, .now = qmi_os_clock_ns() };
    qmi_os_folder_list(folder->path, add_file, &l);
    return l;
}

bool qmi_prefix_folder_find(const qmi_prefix_folder *folder, const qmi_snapshot_place *place, const int32_t *tokens,
                            int64_t count, int64_t least, char path[QMI_OS_PATH_SIZE], int64_t *length)
{
    char start[35], candidate[QMI_OS_PATH_SIZE];
    int64_t bytes = 0;
    *length = 0;
    if (count < QMI_PREFIX_LEAST)
        return false;
    make_start(place, tokens, start);
    listing l = list_files(folder, place->alloc, start);
    for (size_t i = 0; i < l.count; i++) {
        if (!make_path(folder, l.files[i].name, candidate))
            continue;
        int64_t held = qmi_snapshot_probe(place, candidate, tokens, count);
        if (held == QM_ERROR_FORMAT || held == QM_ERROR_UNSUPPORTED)
            qmi_os_file_remove(candidate);
        if (held < least || held < *length || (held == *length && l.files[i].bytes >= bytes))
            continue;
        *length = held;
        bytes = l.files[i].bytes;
        strcpy(path, candidate);
    }
    qmi_delete(place->alloc, l.files);
    return *length > 0;
}

/* Removes the files that were not used for longest until the others are within the limit. */
static void trim(const qmi_prefix_folder *folder, const qmi_alloc *alloc)
{
    listing l = list_files(folder, alloc, "");
    while (l.bytes > folder->limit && l.count > 0) {
        char path[QMI_OS_PATH_SIZE];
        size_t oldest = 0;
        for (size_t i = 1; i < l.count; i++)
            if (l.files[i].used < l.files[oldest].used)
                oldest = i;
        if (make_path(folder, l.files[oldest].name, path))
            qmi_os_file_remove(path);
        l.bytes -= l.files[oldest].bytes;
        l.files[oldest] = l.files[--l.count];
    }
    qmi_delete(alloc, l.files);
}

int32_t qmi_prefix_folder_keep(const qmi_prefix_folder *folder, const qmi_snapshot_place *place, const qmi_snapshot *snapshot)
{
    char start[35], name[NAME_LENGTH + 1], path[QMI_OS_PATH_SIZE];
    make_start(place, snapshot->tokens, start);
    snprintf(name, sizeof name, "%s%016" PRIx64 SUFFIX, start, tokens_sum(snapshot->tokens, snapshot->count));
    if (!make_path(folder, name, path))
        return qmi_fail(QM_ERROR_FILE, "prefix-cache: the name %s is too long", folder->path);
    if (qmi_os_file_exists(path)) {
        qmi_os_file_use(path);
        return QM_OK;
    }
    int64_t states = 1 + snapshot->checkpoint_count;
    if (snapshot->pages.count * place->pages->layout->page_bytes + states * place->states->layout.bytes > folder->limit)
        return QM_OK; /* it alone is too large */
    int32_t code = qmi_os_folder_make(folder->path);
    if (code >= 0)
        code = qmi_snapshot_save(place, snapshot, path);
    trim(folder, place->alloc);
    return code;
}
