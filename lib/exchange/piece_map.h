/* Where the parts of a block of memory lie when several members share it. The whole is as one device would have it: records that
 * repeat after `period` bytes (pages, rows of a slot). Of each record a member has some pieces, one behind the other in the order
 * they have in the whole; a piece may be on several members, which then hold the same bytes. */
#ifndef QMI_EXCHANGE_PIECE_MAP_H
#define QMI_EXCHANGE_PIECE_MAP_H

#include "base/alloc.h"
#include "exchange/exchange.h"

typedef struct qmi_piece {
    int64_t at, bytes;      /* of the whole's record */
    int64_t member_at;      /* of the member's record */
} qmi_piece;

typedef struct qmi_member_pieces {
    qmi_piece *list;
    size_t count, capacity;
    int64_t period;         /* bytes of the member's record; 0: it has none of it */
} qmi_member_pieces;

typedef struct qmi_piece_map {
    int64_t period;
    qmi_member_pieces members[QMI_RANKS_MAX];
} qmi_piece_map;

/* The next piece of a member, behind those it has. */
int32_t qmi_piece_map_add(qmi_piece_map *map, const qmi_alloc *alloc, int32_t member, int64_t at, int64_t bytes);
/* The member's next piece begins at a multiple of QMI_ALIGNMENT, if it has any. */
void qmi_piece_map_align(qmi_piece_map *map, int32_t member);
void qmi_piece_map_free(qmi_piece_map *map, const qmi_alloc *alloc);

/* Where in the member's block the first of its bytes lies that is at `offset` of the whole's or behind: what of the member's lies
 * in [a, b) of the whole is [below(a), below(b)) of its block. */
int64_t qmi_piece_map_below(const qmi_piece_map *map, int32_t member, int64_t offset);

/* Of the whole's bytes [offset, offset + bytes): the first run that the member has. False: it has none of them. */
typedef struct qmi_piece_run {
    int64_t offset, bytes;  /* of the whole */
    int64_t member_at;      /* in the member's block */
} qmi_piece_run;
bool qmi_piece_map_find(const qmi_piece_map *map, int32_t member, int64_t offset, int64_t bytes, qmi_piece_run *out);

#endif
