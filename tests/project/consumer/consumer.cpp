// A C++ program that uses the library: continues a prompt greedily by eight tokens and prints the text.
//     consumer MODEL.gguf PROMPT
#include <qwenmoe.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

template <typename T, void (*release)(T **)> struct releaser {
    void operator()(T *handle) const { release(&handle); }
};
using options_handle = std::unique_ptr<qm_options, releaser<qm_options, qm_options_free>>;
using model_handle = std::unique_ptr<qm_model, releaser<qm_model, qm_model_free>>;
using session_handle = std::unique_ptr<qm_session, releaser<qm_session, qm_session_free>>;
using job_handle = std::unique_ptr<qm_job, releaser<qm_job, qm_job_free>>;

static int64_t checked(int64_t code)
{
    if (code < 0)
        throw std::runtime_error(std::string(qm_error_name(static_cast<int32_t>(code))) + ": " + qm_error_message());
    return code;
}

// Calls a function whose last argument is `T **out`.
template <typename Handle, typename Function, typename... Arguments> static Handle make(Function function, Arguments... arguments)
{
    typename Handle::pointer made = nullptr;
    checked(function(arguments..., &made));
    return Handle(made);
}

static void run(const std::string &path, const std::string &prompt)
{
    options_handle options = make<options_handle>(qm_options_new);
    checked(qm_options_set(options.get(), "temperature", "0"));
    checked(qm_options_set(options.get(), "answer-tokens", "8"));
    model_handle model = make<model_handle>(qm_model_load, path.c_str(), options.get());
    session_handle session = make<session_handle>(qm_session_new, model.get(), nullptr);

    const int64_t length = static_cast<int64_t>(prompt.size());
    std::vector<int32_t> tokens(
        static_cast<size_t>(checked(qm_tokenize(model.get(), prompt.data(), length, QM_SPECIAL_NONE, nullptr, 0))));
    const int64_t count = static_cast<int64_t>(tokens.size());
    checked(qm_tokenize(model.get(), prompt.data(), length, QM_SPECIAL_NONE, tokens.data(), count));
    job_handle job = make<job_handle>(qm_submit_generate, session.get(), tokens.data(), count);
    int32_t state, kind;
    do {
        char piece[256];
        state = qm_job_wait(job.get(), -1);
        while (checked(qm_job_read(job.get(), piece, sizeof piece, &kind)) > 0)
            std::cout << piece;
    } while (state == QM_JOB_RUNNING);
    checked(state);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::cerr << "usage: consumer MODEL.gguf PROMPT\n";
        return 2;
    }
    try {
        run(argv[1], argv[2]);
    } catch (const std::exception &failure) {
        std::cerr << "consumer: " << failure.what() << '\n';
        return 1;
    }
}
