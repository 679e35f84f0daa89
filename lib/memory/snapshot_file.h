/* What saving and loading share of a session's file (snapshot.h). */
#ifndef QMI_MEMORY_SNAPSHOT_FILE_H
#define QMI_MEMORY_SNAPSHOT_FILE_H

#include "base/checksum.h"
#include "base/os.h"
#include "memory/snapshot.h"

#define QMI_SNAPSHOT_MAGIC "QM sess\n" /* 8 bytes, without the zero */
#define QMI_SNAPSHOT_SUM 4             /* bytes of a checksum */
/* Bytes between device and file at a time, so that other sessions wait for no more. */
#define QMI_SNAPSHOT_PIECE ((int64_t)8 << 20)

typedef struct qmi_snapshot_head {
    char magic[8];
    uint32_t version, kv; /* the types of keys and values: two bytes, then a bit each: rotated; then the window's tokens */
    uint64_t model;
    int64_t page_tokens, page_bytes, value_offset, recurrent_bytes, hidden_bytes, logits_bytes;
    int64_t tokens, extra, table_bytes, states, pages, checkpoints;
} qmi_snapshot_head;

_Static_assert(sizeof(qmi_snapshot_head) == 120, "the head has no gaps, so that it is written as it lies");

typedef struct qmi_snapshot_stream {
    const qmi_snapshot_place *place;
    qmi_crc crc;
    uint32_t sum;
    uint8_t *piece;        /* [QMI_SNAPSHOT_PIECE] */
    qmi_os_writer writer;
    qmi_os_map file;
    int64_t at;            /* of reading */
} qmi_snapshot_stream;

typedef struct qmi_snapshot_transfer { /* between a device and the host */
    const qmi_snapshot_stream *s;
    qmi_address address;
    int64_t bytes;
} qmi_snapshot_transfer;

/* As a file saved here begins; the sizes of what it holds are zero. */
qmi_snapshot_head qmi_snapshot_head_of(const qmi_snapshot_place *place);
int32_t qmi_snapshot_start(qmi_snapshot_stream *stream, const qmi_snapshot_place *place); /* its piece is the caller's to free */
int32_t qmi_snapshot_check_cancel(const qmi_snapshot_stream *stream);

#endif
