/* The linear correction of keys of q2: see key_correction.h. */
#include "memory/key_correction.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include "base/checksum.h"
#include "base/error.h"
#include "base/os.h"
#include "quant/kv_type.h"

#define SUM_BYTES 4
#define RIDGE 1e-3   /* of the mean of a diagonal: what a text does not show is taken to be small, not absent */
#define SWEEPS 12    /* of Jacobi's method, which doubles the digits in each of the last */

qmi_key_head qmi_key_head_of(const qmi_hparams *hparams, uint64_t model)
{
    qmi_key_head head = { .version = QMI_KEY_VERSION, .layers = (uint32_t)hparams->attention_layers,
                          .kv_heads = (uint32_t)hparams->kv_heads, .head_size = (uint32_t)hparams->head_size, .model = model };
    memcpy(head.magic, QMI_KEY_MAGIC, sizeof head.magic);
    return head;
}

int64_t qmi_key_floats(const qmi_key_head *head)
{
    return 2 * (int64_t)head->layers * head->kv_heads * head->head_size * head->head_size;
}

/* ---- reading ---- */

static int32_t check_head(const qmi_key_head *head, const qmi_key_head *expected)
{
    if (memcmp(head->magic, expected->magic, sizeof head->magic) != 0)
        return qmi_fail(QM_ERROR_FORMAT, "it is not the correction of a model's keys");
    if (head->version != expected->version)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "it is of version %" PRIu32 "; this library reads version %d", head->version,
                        QMI_KEY_VERSION);
    if (head->model != expected->model)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "it was fitted for another model; fit one for this file");
    if (head->layers != expected->layers || head->kv_heads != expected->kv_heads || head->head_size != expected->head_size)
        return qmi_fail(QM_ERROR_FORMAT, "its keys are not those of the model: %" PRIu32 " layers of %" PRIu32 " heads of %" PRIu32
                        " numbers, and here %" PRIu32 " of %" PRIu32 " of %" PRIu32, head->layers, head->kv_heads, head->head_size,
                        expected->layers, expected->kv_heads, expected->head_size);
    return QM_OK;
}

/* Size and head, before anything is allocated. */
static int32_t check_start(const qmi_os_map *map, const qmi_key_head *expected)
{
    qmi_key_head head;
    int64_t wanted = (int64_t)sizeof head + qmi_key_floats(expected) * (int64_t)sizeof(float) + SUM_BYTES;
    if (map->size < (int64_t)sizeof head)
        return qmi_fail(QM_ERROR_FORMAT, "it has %" PRId64 " bytes, too few for a correction of keys", map->size);
    int32_t code = qmi_os_map_read(map, 0, &head, sizeof head);
    if (code >= 0)
        code = check_head(&head, expected);
    if (code >= 0 && map->size != wanted)
        code = qmi_fail(QM_ERROR_FORMAT, "it has %" PRId64 " bytes, and should have %" PRId64, map->size, wanted);
    return code;
}

/* The floats behind the head, which is the expected one. */
static int32_t read_floats(const qmi_os_map *map, const qmi_key_head *expected, float *to)
{
    qmi_crc crc;
    uint32_t sum;
    int64_t count = qmi_key_floats(expected), bytes = count * (int64_t)sizeof *to;
    int32_t code = qmi_os_map_read(map, sizeof *expected, to, bytes);
    if (code >= 0)
        code = qmi_os_map_read(map, (int64_t)sizeof *expected + bytes, &sum, SUM_BYTES);
    if (code < 0)
        return code;
    qmi_crc_start(&crc);
    if (sum != qmi_crc_add(&crc, qmi_crc_add(&crc, 0, expected, sizeof *expected), to, (size_t)bytes))
        return qmi_fail(QM_ERROR_FORMAT, "it is damaged: its checksum is wrong");
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(to[i]))
            return qmi_fail(QM_ERROR_FORMAT, "its number %" PRId64 " is not finite", i);
    return QM_OK;
}

int32_t qmi_key_correction_read(const char *path, const qmi_key_head *expected, const qmi_alloc *alloc, float **out)
{
    qmi_os_map map;
    *out = NULL;
    int32_t code = qmi_os_map_open(path, &map);
    if (code < 0)
        return code;
    code = check_start(&map, expected);
    if (code >= 0) {
        *out = qmi_new(alloc, (size_t)qmi_key_floats(expected), sizeof **out, "a correction of keys");
        code = *out ? read_floats(&map, expected, *out) : QM_ERROR_MEMORY;
    }
    qmi_os_map_close(&map);
    if (code >= 0)
        return code;
    qmi_delete(alloc, *out);
    *out = NULL;
    return qmi_fail_within(code, path);
}

/* ---- fitting: matrices are [n][n], row by row ---- */

static double trace_of(const double *a, int32_t n)
{
    double trace = 0;
    for (int32_t i = 0; i < n; i++)
        trace += a[(int64_t)i * n + i];
    return trace;
}

static void add_ridge(double *a, int32_t n)
{
    double ridge = RIDGE * trace_of(a, n) / n;
    for (int32_t i = 0; i < n; i++)
        a[(int64_t)i * n + i] += ridge;
}

/* L of a symmetric positive definite matrix L L^T (Cholesky), in its place, zeros above. */
static void factor(double *a, int32_t n)
{
    for (int32_t j = 0; j < n; j++)
        for (int32_t i = 0; i < n; i++) {
            double sum = a[(int64_t)i * n + j];
            for (int32_t k = 0; k < j && i >= j; k++)
                sum -= a[(int64_t)i * n + k] * a[(int64_t)j * n + k];
            a[(int64_t)i * n + j] = i < j ? 0 : i == j ? sqrt(sum) : sum / a[(int64_t)j * n + j];
        }
}

/* to = L^T a L; work: as large. */
static void congruence(const double *l, const double *a, double *to, double *work, int32_t n)
{
    memset(work, 0, (size_t)n * (size_t)n * sizeof *work);
    memset(to, 0, (size_t)n * (size_t)n * sizeof *to);
    for (int32_t i = 0; i < n; i++)
        for (int32_t k = 0; k < n; k++)
            for (int32_t j = 0; j < n; j++)
                work[(int64_t)i * n + j] += a[(int64_t)i * n + k] * l[(int64_t)k * n + j];
    for (int32_t k = 0; k < n; k++)
        for (int32_t i = 0; i < n; i++)
            for (int32_t j = 0; j < n; j++)
                to[(int64_t)i * n + j] += l[(int64_t)k * n + i] * work[(int64_t)k * n + j];
}

/* Turns rows p and q of a matrix by the angle whose cosine and sine these are. */
static void turn(double *a, int32_t n, int32_t p, int32_t q, double c, double s)
{
    double *x = a + (int64_t)p * n, *y = a + (int64_t)q * n;
    for (int32_t i = 0; i < n; i++) {
        double was = x[i];
        x[i] = c * was - s * y[i];
        y[i] = s * was + c * y[i];
    }
}

/* The eigenvalues of a symmetric matrix on its diagonal, and its eigenvectors as the rows of u: Jacobi's method, by rows (Golub
 * and Van Loan, Matrix Computations, section 8.5). */
static void diagonalize(double *a, double *u, int32_t n)
{
    for (int64_t i = 0; i < (int64_t)n * n; i++)
        u[i] = i % (n + 1) == 0;
    for (int32_t sweep = 0; sweep < SWEEPS; sweep++)
        for (int32_t p = 0; p < n; p++)
            for (int32_t q = p + 1; q < n; q++) {
                double apq = a[(int64_t)p * n + q], app = a[(int64_t)p * n + p], aqq = a[(int64_t)q * n + q];
                if (!(fabs(apq) > 1e-14 * sqrt(fabs(app * aqq))))
                    continue;
                double tau = (aqq - app) / (2 * apq), t = (tau >= 0 ? 1 : -1) / (fabs(tau) + sqrt(1 + tau * tau));
                double c = 1 / sqrt(1 + t * t), s = t * c;
                turn(a, n, p, q, c, s);
                for (int32_t i = 0; i < n; i++) { /* and the columns */
                    double *row = a + (int64_t)i * n, was = row[p];
                    row[p] = c * was - s * row[q];
                    row[q] = s * was + c * row[q];
                }
                turn(u, n, p, q, c, s);
            }
}

/* Hadamard's matrix times a: each column is spread over the rows, in runs as a head is (kv_type.h). */
static void spread_rows(double *a, int32_t n)
{
    int32_t run = qmi_kv_rotation(n);
    double factor = 1 / sqrt((double)run);
    for (int32_t r = 0; r < n; r++)
        for (int32_t i = 0; i < n; i++)
            a[(int64_t)r * n + i] *= qmi_kv_sign((uint32_t)(r % run)) ? -factor : factor;
    for (int32_t apart = 1; apart < run; apart *= 2)
        for (int32_t r = 0; r < n; r++)
            for (int32_t i = 0; i < n && !(r % run & apart); i++) {
                double *x = a + (int64_t)r * n + i, *y = x + (int64_t)apart * n, sum = *x + *y;
                *y = *x - *y;
                *x = sum;
            }
}

/* T and T^-T from K and Q. work: [4][n][n]. */
static int32_t fit_head(const double *moments, int32_t n, double *work, float *out)
{
    int64_t size = (int64_t)n * n;
    double *k = work, *m = k + size, *u = m + size, *q = u + size, sum = 0, keys = trace_of(moments, n);
    if (keys == 0)
        return qmi_fail(QM_ERROR_STATE, "no keys were packed since the model was loaded, so there is nothing to fit a correction to; "
                        "compute a text that is longer than kv-window");
    memcpy(k, moments, (size_t)size * sizeof *k);
    memcpy(q, moments + size, (size_t)size * sizeof *q);
    add_ridge(k, n);
    add_ridge(q, n);
    factor(k, n);
    congruence(k, q, m, u, n);
    diagonalize(m, u, n);
    /* Row c of T is m_c^1/4 (L^-T u_c)^T, by substitution from behind; of T^-T, m_c^-1/4 (L u_c)^T. */
    double *t = q, *inverse = u;
    for (int32_t c = 0; c < n; c++) {
        double root = sqrt(m[(int64_t)c * n + c]), *row = t + (int64_t)c * n, *vector = u + (int64_t)c * n;
        sum += root;
        for (int32_t i = n - 1; i >= 0; i--) {
            double x = vector[i];
            for (int32_t j = i + 1; j < n; j++)
                x -= k[(int64_t)j * n + i] * row[j];
            row[i] = x / k[(int64_t)i * n + i];
        }
        for (int32_t i = n - 1; i >= 0; i--) {
            double x = 0;
            for (int32_t j = 0; j <= i; j++)
                x += k[(int64_t)i * n + j] * vector[j];
            vector[i] = x / sqrt(root);
        }
        for (int32_t i = 0; i < n; i++)
            row[i] *= sqrt(root);
    }
    spread_rows(t, n);
    spread_rows(inverse, n);
    double scale = sqrt(keys / sum);
    for (int64_t i = 0; i < size; i++) {
        out[i] = (float)(t[i] * scale);
        out[size + i] = (float)(inverse[i] / scale);
        if (!isfinite(out[i]) || !isfinite(out[size + i]))
            return qmi_fail(QM_ERROR_STATE, "the text's keys and queries determine no correction: some are not finite, or none differ; "
                            "take another text");
    }
    return QM_OK;
}

static int32_t write_file(const char *path, const qmi_key_head *head, const float *floats)
{
    qmi_os_writer writer;
    qmi_crc crc;
    size_t bytes = (size_t)qmi_key_floats(head) * sizeof *floats;
    qmi_crc_start(&crc);
    uint32_t sum = qmi_crc_add(&crc, qmi_crc_add(&crc, 0, head, sizeof *head), floats, bytes);
    int32_t code = qmi_os_writer_open(path, &writer);
    if (code < 0)
        return code;
    code = qmi_os_writer_put(&writer, head, sizeof *head);
    if (code >= 0)
        code = qmi_os_writer_put(&writer, floats, (int64_t)bytes);
    if (code >= 0)
        code = qmi_os_writer_put(&writer, &sum, SUM_BYTES);
    if (code >= 0)
        return qmi_os_writer_finish(&writer);
    qmi_os_writer_abandon(&writer);
    return code;
}

int32_t qmi_key_correction_write(const char *path, const qmi_key_head *head, const double *moments, const qmi_alloc *alloc)
{
    int32_t n = (int32_t)head->head_size, code = QM_OK;
    int64_t size = (int64_t)n * n, heads = (int64_t)head->layers * head->kv_heads;
    double *work = qmi_new(alloc, (size_t)(4 * size), sizeof *work, "the fitting of a correction");
    float *floats = qmi_new(alloc, (size_t)(2 * heads * size), sizeof *floats, "a correction of keys");
    if (!work || !floats)
        code = QM_ERROR_MEMORY;
    for (int64_t i = 0; i < heads && code >= 0; i++)
        code = fit_head(moments + 2 * i * size, n, work, floats + 2 * i * size);
    if (code >= 0)
        code = write_file(path, head, floats);
    qmi_delete(alloc, work);
    qmi_delete(alloc, floats);
    return code;
}
