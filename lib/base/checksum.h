/* Checksums of bytes: CRC-32C finds damage, FNV-1a tells files apart. Neither guards against malice. */
#ifndef QMI_BASE_CHECKSUM_H
#define QMI_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C: Castagnoli, Brauer and Herrmann 1993; as RFC 3720, appendix B.4, has it. */
typedef struct qmi_crc {
    uint32_t table[8][256]; /* [k][b]: of byte b with k zero bytes behind it */
} qmi_crc;

void qmi_crc_start(qmi_crc *crc); /* fills the table, in microseconds */
/* The sum of the bytes before, whose sum is `sum` (none: 0), and these. */
uint32_t qmi_crc_add(const qmi_crc *crc, uint32_t sum, const void *data, size_t size);

#define QMI_FNV_START 0xCBF29CE484222325u
/* FNV-1a of 64 bits (Fowler, Noll and Vo): likewise, starting with QMI_FNV_START. */
uint64_t qmi_fnv_add(uint64_t sum, const void *data, size_t size);

#endif
