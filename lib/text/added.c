/* The matcher of added tokens: a sorted array searched byte by byte. */
#include "text/added.h"

#include <string.h>

/* By text (a prefix before what it begins), then by token. */
static int32_t compare(const qmi_added_token *a, const qmi_added_token *b)
{
    int32_t order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    if (order)
        return order;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

int32_t qmi_added_append(qmi_added *added, qmi_added_token token, const qmi_alloc *alloc)
{
    void *array = added->tokens;
    int32_t code = qmi_reserve(alloc, &array, &added->capacity, added->count + 1, sizeof *added->tokens, "added tokens");
    added->tokens = array;
    if (code < 0)
        return code;
    added->tokens[added->count++] = token;
    added->starts[(uint8_t)token.text[0]] = true;
    return QM_OK;
}

/* Heap sort's step: lets tokens[at] sink among the first `count`. */
static void sink(qmi_added_token *tokens, size_t at, size_t count)
{
    qmi_added_token token = tokens[at];
    for (size_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && compare(&tokens[child], &tokens[child + 1]) < 0)
            child++;
        if (compare(&token, &tokens[child]) >= 0)
            break;
        tokens[at] = tokens[child];
        at = child;
    }
    tokens[at] = token;
}

static bool same_text(const qmi_added_token *a, const qmi_added_token *b)
{
    return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
}

/* Heap sort: in place, and n log n for any file. */
void qmi_added_sort(qmi_added *added)
{
    qmi_added_token *tokens = added->tokens;
    for (size_t at = added->count / 2; at-- > 0;)
        sink(tokens, at, added->count);
    for (size_t count = added->count; count > 1; count--) {
        qmi_added_token largest = tokens[0];
        tokens[0] = tokens[count - 1];
        tokens[count - 1] = largest;
        sink(tokens, 0, count - 1);
    }
    size_t kept = 0;
    for (size_t i = 0; i < added->count; i++) {
        if (kept == 0 || !same_text(&tokens[kept - 1], &tokens[i]))
            tokens[kept++] = tokens[i];
    }
    added->count = kept;
}

void qmi_added_clear(qmi_added *added, const qmi_alloc *alloc)
{
    qmi_delete(alloc, added->tokens);
    memset(added, 0, sizeof *added);
}

/* First of tokens[low .. high), which share their first `depth` bytes and are longer, with at least `byte` at `depth`. */
static size_t first_from(const qmi_added_token *tokens, size_t low, size_t high, uint32_t depth, uint32_t byte)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((uint8_t)tokens[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that `text` begins with, NULL if none does. */
static const qmi_added_token *longest(const qmi_added *added, bool user_only, const char *text, int64_t length)
{
    const qmi_added_token *tokens = added->tokens, *best = NULL;
    size_t low = 0, high = added->count;
    for (uint32_t depth = 0; depth < length; depth++) {
        uint8_t byte = (uint8_t)text[depth];
        low = first_from(tokens, low, high, depth, byte);
        high = first_from(tokens, low, high, depth, byte + 1u);
        if (low == high)
            break;
        if (tokens[low].length == depth + 1) { /* the prefix itself comes first; the rest is longer */
            if (!user_only || tokens[low].user_defined)
                best = &tokens[low];
            low++;
        }
    }
    return best;
}

bool qmi_added_next(const qmi_added *added, int32_t special, const char *text, int64_t length, const qmi_stretches *literal,
                    int64_t from, qmi_added_match *match)
{
    size_t next = 0; /* stretch that does not end before `at` */
    if (special == QM_SPECIAL_NONE || added->count == 0)
        return false;
    for (int64_t at = from; at < length; at++) {
        while (literal && next < literal->count && literal->data[next].end <= at)
            next++;
        bool bounded = literal && next < literal->count;
        if (bounded && literal->data[next].start <= at) {
            at = literal->data[next].end - 1;
            continue;
        }
        if (!added->starts[(uint8_t)text[at]])
            continue;
        int64_t end = bounded ? literal->data[next].start : length;
        const qmi_added_token *found = longest(added, special == QM_SPECIAL_USER, text + at, end - at);
        if (found) {
            *match = (qmi_added_match){ at, at + found->length, found->token };
            return true;
        }
    }
    return false;
}

int32_t qmi_added_find(const qmi_added *added, const char *text, int64_t length)
{
    const qmi_added_token *found = length > 0 ? longest(added, false, text, length) : NULL;
    return found && found->length == length ? found->token : -1;
}
