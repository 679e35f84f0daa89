/* Pieces of shared blocks: see piece_map.h. */
#include "exchange/piece_map.h"

int32_t qmi_piece_map_add(qmi_piece_map *map, const qmi_alloc *alloc, int32_t member, int64_t at, int64_t bytes)
{
    qmi_member_pieces *pieces = &map->members[member];
    qmi_piece *last = pieces->count ? &pieces->list[pieces->count - 1] : NULL;
    if (bytes == 0)
        return QM_OK;
    if (last && last->at + last->bytes == at && last->member_at + last->bytes == pieces->period) {
        last->bytes += bytes;
    } else {
        int32_t code = qmi_reserve(alloc, (void **)&pieces->list, &pieces->capacity, pieces->count + 1, sizeof *pieces->list,
                                   "the map of several devices' memory");
        if (code < 0)
            return code;
        pieces->list[pieces->count++] = (qmi_piece){ at, bytes, pieces->period };
    }
    pieces->period += bytes;
    return QM_OK;
}

void qmi_piece_map_align(qmi_piece_map *map, int32_t member)
{
    int64_t *period = &map->members[member].period;
    *period = (*period + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
}

void qmi_piece_map_free(qmi_piece_map *map, const qmi_alloc *alloc)
{
    for (int32_t i = 0; i < QMI_RANKS_MAX; i++)
        qmi_delete(alloc, map->members[i].list);
    *map = (qmi_piece_map){ 0 };
}

/* The member's first piece that ends behind `at`; its count when there is none. */
static size_t first_behind(const qmi_member_pieces *pieces, int64_t at)
{
    size_t low = 0, high = pieces->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pieces->list[middle].at + pieces->list[middle].bytes > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

int64_t qmi_piece_map_below(const qmi_piece_map *map, int32_t member, int64_t offset)
{
    const qmi_member_pieces *pieces = &map->members[member];
    int64_t record = offset / map->period, at = offset % map->period;
    size_t i = first_behind(pieces, at);
    int64_t inside = i == pieces->count ? pieces->period : pieces->list[i].member_at;
    if (i < pieces->count && pieces->list[i].at < at)
        inside += at - pieces->list[i].at;
    return record * pieces->period + (at == 0 ? 0 : inside);
}

bool qmi_piece_map_find(const qmi_piece_map *map, int32_t member, int64_t offset, int64_t bytes, qmi_piece_run *out)
{
    const qmi_member_pieces *pieces = &map->members[member];
    int64_t record = offset / map->period, at = offset % map->period, end = offset + bytes;
    if (pieces->count == 0)
        return false;
    if (pieces->list[0].bytes == map->period) { /* all of it */
        *out = (qmi_piece_run){ offset, bytes, offset };
        return bytes > 0;
    }
    size_t i = first_behind(pieces, at);
    if (i == pieces->count) { /* of the next record, then */
        i = 0;
        record++;
    }
    const qmi_piece *piece = &pieces->list[i];
    int64_t start = record * map->period + piece->at, skipped = start < offset ? offset - start : 0;
    *out = (qmi_piece_run){ start + skipped, piece->bytes - skipped, record * pieces->period + piece->member_at + skipped };
    if (out->offset + out->bytes > end)
        out->bytes = end - out->offset;
    return out->bytes > 0;
}
