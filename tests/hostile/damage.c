/* A small sound model cut at each length, or with each bit of its header flipped: each load must fail with a code and a message,
 * or give a model that computes; and nothing may leak.
 *
 *     damage truncate       cuts the header at each length, the data at some
 *     damage flip [N]       flips each bit, or one in N; where the plan fails already, only one in SOME is loaded too
 *     damage write PATH     writes the sound model, for a look at it
 */
#include <fcntl.h>
#include <unistd.h>

#include "hostile.h"
#include "tiny_model.h"

enum { SOME = 23 }; /* has no divisor in common with a byte or a word, so that all bits of fields get their turn */

static char path[] = "/tmp/qwenmoe-damage-XXXXXX";

static void put_byte(int file, size_t at, uint8_t byte)
{
    if (pwrite(file, &byte, 1, (off_t)at) != 1)
        stop("writing", path);
}

static int truncate_all(int file, size_t header, size_t size)
{
    int64_t cuts = 0;
    size_t length = size;
    while (length > 0) { /* a file can be cut shorter and shorter without being written anew */
        length -= length > header + 4096 ? 4093 : 1;
        if (ftruncate(file, (off_t)length) < 0)
            stop("truncating", path);
        if (try_file(path) >= 0) {
            fprintf(stderr, "FAILED: cut at %zu of %zu bytes, and loaded\n", length, size);
            return 1;
        }
        cuts++;
    }
    printf("%lld lengths, each refused\n", (long long)cuts);
    return 0;
}

static int flip_bits(int file, const writer *w, size_t header, size_t step)
{
    int64_t loaded = 0, refused = 0;
    for (size_t bit = 0; bit < 8 * header; bit += step) {
        put_byte(file, bit / 8, w->bytes[bit / 8] ^ (uint8_t)(1 << bit % 8));
        const int32_t planned = try_plan(path), tried = planned == QM_OK || bit % SOME == 0 ? try_file(path) : planned;
        if (planned < 0 && tried >= 0)
            stop("no plan, and yet it loads", qm_error_message());
        if (tried < 0)
            refused++;
        else
            loaded++;
        put_byte(file, bit / 8, w->bytes[bit / 8]);
    }
    printf("%lld flips refused, %lld harmless\n", (long long)refused, (long long)loaded);
    if (try_file(path) < 0)
        stop("the sound model, at the end", qm_error_message());
    return refused > 0 && loaded > 0 ? 0 : 1;
}

int main(int count, char **arguments)
{
    writer w = { 0 };
    const size_t header = tiny_model(&w, NULL);
    const char *verb = count > 1 ? arguments[1] : "";
    if (strcmp(verb, "write") == 0 && count > 2)
        return writer_save(&w, arguments[2]) < 0;
    const int file = mkstemp(path);
    if (file < 0 || writer_save(&w, path) < 0)
        stop("writing", path);
    int failed = 2;
    if (try_file(path) < 0)
        fprintf(stderr, "FAILED: the sound model: %s\n", qm_error_message());
    else if (strcmp(verb, "truncate") == 0)
        failed = truncate_all(file, header, w.size);
    else if (strcmp(verb, "flip") == 0)
        failed = flip_bits(file, &w, header, count > 2 ? (size_t)atoi(arguments[2]) : 1);
    else
        fprintf(stderr, "usage: damage truncate | flip [N] | write PATH\n");
    close(file);
    unlink(path);
    writer_free(&w);
    return failed;
}
