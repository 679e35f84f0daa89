/* Reads and writes files of log probabilities; the format is in logits_file.h. */
#include "logits_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

static const char magic[8] = "QMLOGITS";

static int complain_file(const logits_file *file, const char *verb)
{
    return complain("cannot %s %s: %s", verb, file->path, ferror(file->file) ? strerror(errno) : "it ends too early");
}

int logits_create(logits_file *out, const char *path, const logits_head *head, const int32_t *tokens)
{
    memset(out, 0, sizeof *out);
    out->path = path;
    out->head = *head;
    memcpy(out->head.magic, magic, sizeof magic);
    out->head.version = 1;
    out->file = fopen(path, "wb");
    if (!out->file)
        return complain("cannot create %s: %s", path, strerror(errno));
    out->packed = allocate(head->vocabulary, sizeof *out->packed);
    if (fwrite(&out->head, sizeof out->head, 1, out->file) != 1 ||
        fwrite(tokens, sizeof *tokens, (size_t)head->tokens, out->file) != (size_t)head->tokens)
        return complain_file(out, "write");
    return EXIT_OK;
}

static int check_head(const logits_file *file)
{
    const logits_head *head = &file->head;
    if (memcmp(head->magic, magic, sizeof magic) != 0)
        return complain("%s is not a file of log probabilities (perplexity --save makes them)", file->path);
    if (head->version != 1 || (head->bits != 16 && head->bits != 32))
        return complain("%s has version %d with %d bits; this program reads version 1 with 16 or 32", file->path,
                        (int)head->version, (int)head->bits);
    if (head->vocabulary < 1 || head->vocabulary > INT32_MAX || head->tokens < 2 || head->tokens > INT32_MAX || head->rows < 1 ||
        head->rows >= head->tokens || head->window < 2 || head->window > INT32_MAX || head->overlap < 1 ||
        head->overlap >= head->window)
        return complain("%s is damaged: its sizes contradict each other", file->path);
    return EXIT_OK;
}

int logits_open(logits_file *out, const char *path)
{
    memset(out, 0, sizeof *out);
    out->path = path;
    out->file = fopen(path, "rb");
    if (!out->file)
        return complain("cannot open %s: %s", path, strerror(errno));
    if (fread(&out->head, sizeof out->head, 1, out->file) != 1)
        return complain_file(out, "read");
    if (check_head(out) != EXIT_OK)
        return EXIT_FAILED;
    out->packed = allocate(out->head.vocabulary, sizeof *out->packed);
    out->tokens = allocate(out->head.tokens, sizeof *out->tokens);
    if (fread(out->tokens, sizeof *out->tokens, (size_t)out->head.tokens, out->file) != (size_t)out->head.tokens)
        return complain_file(out, "read");
    return EXIT_OK;
}

int logits_write(logits_file *file, const float *row)
{
    size_t count = (size_t)file->head.vocabulary;
    if (file->head.bits == 32)
        return fwrite(row, sizeof *row, count, file->file) == count ? EXIT_OK : complain_file(file, "write");
    float range[2] = { row[0], row[0] }; /* highest, step */
    float lowest = row[0];
    for (size_t i = 1; i < count; i++) {
        range[0] = row[i] > range[0] ? row[i] : range[0];
        lowest = row[i] < lowest ? row[i] : lowest;
    }
    if (!(range[0] - lowest <= LOGITS_SPAN))
        lowest = range[0] - LOGITS_SPAN;
    range[1] = (range[0] - lowest) / UINT16_MAX;
    for (size_t i = 0; i < count; i++) {
        float below = range[1] > 0 ? (range[0] - row[i]) / range[1] + 0.5f : 0;
        file->packed[i] = row[i] == range[0] ? 0 : below >= UINT16_MAX ? UINT16_MAX : below < 1 ? 1 : (uint16_t)below;
    }
    if (fwrite(range, sizeof range, 1, file->file) != 1 || fwrite(file->packed, sizeof *file->packed, count, file->file) != count)
        return complain_file(file, "write");
    return EXIT_OK;
}

int logits_read(logits_file *file, float *row)
{
    size_t count = (size_t)file->head.vocabulary;
    float range[2];
    if (file->head.bits == 32)
        return fread(row, sizeof *row, count, file->file) == count ? EXIT_OK : complain_file(file, "read");
    if (fread(range, sizeof range, 1, file->file) != 1 || fread(file->packed, sizeof *file->packed, count, file->file) != count)
        return complain_file(file, "read");
    for (size_t i = 0; i < count; i++)
        row[i] = range[0] - range[1] * file->packed[i];
    return EXIT_OK;
}

int logits_close(logits_file *file)
{
    int failed = file->file && fclose(file->file) != 0;
    free(file->tokens);
    free(file->packed);
    file->file = NULL;
    file->tokens = NULL;
    file->packed = NULL;
    return failed ? complain("cannot write %s: %s", file->path, strerror(errno)) : EXIT_OK;
}
