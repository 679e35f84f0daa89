/* What several devices would hold of the real models: boxes that people have, with sums made here from published dimensions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/error.h"
#include "geometry.h"
#include "layout.h"
#include "memory/split.h"

#define GIB ((int64_t)1 << 30)
#define CARD_12 (12 * GIB - (700 << 20)) /* what a card of that name has for a program beside the driver and a desktop */
#define CARD_24 (24 * GIB - (700 << 20))

static const qmi_alloc heap;

typedef struct fixture {
    geometry file;
    qmi_gguf gguf;
    qmi_settings settings;
    bool experts;
    qmi_plan plan;
    qmi_split split;
} fixture;

static void start(fixture *f, bool experts, const char *context)
{
    *f = (fixture){ .experts = experts };
    geometry_start(&f->file);
    geometry_real(&f->file, experts, NULL, NULL, 0);
    geometry_layers(&f->file, experts);
    int64_t size = geometry_end(&f->file);
    assert_int_equal(qmi_gguf_read(f->file.w.bytes, size, &heap, &f->gguf), QM_OK);
    qmi_settings_start(&f->settings, &heap);
    assert_int_equal(qmi_settings_set(&f->settings, QMI_OPT_CONTEXT, context), QM_OK);
}

static void end(fixture *f)
{
    qmi_settings_end(&f->settings);
    qmi_gguf_free(&f->gguf, &heap);
    writer_free(&f->file.w);
}

static void set(fixture *f, const char *name, const char *value)
{
    assert_int_equal(qmi_settings_set(&f->settings, qmi_option_find(name), value), QM_OK);
}

/* The sizes that the CUDA backend gives matrices; scratch of the size that its products have. */
static int64_t card_bytes(uint32_t *type, int64_t columns, int64_t rows)
{
    qmi_cuda_planes planes;
    *type = qmi_cuda_type(*type);
    qmi_cuda_planes_of(*type, columns, rows, &planes);
    return (planes.bytes + QMI_CUDA_PLANE_ALIGN - 1) / QMI_CUDA_PLANE_ALIGN * QMI_CUDA_PLANE_ALIGN;
}

static int64_t card_scratch(const qmi_program *program, int32_t rows, int32_t threads)
{
    (void)program, (void)threads;
    return (int64_t)rows << 15;
}

static qmi_plan_device card(int64_t memory)
{
    return (qmi_plan_device){ .name = "card", .memory = memory, .fixed = 64 << 20, .chunk_low = 1024, .chunk_high = 4096,
                              .matrix_bytes = card_bytes, .scratch_bytes = card_scratch };
}

static qmi_plan_device host(int64_t memory)
{
    return (qmi_plan_device){ .name = "cpu", .memory = memory, .mapped = true, .threads = 8, .chunk_low = 256,
                              .chunk_high = 512 };
}

static void make(fixture *f, const qmi_plan_device *devices, int32_t count)
{
    const qmi_plan_device any = card(-1);
    assert_int_equal(qmi_plan_make(&f->gguf, &f->settings, &any, &heap, &f->plan), QM_OK);
    assert_int_equal(qmi_split_make(&f->gguf, &f->settings, &f->plan, devices, count, &heap, &f->split), QM_OK);
}

/* Every layer lies somewhere once, in order; what the devices have adds up to the whole; none has more than there is. */
static void assert_whole(const fixture *f, int32_t host_index)
{
    const qmi_split *split = &f->split;
    const qmi_hparams *h = &f->plan.hparams;
    int64_t kv = 0, weights = 0, layers = 0;
    int32_t next = 0, attention = 0, delta = 0;
    assert_true(split->fits);
    for (int32_t k = 0; k < split->count; k++) {
        int32_t i = host_index >= 0 ? (k == 0 ? host_index : k - 1) : k; /* the host's are the first ones */
        const qmi_split_share *share = &split->shares[i];
        if (share->part.count)
            assert_int_equal(share->part.first, next);
        next += share->part.count;
        layers += share->part.count;
        attention += share->attention_layers;
        delta += share->delta_layers;
        kv += share->kv;
        weights += share->weights;
        assert_true(share->available < 0 || share->total <= share->available);
        assert_true(share->part.input == (share->part.count > 0 && share->part.first == 0));
        assert_true(share->part.output == (share->part.count > 0 && share->part.first + share->part.count == h->layers));
        int64_t sum = share->vectors + share->kv + share->state + share->logits + share->checkpoints + share->workspace +
                      share->scratch + share->fixed + (i == host_index ? 0 : share->weights);
        assert_int_equal(share->total, sum);
    }
    assert_int_equal(layers, f->experts ? 40 : 64);
    assert_int_equal(attention, f->experts ? 10 : 16);
    assert_int_equal(delta, f->experts ? 30 : 48);
    assert_int_equal(kv, f->plan.kv_session);
    if (host_index < 0 || f->split.shares[host_index].total == 0)
        assert_int_equal(weights, f->plan.weights);
}

static void two_cards_hold_35b_whole(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(CARD_12), card(CARD_12) };
    start(&f, true, "32768");
    make(&f, devices, 1);
    assert_false(f.split.fits);
    assert_non_null(strstr(f.split.reason, "no place"));
    make(&f, devices, 2);
    assert_whole(&f, -1);
    assert_int_equal(f.plan.kv_session, (int64_t)640 << 20);
    const qmi_split_share *one = &f.split.shares[0], *two = &f.split.shares[1];
    int64_t layer = 256 * 3 * (int64_t)2048 * 512 / 256 * 144; /* experts of one layer are the largest thing that moves */
    assert_in_range(llabs(one->total - two->total), 0, 2 * layer);
    assert_true(f.split.chunk >= 1024);
    assert_true(f.split.checkpoints >= 8);
    end(&f);
}

static void one_large_card_holds_either(void **state)
{
    (void)state;
    const qmi_plan_device devices[] = { card(CARD_24), host(32 * GIB) };
    for (int experts = 0; experts < 2; experts++) {
        fixture f;
        start(&f, experts, "32768");
        make(&f, devices, 2);
        assert_whole(&f, 1);
        assert_int_equal(f.split.shares[0].part.count, experts ? 40 : 64);
        assert_int_equal(f.split.shares[1].total, 0);
        assert_int_equal(f.split.shares[1].expert_layers, 0);
        end(&f);
    }
}

/* As few experts on the host as will do: those of one layer more have no place. */
static void experts_go_to_the_host(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(CARD_12), host(32 * GIB) };
    start(&f, true, "32768");
    set(&f, "chunk", "512");
    make(&f, devices, 2);
    assert_whole(&f, 1);
    const qmi_split_share *on_card = &f.split.shares[0], *on_host = &f.split.shares[1];
    assert_int_equal(on_card->part.count, 40);
    assert_int_equal(on_host->part.count, 0);
    const int64_t blocks = 256 * 3 * (int64_t)2048 * 512 / 256; /* of 256 values, of one layer's experts */
    const int64_t in_file = blocks * 144, laid_out = blocks * (8 * (16 + 2) + 4); /* cuda/layout.h: codes, two scales, d and dmin */
    assert_int_equal(on_host->weights, on_host->expert_layers * in_file); /* the last ones: no Q5_K among them */
    assert_int_equal(on_card->weights + on_host->expert_layers * laid_out, f.plan.weights);
    assert_true(on_host->expert_layers > 0 && on_host->expert_layers < 35);
    assert_true(on_card->total + laid_out > on_card->available);
    assert_true(f.split.checkpoints >= 8); /* turns that recompute nothing are worth some experts' place */
    end(&f);
}

/* A dense model has no experts to move: its first layers go. */
static void layers_go_to_the_host(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(CARD_12), host(32 * GIB) };
    start(&f, false, "32768");
    set(&f, "chunk", "512");
    make(&f, devices, 2);
    assert_whole(&f, 1);
    const qmi_split_share *on_card = &f.split.shares[0], *on_host = &f.split.shares[1];
    assert_true(on_host->part.count > 0 && on_host->part.count < 40);
    assert_int_equal(on_host->expert_layers, 0);
    /* the smallest layer, one of attention: query, key, value, output, feed-forward, and its keys and values */
    int64_t values = (int64_t)5120 * (2 * 256 * 24 + 2 * 256 * 4 + 256 * 24 + 3 * 17408);
    assert_true(on_card->total + values / 256 * 144 > on_card->available);
    assert_true(f.split.checkpoints >= 8);
    end(&f);
}

static void two_cards_hold_27b_whole(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(CARD_12), card(CARD_12) };
    start(&f, false, "32768");
    make(&f, devices, 2);
    assert_whole(&f, -1);
    assert_int_equal(f.plan.kv_session, (int64_t)2 << 30);
    end(&f);
}

/* As long as they were made for: 262144 tokens. */
static void whole_length_on_a_large_card(void **state)
{
    (void)state;
    const qmi_plan_device devices[] = { card(CARD_24) };
    for (int experts = 0; experts < 2; experts++) {
        fixture f;
        start(&f, experts, "262144");
        make(&f, devices, 1);
        assert_false(f.split.fits); /* in half floats: 5 and 16 GiB */
        set(&f, "kv-type", "q4_0");
        make(&f, devices, 1);
        assert_whole(&f, -1);
        assert_int_equal(f.split.shares[0].kv, INT64_C(262144) * (experts ? 5760 : 18432));
        end(&f);
    }
}

static void unequal_cards(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(8 * GIB), card(CARD_24) };
    start(&f, true, "32768");
    make(&f, devices, 2);
    assert_whole(&f, -1);
    assert_in_range(f.split.shares[0].part.count, 5, 15);
    end(&f);
}

static void says_what_would_fit(void **state)
{
    (void)state;
    fixture f;
    const qmi_plan_device devices[] = { card(CARD_12), card(CARD_12) };
    start(&f, false, "262144"); /* 16 GiB of keys and values */
    make(&f, devices, 2);
    assert_false(f.split.fits);
    const char *advice = strstr(f.split.reason, "context ");
    assert_non_null(advice);
    char text[32];
    long context = strtol(advice + strlen("context "), NULL, 10);
    set(&f, "chunk", "32");
    snprintf(text, sizeof text, "%ld", context);
    set(&f, "context", text);
    make(&f, devices, 2);
    assert_whole(&f, -1);
    snprintf(text, sizeof text, "%ld", context + QMI_PAGE_TOKENS);
    set(&f, "context", text);
    make(&f, devices, 2);
    assert_false(f.split.fits);
    end(&f);
}

static void prints(void **state)
{
    (void)state;
    fixture f;
    char text[2048];
    const qmi_plan_device devices[] = { card(CARD_12), host(32 * GIB) };
    start(&f, true, "32768");
    make(&f, devices, 2);
    int64_t length = qmi_split_table(&f.split, &f.plan, devices, text, sizeof text);
    assert_int_equal(length, strlen(text));
    assert_non_null(strstr(text, "over 2 devices: fits, context 32768"));
    assert_non_null(strstr(text, "none, experts of "));
    make(&f, devices, 1);
    assert_true(qmi_split_table(&f.split, &f.plan, devices, text, sizeof text) > 0);
    assert_non_null(strstr(text, "does not fit: "));
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_cards_hold_35b_whole), cmocka_unit_test(one_large_card_holds_either),
        cmocka_unit_test(experts_go_to_the_host),   cmocka_unit_test(layers_go_to_the_host),
        cmocka_unit_test(two_cards_hold_27b_whole), cmocka_unit_test(whole_length_on_a_large_card), cmocka_unit_test(unequal_cards),
        cmocka_unit_test(says_what_would_fit),      cmocka_unit_test(prints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
