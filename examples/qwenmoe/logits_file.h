/* A file of log probabilities: what one model says after each token of a text, to compare another with.
 *
 *     char magic[8] "QMLOGITS"; int32 version (1), bits (16 or 32); int64 vocabulary, tokens, window, overlap, rows;
 *     int32 token[tokens];
 *     row[rows]: 32 bits: float log_probability[vocabulary]
 *                16 bits: float highest, step; uint16 below[vocabulary], log probability = highest - step * below
 *
 * in the byte order of a little-endian machine. 16 bits span at most LOGITS_SPAN below the most likely token (e^-60 is nothing),
 * so the steps are under 0.001; only tokens exactly as likely as the first have `below` 0, so that the most likely one is never
 * in doubt. */
#ifndef QWENMOE_LOGITS_FILE_H
#define QWENMOE_LOGITS_FILE_H

#include <stdint.h>
#include <stdio.h>

#define LOGITS_SPAN 60.0f

typedef struct logits_head {
    char magic[8];
    int32_t version, bits;
    int64_t vocabulary, tokens, window, overlap, rows;
} logits_head;

typedef struct logits_file {
    FILE *file;
    const char *path; /* for messages */
    logits_head head;
    int32_t *tokens;  /* owned, when the file is read */
    uint16_t *packed; /* one row of 16 bits, owned */
} logits_file;

/* All return EXIT_OK, or EXIT_FAILED after a message. logits_close frees what the file owns. */
int logits_create(logits_file *out, const char *path, const logits_head *head, const int32_t *tokens);
int logits_open(logits_file *out, const char *path);
int logits_write(logits_file *file, const float *row);
int logits_read(logits_file *file, float *row);
int logits_close(logits_file *file);

#endif
