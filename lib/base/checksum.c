/* Checksums: see checksum.h. */
#include "base/checksum.h"

#define POLYNOMIAL 0x82F63B78u /* 1EDC6F41, bits reversed */

void qmi_crc_start(qmi_crc *crc)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
        crc->table[0][byte] = sum;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t byte = 0; byte < 256; byte++)
            crc->table[k][byte] = crc->table[k - 1][byte] >> 8 ^ crc->table[0][crc->table[k - 1][byte] & 255];
}

uint32_t qmi_crc_add(const qmi_crc *crc, uint32_t sum, const void *data, size_t size)
{
    const uint8_t *at = data;
    sum = ~sum;
    for (; size >= 8; size -= 8, at += 8) { /* eight bytes at once, each from the table of its distance to the end */
        sum ^= (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        sum = crc->table[7][sum & 255] ^ crc->table[6][sum >> 8 & 255] ^ crc->table[5][sum >> 16 & 255] ^
              crc->table[4][sum >> 24] ^ crc->table[3][at[4]] ^ crc->table[2][at[5]] ^ crc->table[1][at[6]] ^
              crc->table[0][at[7]];
    }
    while (size-- > 0)
        sum = sum >> 8 ^ crc->table[0][(sum ^ *at++) & 255];
    return ~sum;
}

uint64_t qmi_fnv_add(uint64_t sum, const void *data, size_t size)
{
    const uint8_t *at = data;
    while (size-- > 0)
        sum = (sum ^ *at++) * 0x100000001B3u;
    return sum;
}
