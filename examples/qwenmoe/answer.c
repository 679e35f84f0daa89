/* Streams a job's text; see answer.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "terminal.h"
#include "answer.h"

/* Where the output stands between pieces. */
typedef struct printer {
    const answer *view;
    int32_t kind; /* of the last piece printed */
    int newlines; /* at the end of what was printed, up to 2 */
} printer;

static void print_piece(printer *printer, int32_t kind, const char *text, int64_t length)
{
    if (kind == QM_PIECE_THOUGHT && printer->view->hide_thoughts) {
        printer->kind = kind;
        return;
    }
    if (printer->kind == QM_PIECE_THOUGHT && kind != QM_PIECE_THOUGHT) {
        /* One empty line between thoughts and answer, however many the model wrote itself. */
        for (; printer->newlines < 2; printer->newlines++)
            terminal_write(STYLE_PLAIN, "\n", 1);
        while (length > 0 && *text == '\n') {
            text++;
            length--;
        }
        if (length == 0)
            return;
    }
    terminal_write(kind == QM_PIECE_THOUGHT ? STYLE_DIM : printer->view->style, text, length);
    for (int64_t i = 0; i < length; i++)
        printer->newlines = text[i] != '\n' ? 0 : printer->newlines < 2 ? printer->newlines + 1 : 2;
    printer->kind = kind;
}

static double number_of(const qm_job *job, const char *name)
{
    double value = 0;
    return qm_job_number(job, name, &value) < 0 ? 0 : value;
}

static void add_numbers(const qm_job *job, answer *view)
{
    view->prompt_tokens += number_of(job, "tokens_prefilled");
    view->reused_tokens += number_of(job, "tokens_reused");
    view->prompt_seconds += number_of(job, "seconds_prefill");
    view->answer_tokens += number_of(job, "tokens_generated");
    view->thought_tokens += number_of(job, "tokens_thought");
    view->answer_seconds += number_of(job, "seconds_decode");
    view->first_seconds += number_of(job, "seconds_first");
}

static void print_pieces(qm_job *job, printer *printer)
{
    char piece[512];
    int32_t kind;
    for (int64_t length; (length = qm_job_read(job, piece, sizeof piece, &kind)) > 0;)
        print_piece(printer, kind, piece, length);
}

int32_t answer_watch(qm_job *job, answer *view)
{
    printer printer = { .view = view, .kind = QM_PIECE_NONE, .newlines = 2 };
    int32_t state;
    for (;;) {
        print_pieces(job, &printer);
        state = qm_job_poll(job);
        if (state != QM_JOB_RUNNING)
            break;
        terminal_wait(qm_job_descriptor(job));
        if (terminal_interrupted() && !view->stopped) {
            view->stopped = 1;
            qm_job_cancel(job);
        }
    }
    print_pieces(job, &printer); /* what came between the last reading and the end */
    terminal_progress_clear();
    view->in_line = printer.newlines == 0;
    add_numbers(job, view);
    return state == QM_ERROR_CANCELLED && view->stopped ? QM_JOB_DONE : state;
}

int answer_check_room(const qm_session *session, int64_t prompt)
{
    char budget[32] = "";
    qm_session_get(session, "answer-tokens", budget, sizeof budget);
    int64_t answer = strtoll(budget, NULL, 10), context = qm_session_context(session);
    if (prompt + answer <= context)
        return EXIT_OK;
    complain("prompt %lld + answer %lld = %lld tokens, but the context holds %lld: set --context to at least %lld%s",
             (long long)prompt, (long long)answer, (long long)(prompt + answer), (long long)context, (long long)(prompt + answer),
             prompt < context ? ", or --answer-tokens to 0, which takes what is left" : "");
    return EXIT_FAILED;
}

int answer_generate(qm_session *session, const int32_t *prompt, int64_t count, answer *view)
{
    qm_job *job = NULL;
    if (answer_check_room(session, count) != EXIT_OK)
        return EXIT_FAILED;
    if (qm_submit_generate(session, prompt, count, &job) < 0)
        return complain_library();
    int32_t state = answer_watch(job, view);
    int code = state < 0 ? complain_library() : view->stopped ? EXIT_INTERRUPTED : EXIT_OK;
    qm_job_free(&job);
    return code;
}

static double per_second(double tokens, double seconds)
{
    return seconds > 0 ? tokens / seconds : 0;
}

void answer_print_speed(const answer *view)
{
    fflush(stdout);
    fprintf(stderr, "prompt %.0f tokens", view->prompt_tokens);
    if (view->reused_tokens > 0)
        fprintf(stderr, " (%.0f more known already)", view->reused_tokens);
    fprintf(stderr, ", %.1f tokens/s; answer %.0f tokens", per_second(view->prompt_tokens, view->prompt_seconds),
            view->answer_tokens);
    if (view->thought_tokens > 0)
        fprintf(stderr, " (%.0f of them thoughts)", view->thought_tokens);
    fprintf(stderr, ", %.1f tokens/s\n", per_second(view->answer_tokens, view->answer_seconds));
}
