/* UTF-8, character classes and NFC, on utf8proc's data seen through the versions of the reference tokenizer. */
#include "text/unicode.h"

#include <stdbool.h>
#include <string.h>
#include <utf8proc.h>
#include "text/unicode_versions.h"

#define CODE_POINTS 0x110000u
#define EMPTY_PLANES_FROM 0x40000u /* planes 4 to 13 have never had a character ... */
#define EMPTY_PLANES_TO 0xe0000u
#define PRIVATE_PLANES_FROM 0xf0000u /* ... and those from 15 on are for private use: all OTHER, and nothing for NFC */
#define DECOMPOSITION_MAX 18 /* longest of any code point, compatibility ones included (U+FDFA) */
#define MARKS_BY_INSERTION 24 /* longer runs of marks are counted: insertion is quadratic */

/* ---- UTF-8 ---- */

/* Length of the well-formed sequence at `byte`, 0 if there is none. */
static int32_t sequence_length(const uint8_t *byte, int64_t left)
{
    uint8_t lead = byte[0];
    if (lead < 0x80)
        return 1;
    int32_t length = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0 || length > left)
        return 0;
    /* No overlong forms, no surrogates, nothing above U+10FFFF. */
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte[1] < low || byte[1] > high)
        return 0;
    for (int32_t i = 2; i < length; i++) {
        if ((byte[i] & 0xc0) != 0x80)
            return 0;
    }
    return length;
}

/* Offset of the first byte at or after `from` that is not ASCII, `length` if there is none. */
static int64_t skip_ascii(const char *text, int64_t from, int64_t length)
{
    while (length - from >= 8) {
        uint64_t word;
        memcpy(&word, text + from, 8);
        if (word & 0x8080808080808080u)
            break;
        from += 8;
    }
    while (from < length && (uint8_t)text[from] < 0x80)
        from++;
    return from;
}

int64_t qmi_unicode_find_invalid(const char *text, int64_t length)
{
    int64_t at = skip_ascii(text, 0, length);
    while (at < length) {
        int32_t step = sequence_length((const uint8_t *)text + at, length - at);
        if (step == 0)
            return at;
        at += step;
        if (at < length && (uint8_t)text[at] < 0x80)
            at = skip_ascii(text, at, length);
    }
    return -1;
}

int32_t qmi_unicode_encode(uint32_t code_point, char text[4])
{
    if (code_point < 0x80) {
        text[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        text[0] = (char)(0xc0 | code_point >> 6);
        text[1] = (char)(0x80 | (code_point & 0x3f));
        return 2;
    }
    if (code_point < 0x10000) {
        text[0] = (char)(0xe0 | code_point >> 12);
        text[1] = (char)(0x80 | (code_point >> 6 & 0x3f));
        text[2] = (char)(0x80 | (code_point & 0x3f));
        return 3;
    }
    text[0] = (char)(0xf0 | code_point >> 18);
    text[1] = (char)(0x80 | (code_point >> 12 & 0x3f));
    text[2] = (char)(0x80 | (code_point >> 6 & 0x3f));
    text[3] = (char)(0x80 | (code_point & 0x3f));
    return 4;
}

/* ---- properties ---- */

/* The range that holds the code point, NULL if none does. */
static const version_range *find_range(const version_range *ranges, size_t count, uint32_t code_point)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code_point < ranges[middle].first)
            high = middle;
        else if (code_point > ranges[middle].last)
            low = middle + 1;
        else
            return &ranges[middle];
    }
    return NULL;
}

static bool is_inert(uint32_t code_point)
{
    return find_range(inert_ranges, sizeof inert_ranges / sizeof *inert_ranges, code_point) != NULL;
}

/* The property White_Space, which has been stable since Unicode 6.3. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static uint8_t class_of(uint32_t code_point)
{
    if (is_space(code_point))
        return QMI_CLASS_SPACE;
    switch (utf8proc_category((utf8proc_int32_t)code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return QMI_CLASS_LETTER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return QMI_CLASS_MARK;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return QMI_CLASS_NUMBER;
    default:
        return QMI_CLASS_OTHER;
    }
}

static const utf8proc_property_t *property_of(uint32_t code_point)
{
    return utf8proc_get_property((utf8proc_int32_t)code_point);
}

static int32_t combining_class(uint32_t code_point)
{
    return is_inert(code_point) ? 0 : property_of(code_point)->combining_class;
}

/* Hangul decomposes by a formula, and has no entry of its own. */
static bool may_decompose(uint32_t code_point, const utf8proc_property_t *property)
{
    return property->decomp_seqindex != UINT16_MAX || (code_point >= 0xac00 && code_point <= 0xd7a3);
}

/* Full canonical decomposition; returns its length, 1 with the code point itself if it has none. */
static int32_t decompose(uint32_t code_point, int32_t parts[DECOMPOSITION_MAX])
{
    parts[0] = (int32_t)code_point;
    if (!may_decompose(code_point, property_of(code_point)) || is_inert(code_point))
        return 1;
    int boundary = 0;
    utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)code_point, parts, DECOMPOSITION_MAX,
                                                     UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    return count >= 1 && count <= DECOMPOSITION_MAX ? (int32_t)count : 1;
}

/* A page equal to `page`, made if there is none. */
static int32_t add_page(qmi_unicode *unicode, const qmi_alloc *alloc, const uint8_t page[256], uint16_t *index)
{
    for (size_t i = 0; i < unicode->page_count; i++) {
        if (memcmp(unicode->pages[i], page, 256) == 0) {
            *index = (uint16_t)i;
            return QM_OK;
        }
    }
    void *pages = unicode->pages;
    int32_t code = qmi_reserve(alloc, &pages, &unicode->page_capacity, unicode->page_count + 1, 256, "character classes");
    unicode->pages = pages;
    if (code < 0)
        return code;
    memcpy(unicode->pages[unicode->page_count], page, 256);
    *index = (uint16_t)unicode->page_count++;
    return QM_OK;
}

/* One bit a code point: what composes with the code point before it, and what has a decomposition or a combining class. Few
 * have, and all others need no second look. */
typedef struct nfc_sets {
    uint8_t second[CODE_POINTS / 8], special[CODE_POINTS / 8];
} nfc_sets;

static bool is_in(const uint8_t *set, uint32_t code_point)
{
    return set[code_point / 8] >> (code_point % 8) & 1;
}

static void put_in(uint8_t *set, uint32_t code_point)
{
    set[code_point / 8] |= (uint8_t)(1 << code_point % 8);
}

/* Everything but the first part of a decomposition can compose with what is before it. */
static void find_sets(nfc_sets *sets)
{
    int32_t parts[DECOMPOSITION_MAX];
    for (uint32_t c = 0xc0; c < EMPTY_PLANES_FROM; c++) { /* plane 14 has neither decompositions nor combining classes */
        const utf8proc_property_t *property = property_of(c);
        bool decomposes = may_decompose(c, property);
        if (decomposes || property->combining_class)
            put_in(sets->special, c);
        int32_t count = decomposes ? decompose(c, parts) : 1;
        for (int32_t i = 1; i < count; i++)
            put_in(sets->second, (uint32_t)parts[i]);
    }
}

static uint8_t nfc_of(const nfc_sets *sets, uint32_t code_point)
{
    bool second = is_in(sets->second, code_point);
    if (!(second || is_in(sets->special, code_point)) || is_inert(code_point))
        return 0;
    if (second)
        return QMI_NFC_CHANGES;
    int32_t parts[DECOMPOSITION_MAX];
    int32_t count = decompose(code_point, parts);
    if (count == 1 && parts[0] == (int32_t)code_point)
        return combining_class(code_point) ? QMI_NFC_MARK : 0;
    if (is_in(sets->second, (uint32_t)parts[0]))
        return QMI_NFC_CHANGES;
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(parts, count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    return composed == 1 && parts[0] == (int32_t)code_point ? 0 : QMI_NFC_CHANGES;
}

static int32_t fill(qmi_unicode *unicode, const qmi_alloc *alloc, const nfc_sets *sets)
{
    uint8_t page[256];
    const version_range *change = class_changes, *end = change + sizeof class_changes / sizeof *class_changes;
    for (uint32_t first = 0; first < CODE_POINTS; first += 256) {
        if ((first > EMPTY_PLANES_FROM && first < EMPTY_PLANES_TO) || first > PRIVATE_PLANES_FROM) {
            unicode->page_of[first >> 8] = unicode->page_of[(first - 256) >> 8];
            continue;
        }
        for (uint32_t c = first; c < first + 256; c++) {
            while (change < end && change->last < c)
                change++;
            uint8_t class = change < end && change->first <= c ? change->class : class_of(c);
            page[c - first] = (uint8_t)(class | nfc_of(sets, c));
        }
        int32_t code = add_page(unicode, alloc, page, &unicode->page_of[first >> 8]);
        if (code < 0)
            return code;
    }
    return QM_OK;
}

int32_t qmi_unicode_new(const qmi_alloc *alloc, qmi_unicode **out)
{
    *out = NULL;
    int32_t code = QM_ERROR_MEMORY;
    nfc_sets *sets = qmi_new(alloc, 1, sizeof *sets, "character classes");
    qmi_unicode *unicode = qmi_new(alloc, 1, sizeof *unicode, "character classes");
    if (sets && unicode) {
        find_sets(sets);
        code = fill(unicode, alloc, sets);
    }
    qmi_delete(alloc, sets);
    if (code < 0)
        qmi_unicode_free(alloc, &unicode);
    *out = unicode;
    return code;
}

void qmi_unicode_free(const qmi_alloc *alloc, qmi_unicode **unicode)
{
    if (!*unicode)
        return;
    qmi_delete(alloc, (*unicode)->pages);
    qmi_delete(alloc, *unicode);
    *unicode = NULL;
}

/* ---- NFC ---- */

static int32_t append_text(qmi_nfc *work, const qmi_alloc *alloc, const char *text, size_t length)
{
    if (length == 0)
        return QM_OK;
    void *array = work->text;
    int32_t code = qmi_reserve(alloc, &array, &work->capacity, work->length + length, 1, "normalised text");
    work->text = array;
    if (code < 0)
        return code;
    memcpy(work->text + work->length, text, length);
    work->length += length;
    return QM_OK;
}

/* Sorts a run of marks by combining class, equal ones in their order (UAX 15, canonical ordering). */
static int32_t sort_marks(int32_t *marks, size_t count, const qmi_alloc *alloc, qmi_nfc *work)
{
    if (count <= MARKS_BY_INSERTION) {
        for (size_t i = 1; i < count; i++) {
            int32_t mark = marks[i], class = combining_class((uint32_t)mark);
            size_t to = i;
            for (; to > 0 && combining_class((uint32_t)marks[to - 1]) > class; to--)
                marks[to] = marks[to - 1];
            marks[to] = mark;
        }
        return QM_OK;
    }
    void *array = work->order;
    int32_t code = qmi_reserve(alloc, &array, &work->order_capacity, count, sizeof *work->order, "normalised text");
    work->order = array;
    if (code < 0)
        return code;
    size_t start[257] = { 0 }; /* of each class in the sorted run */
    for (size_t i = 0; i < count; i++)
        start[combining_class((uint32_t)marks[i]) + 1]++;
    for (size_t class = 1; class < 257; class++)
        start[class] += start[class - 1];
    for (size_t i = 0; i < count; i++)
        work->order[start[combining_class((uint32_t)marks[i])]++] = marks[i];
    memcpy(marks, work->order, count * sizeof *marks);
    return QM_OK;
}

static int32_t order_marks(const qmi_alloc *alloc, qmi_nfc *work)
{
    size_t count = work->code_point_count;
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && combining_class((uint32_t)work->code_points[end]) != 0)
            end++;
        if (end - i > 1) {
            int32_t code = sort_marks(work->code_points + i, end - i, alloc, work);
            if (code < 0)
                return code;
        }
        i = end + 1;
    }
    return QM_OK;
}

/* Appends NFC(text) to work->text. The text is a run that nothing outside can compose with or move into. */
static int32_t normalise_run(const char *text, int64_t length, const qmi_alloc *alloc, qmi_nfc *work)
{
    work->code_point_count = 0;
    for (int64_t at = 0; at < length;) {
        int32_t step, parts[DECOMPOSITION_MAX];
        int32_t count = decompose(qmi_unicode_decode(text + at, &step), parts);
        void *array = work->code_points;
        int32_t code = qmi_reserve(alloc, &array, &work->code_point_capacity, work->code_point_count + (size_t)count,
                                   sizeof *work->code_points, "normalised text");
        work->code_points = array;
        if (code < 0)
            return code;
        memcpy(work->code_points + work->code_point_count, parts, (size_t)count * sizeof *parts);
        work->code_point_count += (size_t)count;
        at += step;
    }
    int32_t code = order_marks(alloc, work);
    if (code < 0)
        return code;
    utf8proc_ssize_t count = utf8proc_normalize_utf32(work->code_points, (utf8proc_ssize_t)work->code_point_count,
                                                      UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        char bytes[4];
        code = append_text(work, alloc, bytes, (size_t)qmi_unicode_encode((uint32_t)work->code_points[i], bytes));
        if (code < 0)
            return code;
    }
    return QM_OK;
}

/* A place where NFC may have to change something: a run of flagged code points and the one before them. */
typedef struct nfc_run {
    int64_t start, end;
    bool changes;
} nfc_run;

/* The next run at or after `from` (a boundary); false if there is none. */
static bool next_run(const qmi_unicode *unicode, const char *text, int64_t length, int64_t from, nfc_run *run)
{
    int64_t at = from, base = from; /* base: the last code point that was not flagged */
    uint32_t base_code_point = 0;
    int32_t step = 0;
    uint8_t flags = 0;
    while (at < length) {
        if ((uint8_t)text[at] < 0x80) {
            at = skip_ascii(text, at, length);
            base = at - 1;
            base_code_point = 0;
            continue;
        }
        uint32_t c = qmi_unicode_decode(text + at, &step);
        flags = qmi_unicode_properties(unicode, c) & (QMI_NFC_MARK | QMI_NFC_CHANGES);
        if (flags)
            break;
        base = at;
        base_code_point = c;
        at += step;
    }
    if (at >= length)
        return false;
    run->start = is_inert(base_code_point) ? at : base;
    run->changes = false;
    int32_t last_class = 0;
    while (flags) {
        int32_t class = flags & QMI_NFC_CHANGES ? 0 : combining_class(qmi_unicode_decode(text + at, &step));
        run->changes |= flags & QMI_NFC_CHANGES || class < last_class;
        last_class = class;
        at += step;
        if (at >= length)
            break;
        flags = qmi_unicode_properties(unicode, qmi_unicode_decode(text + at, &step)) & (QMI_NFC_MARK | QMI_NFC_CHANGES);
    }
    run->end = at;
    return true;
}

int32_t qmi_unicode_nfc(const qmi_unicode *unicode, const char *text, int64_t length, const qmi_alloc *alloc, qmi_nfc *work,
                        const char **result, int64_t *result_length)
{
    nfc_run run = { 0, 0, false };
    int64_t copied = 0;
    work->length = 0;
    while (next_run(unicode, text, length, run.end, &run)) {
        if (!run.changes)
            continue;
        int32_t code = append_text(work, alloc, text + copied, (size_t)(run.start - copied));
        if (code == QM_OK)
            code = normalise_run(text + run.start, run.end - run.start, alloc, work);
        if (code < 0)
            return code;
        copied = run.end;
    }
    *result = text;
    *result_length = length;
    if (copied == 0)
        return QM_OK;
    int32_t code = append_text(work, alloc, text + copied, (size_t)(length - copied));
    *result = work->text;
    *result_length = (int64_t)work->length;
    return code;
}

void qmi_nfc_clear(const qmi_alloc *alloc, qmi_nfc *work)
{
    qmi_delete(alloc, work->text);
    qmi_delete(alloc, work->code_points);
    qmi_delete(alloc, work->order);
    memset(work, 0, sizeof *work);
}
