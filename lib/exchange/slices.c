/* Slices of weights: see slices.h. */
#include "exchange/slices.h"

#include <string.h>
#include "base/error.h"
#include "quant/quant.h"

static bool equal_ranges(const qmi_ranges *a, const qmi_ranges *b)
{
    return a->count == b->count && memcmp(a->list, b->list, (size_t)a->count * sizeof *a->list) == 0;
}

size_t qmi_slices_find(const qmi_slice_list *list, const qmi_slice *slice)
{
    size_t i = 0;
    for (; i < list->count; i++) {
        const qmi_slice *other = list->list[i];
        if (other->whole.data == slice->whole.data && equal_ranges(&other->rows, &slice->rows) &&
            equal_ranges(&other->columns, &slice->columns))
            break;
    }
    return i;
}

int32_t qmi_slices_collect(qmi_slice_list *list, const qmi_cut *cut, int32_t member, bool vectors, const qmi_alloc *alloc)
{
    const qmi_part_of *part = &cut->parts[member];
    int32_t code = QM_OK;
    for (size_t i = 0; i < part->slice_count && code >= 0; i++) {
        const qmi_slice *slice = &part->slices[i];
        if (slice->vector != vectors || qmi_slices_find(list, slice) < list->count)
            continue;
        code = qmi_reserve(alloc, (void **)&list->list, &list->capacity, list->count + 1, sizeof *list->list,
                           "slices of weights");
        if (code >= 0)
            list->list[list->count++] = slice;
    }
    return code;
}

void qmi_slices_free(qmi_slice_list *list, const qmi_alloc *alloc)
{
    qmi_delete(alloc, list->list);
    *list = (qmi_slice_list){ 0 };
}

qmi_matrix qmi_slice_matrix(const qmi_slice *slice)
{
    return (qmi_matrix){ slice->whole.type, qmi_ranges_total(&slice->columns), qmi_ranges_total(&slice->rows), slice->whole.count,
                         0 };
}

static int64_t row_bytes(const qmi_slice *slice, int64_t columns)
{
    return slice->vector ? columns * (int64_t)sizeof(float) : qmi_quant_row_bytes(slice->whole.type, columns);
}

bool qmi_slice_is_run(const qmi_slice *slice, int64_t *offset)
{
    bool all_rows = slice->rows.count == 1 && slice->rows.list[0].count == slice->whole.rows;
    bool all_columns = slice->columns.count == 1 && slice->columns.list[0].count == slice->whole.columns;
    *offset = slice->rows.count ? slice->rows.list[0].first * row_bytes(slice, slice->whole.columns) : 0;
    return all_columns && slice->rows.count == 1 && (all_rows || slice->whole.count == 1);
}

int64_t qmi_slice_bytes(const qmi_slice *slice)
{
    return row_bytes(slice, qmi_ranges_total(&slice->columns)) * qmi_ranges_total(&slice->rows) * slice->whole.count;
}

/* Columns of one row. */
static char *gather_row(const qmi_slice *slice, const char *row, char *to)
{
    for (int32_t i = 0; i < slice->columns.count; i++) {
        int64_t bytes = row_bytes(slice, slice->columns.list[i].count);
        memcpy(to, row + row_bytes(slice, slice->columns.list[i].first), (size_t)bytes);
        to += bytes;
    }
    return to;
}

/* `count` neighbouring rows of the whole. */
static int32_t gather_run(const qmi_slice *slice, const char *from, const qmi_os_map *map, int64_t count, char **to)
{
    const int64_t size = row_bytes(slice, slice->whole.columns);
    const bool all_columns = slice->columns.count == 1 && slice->columns.list[0].count == slice->whole.columns;
    int32_t code = QM_OK;
    if (!all_columns) {
        for (int64_t r = 0; r < count; r++)
            *to = gather_row(slice, from + r * size, *to);
        return QM_OK;
    }
    if (map)
        code = qmi_os_map_read(map, (const uint8_t *)from - map->data, *to, count * size);
    else
        memcpy(*to, from, (size_t)(count * size));
    *to += count * size;
    return code;
}

int32_t qmi_slice_gather_rows(const qmi_slice *slice, const void *whole, const qmi_os_map *map, int64_t first, int64_t count,
                              void *to)
{
    const int64_t size = row_bytes(slice, slice->whole.columns), end = first + count;
    char *next = to;
    int64_t begin = 0; /* of a range, among the slice's rows */
    int32_t code = QM_OK;
    for (int64_t c = 0; c < slice->whole.count && code >= 0; c++)
        for (int32_t i = 0; i < slice->rows.count && code >= 0; i++) {
            const qmi_range *range = &slice->rows.list[i];
            int64_t from = first > begin ? first - begin : 0, to_row = end - begin < range->count ? end - begin : range->count;
            if (from < to_row)
                code = gather_run(slice, (const char *)whole + (c * slice->whole.rows + range->first + from) * size, map,
                                  to_row - from, &next);
            begin += range->count;
        }
    return code;
}

void qmi_slice_gather(const qmi_slice *slice, const void *whole, void *to)
{
    qmi_slice_gather_rows(slice, whole, NULL, 0, qmi_ranges_total(&slice->rows) * slice->whole.count, to);
}
