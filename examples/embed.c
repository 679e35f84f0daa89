/* The shortest honest program that uses the library: continues a prompt and prints the text as it comes.
 *     cc embed.c $(pkg-config --cflags --libs qwenmoe) -o embed && ./embed MODEL.gguf "def fibonacci(n):" */
#include <qwenmoe.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    qm_model *model = NULL;
    qm_session *session = NULL;
    qm_job *job = NULL;
    int32_t prompt[2048], state = QM_ERROR_ARGUMENT, kind;
    char piece[256];
    if (argc != 3) {
        fprintf(stderr, "usage: embed MODEL.gguf PROMPT\n");
        return 2;
    }
    if (qm_model_load(argv[1], NULL, &model) < 0 || qm_session_new(model, NULL, &session) < 0)
        goto end;
    int64_t count = qm_tokenize(model, argv[2], -1, QM_SPECIAL_NONE, prompt, 2048);
    if (count > 2048)
        fprintf(stderr, "embed: only the first 2048 of %lld tokens are used\n", (long long)count);
    if (count < 0 || qm_submit_generate(session, prompt, count < 2048 ? count : 2048, &job) < 0)
        goto end;
    do {
        state = qm_job_wait(job, -1);
        for (int64_t length; (length = qm_job_read(job, piece, sizeof piece, &kind)) > 0;)
            fwrite(piece, 1, (size_t)length, stdout);
        fflush(stdout);
    } while (state == QM_JOB_RUNNING);
end:
    if (state < 0)
        fprintf(stderr, "embed: %s\n", qm_error_message());
    qm_job_free(&job);
    qm_session_free(&session);
    qm_model_free(&model);
    return state < 0;
}
