/* cuda/cuda_upload.cu on the emulator: whatever the type, the size of pieces and the number of readers, the card then holds what
 * the host's re-ordering gives (which test_cuda_layout checks against the formats). Every failure is an error and leaves nothing
 * behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <unistd.h>
#include "cuda_upload.h"

#define FRESH 0xFF /* what the emulator's memory holds at first */
#define MATRICES 60

typedef struct matrix {
    uint32_t type;
    int64_t columns, rows, bytes, at; /* at: in the file */
    qmi_cuda_planes planes;
    uint8_t *expected, *card;
} matrix;

typedef struct scene {
    matrix matrices[MATRICES];
    int count;
    int64_t bytes;
    char path[64];
    uint8_t *data; /* what the file holds */
    qmi_os_map map;
    size_t before; /* bytes of the card in use */
} scene;

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint8_t random_byte(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(seed >> 56);
}

static bool is_weight(uint32_t type)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    return format && format->unpack;
}

static void add_matrix(scene *s, uint32_t type, int64_t columns, int64_t rows)
{
    assert_true(s->count < MATRICES);
    matrix *m = &s->matrices[s->count++];
    m->type = type;
    m->columns = columns;
    m->rows = rows;
    m->bytes = rows * qmi_quant_row_bytes(type, columns);
    m->at = s->bytes;
    s->bytes += m->bytes;
    qmi_cuda_planes_of(qmi_cuda_type(type), columns, rows, &m->planes);
}

static void write_scene(scene *s)
{
    s->before = emulator_allocated();
    s->data = (uint8_t *)malloc((size_t)s->bytes);
    for (int64_t i = 0; i < s->bytes; i++)
        s->data[i] = random_byte();
    strcpy(s->path, "/tmp/qwenmoe-test-upload-XXXXXX");
    const int file = mkstemp(s->path);
    assert_true(file >= 0);
    assert_int_equal(write(file, s->data, (size_t)s->bytes), s->bytes);
    close(file);
    assert_int_equal(qmi_os_map_open(s->path, &s->map), QM_OK);
    for (int i = 0; i < s->count; i++) {
        matrix *m = &s->matrices[i];
        m->expected = (uint8_t *)aligned_alloc(QMI_CUDA_PLANE_ALIGN, (size_t)m->planes.bytes);
        memset(m->expected, FRESH, (size_t)m->planes.bytes);
        qmi_cuda_reorder(m->type, m->columns, s->data + m->at, 0, m->rows, &m->planes, m->expected);
        assert_int_equal(cudaMalloc(&m->card, (size_t)m->planes.bytes), cudaSuccess);
    }
}

/* Every type; rows of one block and of many; columns that are no whole blocks where that may be. */
static scene *scene_new(void)
{
    scene *s = (scene *)calloc(1, sizeof *s);
    for (uint32_t type = 0; type < QMI_TYPE_COUNT; type++) {
        if (!is_weight(type))
            continue;
        const int block = qmi_quant_format_of(type)->block;
        add_matrix(s, type, block == 256 ? 256 : 32, 37);
        add_matrix(s, type, block == 1 ? 77 : 768, 9);
    }
    write_scene(s);
    return s;
}

static scene *scene_small(void)
{
    scene *s = (scene *)calloc(1, sizeof *s);
    add_matrix(s, QMI_TYPE_Q4_K, 512, 6);
    add_matrix(s, QMI_TYPE_IQ3_S, 256, 5);
    add_matrix(s, QMI_TYPE_F16, 64, 8);
    write_scene(s);
    return s;
}

static void scene_free(scene *s)
{
    for (int i = 0; i < s->count; i++) {
        free(s->matrices[i].expected);
        cudaFree(s->matrices[i].card);
    }
    assert_int_equal(emulator_allocated(), s->before);
    free(s->data);
    qmi_os_map_close(&s->map);
    unlink(s->path);
    free(s);
}

static cuda_upload_settings settings_of(const scene *s, int32_t threads, int64_t piece, bool from_file)
{
    cuda_upload_settings settings = {};
    settings.threads = threads;
    settings.piece = piece;
    if (from_file) {
        settings.maps = &s->map;
        settings.map_count = 1;
    }
    return settings;
}

/* Adds all; the data of the map, or that of the heap for settings without maps. */
static int32_t add_all(const scene *s, cuda_uploader *uploader, const cuda_upload_settings *settings)
{
    int32_t code = QM_OK;
    for (int i = 0; i < s->count && code >= 0; i++) {
        const matrix *m = &s->matrices[i];
        const uint8_t *data = (settings->map_count ? s->map.data : s->data) + m->at;
        code = cuda_uploader_add(uploader, data, m->type, m->columns, m->rows, m->card);
    }
    return code;
}

static int32_t upload(const scene *s, const cuda_upload_settings *settings)
{
    cuda_uploader *uploader;
    int32_t code = cuda_uploader_new(settings, &uploader);
    if (code < 0) {
        assert_null(uploader);
        return code;
    }
    code = add_all(s, uploader, settings);
    if (code < 0) {
        cuda_uploader_abandon(&uploader);
        assert_null(uploader);
        return code;
    }
    code = cuda_uploader_finish(&uploader, NULL, NULL, NULL);
    assert_null(uploader);
    return code;
}

static void check_card(const scene *s)
{
    for (int i = 0; i < s->count; i++) {
        const matrix *m = &s->matrices[i];
        uint8_t *got = (uint8_t *)malloc((size_t)m->planes.bytes);
        assert_int_equal(cudaMemcpy(got, m->card, (size_t)m->planes.bytes, cudaMemcpyDeviceToHost), cudaSuccess);
        for (int64_t at = 0; at < m->planes.bytes; at++)
            if (got[at] != m->expected[at])
                fail_msg("%s, %lld columns: byte %lld of %lld is %02x, not %02x", qmi_quant_format_of(m->type)->name,
                         (long long)m->columns, (long long)at, (long long)m->planes.bytes, got[at], m->expected[at]);
        free(got);
    }
}

static void check_upload(int32_t threads, int64_t piece, bool from_file)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, threads, piece, from_file);
    assert_int_equal(upload(s, &settings), QM_OK);
    check_card(s);
    scene_free(s);
}

static void test_one_reader_whole_matrices(void **) { check_upload(1, 0, true); }
static void test_readers_of_its_own_choice(void **) { check_upload(0, 0, true); }
static void test_pieces_of_a_row(void **) { check_upload(3, 1, true); } /* every row is larger than a piece */
static void test_pieces_of_some_rows(void **) { check_upload(5, 2000, true); }
static void test_many_readers(void **) { check_upload(CUDA_UPLOAD_THREADS_MAX, 777, true); }
static void test_from_memory(void **) { check_upload(4, 3000, false); }

static void test_nothing_to_do(void **)
{
    const size_t before = emulator_allocated();
    const cuda_upload_settings settings = {};
    cuda_uploader *uploader = NULL;
    int32_t unused = 0;
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, NULL), QM_OK);
    cuda_uploader_abandon(&uploader);
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(cuda_uploader_add(uploader, NULL, QMI_TYPE_F32, 32, 0, NULL), QM_OK);
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, &unused), QM_OK);
    assert_null(uploader);
    assert_int_equal(emulator_allocated(), before);
}

/* Adds while readers wait for more, and while they work. */
static void test_matrices_come_late(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 4, 500, true);
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    for (int i = 0; i < s->count; i++) {
        const matrix *m = &s->matrices[i];
        assert_int_equal(cuda_uploader_add(uploader, s->map.data + m->at, m->type, m->columns, m->rows, m->card), QM_OK);
        usleep(i % 3 ? 0 : 2000);
    }
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, NULL), QM_OK);
    check_card(s);
    scene_free(s);
}

/* ---- rows that are asked for ---- */

typedef struct rows {
    const scene *of;
    const matrix *rows_of;
} rows;

EMULATOR_UNSEEN static int32_t read_rows(const void *user, int64_t first, int64_t count, void *to)
{
    const rows *r = (const rows *)user;
    const int64_t bytes = r->rows_of->bytes / r->rows_of->rows;
    assert_true(first >= 0 && count > 0 && first + count <= r->rows_of->rows);
    memcpy(to, r->of->data + r->rows_of->at + first * bytes, (size_t)(count * bytes));
    return QM_OK;
}

EMULATOR_UNSEEN static int32_t read_none(const void *, int64_t, int64_t, void *)
{
    return qmi_fail(QM_ERROR_FILE, "no rows");
}

static void test_rows_are_asked_for(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 3, 1000, false);
    rows all[MATRICES];
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    for (int i = 0; i < s->count; i++) {
        const matrix *m = &s->matrices[i];
        all[i].of = s;
        all[i].rows_of = m;
        const qmi_row_source source = { read_rows, &all[i] };
        assert_int_equal(cuda_uploader_add_rows(uploader, &source, m->type, m->columns, m->rows, m->card), QM_OK);
    }
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, NULL), QM_OK);
    check_card(s);
    scene_free(s);
}

static void test_rows_do_not_come(void **)
{
    scene *s = scene_small();
    const cuda_upload_settings settings = settings_of(s, 2, 1000, false);
    const matrix *m = &s->matrices[0];
    const qmi_row_source source = { read_none, NULL };
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(cuda_uploader_add_rows(uploader, &source, m->type, m->columns, m->rows, m->card), QM_OK);
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, NULL), QM_ERROR_FILE);
    assert_string_equal(qmi_error_text(), "no rows");
    scene_free(s);
}

/* ---- progress, cancel ---- */

typedef struct watch {
    int calls, cancel_at; /* call that cancels; 0: none */
    int64_t done, total;
} watch;

static int32_t on_progress(const char *stage, int64_t done, int64_t total, void *user)
{
    watch *w = (watch *)user;
    assert_string_equal(stage, "load");
    assert_true(done >= w->done && done <= total);
    w->done = done;
    w->total = total;
    return ++w->calls == w->cancel_at;
}

static void test_progress_ends_with_all(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 2, 1000, true);
    watch w = {};
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(add_all(s, uploader, &settings), QM_OK);
    assert_int_equal(cuda_uploader_finish(&uploader, on_progress, &w, NULL), QM_OK);
    assert_int_equal(w.done, s->bytes);
    assert_int_equal(w.total, s->bytes);
    scene_free(s);
}

static void test_progress_cancels(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 2, 1000, true);
    watch w = {};
    cuda_uploader *uploader;
    w.cancel_at = 1;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(add_all(s, uploader, &settings), QM_OK);
    assert_int_equal(cuda_uploader_finish(&uploader, on_progress, &w, NULL), QM_ERROR_CANCELLED);
    assert_int_equal(w.calls, 1);
    assert_non_null(strstr(qmi_error_text(), "cancelled"));
    scene_free(s);
}

static void test_word_cancels(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 2, 1000, true);
    const int32_t cancel = 1;
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(add_all(s, uploader, &settings), QM_OK);
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, &cancel), QM_ERROR_CANCELLED);
    scene_free(s);
}

static void test_abandoned(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 3, 1000, true);
    cuda_uploader *uploader;
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    assert_int_equal(add_all(s, uploader, &settings), QM_OK);
    cuda_uploader_abandon(&uploader);
    assert_null(uploader);
    scene_free(s);
}

/* ---- failures ---- */

static void test_file_was_cut(void **)
{
    scene *s = scene_new();
    const cuda_upload_settings settings = settings_of(s, 3, 1000, true);
    assert_int_equal(truncate(s->path, s->bytes / 2), 0);
    assert_int_equal(upload(s, &settings), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), "cut"));
    scene_free(s);
}

/* A failure of a reader is known to the next `add` that comes after it. */
static void test_add_fails_after_a_failure(void **)
{
    scene *s = scene_small();
    cuda_upload_settings settings = settings_of(s, 1, 1000, true);
    const matrix *m = &s->matrices[0];
    cuda_uploader *uploader;
    int32_t code = QM_OK;
    settings.device = 1; /* there is only card 0 */
    assert_int_equal(cuda_uploader_new(&settings, &uploader), QM_OK);
    while (code >= 0)
        code = cuda_uploader_add(uploader, s->map.data, m->type, m->columns, m->rows, m->card);
    assert_int_equal(code, QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "choosing the card"));
    assert_int_equal(cuda_uploader_finish(&uploader, NULL, NULL, NULL), QM_ERROR_DEVICE);
    assert_non_null(strstr(qmi_error_text(), "choosing the card"));
    scene_free(s);
}

/* Each call of the runtime fails once, each allocation too. */
static void check_failures(int32_t threads, bool allocations)
{
    scene *s = scene_small();
    const cuda_upload_settings settings = settings_of(s, threads, 700, true);
    int64_t n = 0;
    int32_t code;
    do {
        n++;
        emulator_fail(allocations ? n : 0, allocations ? 0 : n);
        code = upload(s, &settings);
        emulator_fail(0, 0);
        if (code < 0) {
            assert_int_equal(code, allocations ? QM_ERROR_MEMORY : QM_ERROR_DEVICE);
            assert_non_null(strstr(qmi_error_text(), "cannot upload the weights: "));
        }
    } while (code < 0);
    assert_true(n > (allocations ? 3 : 30));
    check_card(s);
    scene_free(s);
}

static void test_every_call_fails(void **) { check_failures(1, false); }
static void test_every_call_fails_among_readers(void **) { check_failures(3, false); }
static void test_every_allocation_of_the_card_fails(void **) { check_failures(1, true); }

static int until_failure, living;

static void *allocate(int64_t size, int64_t alignment, void *)
{
    if (until_failure-- == 0)
        return NULL;
    living++;
    return aligned_alloc((size_t)alignment, (size_t)((size + alignment - 1) / alignment * alignment));
}

static void release(void *pointer, void *)
{
    living -= pointer ? 1 : 0;
    free(pointer);
}

static void test_every_allocation_of_the_host_fails(void **)
{
    scene *s = scene_new();
    cuda_upload_settings settings = settings_of(s, 2, 0, true);
    int n = 0;
    settings.alloc.allocate = allocate;
    settings.alloc.release = release;
    for (;; n++) {
        until_failure = n;
        const int32_t code = upload(s, &settings);
        assert_int_equal(living, 0);
        if (code >= 0)
            break;
        assert_int_equal(code, QM_ERROR_MEMORY);
    }
    assert_true(n >= 3); /* the uploader, and its list that grows */
    check_card(s);
    scene_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_reader_whole_matrices),
        cmocka_unit_test(test_readers_of_its_own_choice),
        cmocka_unit_test(test_pieces_of_a_row),
        cmocka_unit_test(test_pieces_of_some_rows),
        cmocka_unit_test(test_many_readers),
        cmocka_unit_test(test_from_memory),
        cmocka_unit_test(test_rows_are_asked_for),
        cmocka_unit_test(test_rows_do_not_come),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_matrices_come_late),
        cmocka_unit_test(test_progress_ends_with_all),
        cmocka_unit_test(test_progress_cancels),
        cmocka_unit_test(test_word_cancels),
        cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_file_was_cut),
        cmocka_unit_test(test_add_fails_after_a_failure),
        cmocka_unit_test(test_every_call_fails),
        cmocka_unit_test(test_every_call_fails_among_readers),
        cmocka_unit_test(test_every_allocation_of_the_card_fails),
        cmocka_unit_test(test_every_allocation_of_the_host_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
