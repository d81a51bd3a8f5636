#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <memory>
#include <optional>

#include "bindings.h"
#include "engine.h"
#include "stopping.h"

namespace py = pybind11;

namespace demiurgic {
namespace {

using namespace pybind11::literals;

// Asked by the engine between layers: lets Ctrl-C in, at most every 50 ms. Only Python's main thread handles signals.
class SignalPoll {
public:
    void operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (!is_main_thread_ || now - last_ < std::chrono::milliseconds(50)) return;
        last_ = now;
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }

private:
    const bool is_main_thread_ = on_main_thread();
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// ---- calls ----------------------------------------------------------------------------------------------------------

// A call and the engine that works on it; gone from Python, it is cancelled.
struct CallHandle {
    std::shared_ptr<Engine> engine;
    std::shared_ptr<Call> call;

    CallHandle(std::shared_ptr<Engine> owner, std::shared_ptr<Call> added)
        : engine(std::move(owner)), call(std::move(added)) {}
    CallHandle(const CallHandle&) = delete;
    ~CallHandle() {
        const py::gil_scoped_release release;  // the lock may be held by a thread that wants the GIL
        engine->cancel(*call);
        engine->forget(*call);
    }

    // `read` of one row while no thread changes it.
    template <class Read>
    auto row(int64_t index, Read read) const {
        if (index < 0 || index >= static_cast<int64_t>(call->sequences.size())) {
            throw py::index_error("There is no row " + std::to_string(index) + ".");
        }
        std::decay_t<decltype(read(*call->sequences[index]))> result;
        const py::gil_scoped_release release;
        engine->read([&] { result = read(*call->sequences[index]); });
        return result;
    }
};

bool advance(const CallHandle& handle) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    return handle.engine->advance(*handle.call, std::ref(poll));
}

py::dict timings(const CallHandle& handle) {
    double prefill = 0, decode = 0;
    {
        const py::gil_scoped_release release;
        handle.engine->read([&] {
            prefill = handle.call->prefill_seconds;
            decode = handle.call->decode_seconds;
        });
    }
    return py::dict("prefill"_a = prefill, "decode"_a = decode);
}

// The elements from the start-th on.
template <class T>
std::vector<T> from(const std::vector<T>& values, int64_t start) {
    return {values.begin() + std::clamp<int64_t>(start, 0, static_cast<int64_t>(values.size())), values.end()};
}

void bind_call(py::module_& m) {
    py::class_<CallHandle>(m, "Call", "The rows of one call of generate, under way or finished.")
        .def(
            "advance", &advance,
            "Runs steps, or waits for another thread's, until the call has got on, or for a tenth of a second where it "
            "is not interruptible; False once it is finished. The GIL is released. Ctrl-C raises KeyboardInterrupt on "
            "the main thread.")
        .def(
            "cancel",
            [](const CallHandle& handle) {
                const py::gil_scoped_release release;
                handle.engine->cancel(*handle.call);
            },
            "Ends the unfinished rows and frees their cache.")
        .def(
            "settle",
            [](const CallHandle& handle) {
                const py::gil_scoped_release release;
                handle.engine->settle(*handle.call);
            },
            "Of an ended call with keeps_if_settled: its prefixes are kept if the weights are still the same.")
        .def_property_readonly("num_rows", [](const CallHandle& h) { return h.call->sequences.size(); })
        .def(
            "tokens",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) {
                    const int64_t first = s.prompt_length + std::clamp<int64_t>(start, 0, s.num_generated());
                    return std::vector<int64_t>(s.tokens.begin() + first, s.tokens.end());
                });
            },
            "row"_a, "start"_a = 0, "The generated ids of a row from the start-th on.")
        .def(
            "finish_reason",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) {
                    const bool ends = !s.finished() && s.call->cancelled;  // after the step that is under way
                    return std::string(name_of(ends ? FinishReason::cancelled : s.finish_reason));
                });
            },
            "row"_a, "none | eos | stop | length | repetition | error | cancelled")
        .def(
            "error",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return s.error; });
            },
            "row"_a, "The message where the finish reason is error, else an empty string.")
        .def(
            "logprobs",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) { return from(s.logprobs, start); });
            },
            "row"_a, "start"_a = 0,
            "Log-probabilities of the generated ids from the start-th on by the model; empty unless they were asked for.")
        .def(
            "processed_logprobs",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) { return from(s.processed_logprobs, start); });
            },
            "row"_a, "start"_a = 0,
            "The same by what the options left of the distribution; empty unless they were asked for.")
        .def(
            "prompt_logprobs",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return s.all_prompt_logprobs(); });
            },
            "row"_a, "Of the prompt's tokens but the first; empty unless they were asked for and are all known.")
        .def(
            "reports",
            [](const CallHandle& handle, int64_t row, bool processed, int64_t start) {
                return handle.row(row, [&](const Sequence& s) {
                    const Reports& reports = processed ? s.processed_reports : s.raw_reports;
                    const int64_t width = s.config->top_logprobs;
                    return std::tuple(from(reports.ids, start * width), from(reports.logprobs, start * width),
                                      from(reports.entropies, start));
                });
            },
            "row"_a, "processed"_a, "start"_a = 0,
            "Of the distributions at the generated ids from the start-th on: the top ids and their log-probabilities, k "
            "after k, and the entropies; each empty unless it was asked for.")
        .def(
            "drafts",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return std::pair(s.num_drafted, s.num_accepted); });
            },
            "row"_a, "How many drafts of a row's tokens were verified, and how many of them were accepted.")
        .def(
            "text",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return py::bytes(handle.row(row, [start](const Sequence& s) {
                    const int64_t end = s.settled_bytes(), first = std::clamp<int64_t>(start, 0, end);
                    return s.text ? s.text->text().substr(first, end - first) : std::string();
                }));
            },
            "row"_a, "start"_a = 0,
            "UTF-8 of the generated text of a row from the start-th byte on, as far as it stays; empty without "
            "token_bytes.")
        .def(
            "settled",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row,
                                  [](const Sequence& s) { return std::pair(s.settled_tokens(), s.settled_bytes()); });
            },
            "row"_a,
            "How many of the generated ids of a row, and bytes of their text, stay, whatever comes. The others may be "
            "taken back, because they may turn out to belong to a stop.")
        .def(
            "stopped_by",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return stopped_by(s); });
            },
            "row"_a, "The stop string, the value of stop_at or the stop id that has ended a row; else None.")
        .def("timings", &timings,
             "Seconds in steps with prompt tokens of this call (prefill) and in its other steps (decode).");
}

// ---- engine ---------------------------------------------------------------------------------------------------------

std::vector<std::pair<std::vector<float>, std::string>> score_rows(Engine& engine,
                                                                   const std::vector<std::vector<int64_t>>& rows,
                                                                   int64_t max_running) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    std::vector<std::pair<std::vector<float>, std::string>> result;
    for (Score& row : engine.score(rows, max_running, std::ref(poll))) {
        result.emplace_back(std::move(row.logprobs), std::move(row.error));
    }
    return result;
}

py::dict counters(const Engine& engine) {
    EngineCounters c;
    {
        const py::gil_scoped_release release;  // the lock may be held by a thread that wants the GIL
        c = engine.counters();
    }
    return py::dict("num_steps"_a = c.num_steps, "num_computed_tokens"_a = c.num_computed_tokens,
                    "num_steps_ahead"_a = c.num_steps_ahead, "num_preemptions"_a = c.num_preemptions,
                    "num_used_blocks"_a = c.num_used_blocks, "cache_bytes"_a = c.cache_bytes,
                    "num_kept_tokens"_a = c.num_kept_tokens, "kept_bytes"_a = c.kept_bytes, "num_hits"_a = c.num_hits,
                    "num_reused_tokens"_a = c.num_reused_tokens, "num_evicted_blocks"_a = c.num_evicted_blocks);
}

// ---- kept prefixes --------------------------------------------------------------------------------------------------

// `work` on the engine without the GIL, with a poll that lets Ctrl-C in.
template <class Work>
auto without_gil(Work work) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    return work(std::ref(poll));
}

std::pair<at::Tensor, at::Tensor> read_prefix(Engine& engine, const std::vector<int64_t>& tokens,
                                              uint64_t fingerprint) {
    KVCache::Content content =
        without_gil([&](const Poll& poll) { return engine.read_prefix(tokens, fingerprint, poll); });
    return {std::move(content.keys), std::move(content.values)};
}

void write_prefix(Engine& engine, const std::vector<int64_t>& tokens, at::Tensor keys, at::Tensor values,
                  uint64_t fingerprint) {
    const KVCache::Content content{std::move(keys), std::move(values)};
    without_gil([&](const Poll& poll) { engine.write_prefix(tokens, content, fingerprint, poll); });
}

void bind_prefixes(py::class_<Engine, std::shared_ptr<Engine>>& cls) {
    cls.def("fingerprint", &Engine::fingerprint, py::call_guard<py::gil_scoped_release>(),
            "The present values of all weights, as one number of 64 bits.")
        .def("keep_prefixes_of", &Engine::keep_prefixes_of, "fingerprint"_a, py::call_guard<py::gil_scoped_release>(),
             "Drops the prefixes that were computed with other weights; whether there were any.")
        .def(
            "clear_prefixes",
            [](Engine& engine) { without_gil([&](const Poll& poll) { engine.clear_prefixes(poll); }); },
            "Drops all prefixes, and the memory of the cache if no call is under way.")
        .def("read_prefix", &read_prefix, "tokens"_a, "fingerprint"_a,
             "Keys and values [layers, kv_heads, T, head_dim] of tokens that are kept.")
        .def("write_prefix", &write_prefix, "tokens"_a, "keys"_a, "values"_a, "fingerprint"_a,
             "Keeps tokens with what read_prefix gave.")
        .def_property_readonly("kernels", &Engine::kernels, "Device type and kernels, such as 'cpu avx2'.");
}

}  // namespace

void bind_engine(py::module_& m) {
    bind_call(m);
    py::class_<Request>(m, "Request", "What a call asks for.")
        .def(py::init([](std::vector<std::vector<int64_t>> prompts, const GenerationConfig& config,
                         std::vector<uint64_t> seeds, int64_t max_running, bool want_logprobs,
                         const std::optional<std::shared_ptr<TokenBytes>>& token_bytes,
                         std::vector<int64_t> max_new_tokens, const std::optional<std::shared_ptr<Hooks>>& hooks,
                         std::optional<double> max_seconds, const std::optional<std::shared_ptr<Weights>>& draft_model,
                         bool keeps_if_settled, bool always_drafts, bool interruptible) {
                 return Request{std::move(prompts),
                                config,
                                std::move(seeds),
                                max_running,
                                want_logprobs,
                                token_bytes.value_or(nullptr),
                                std::move(max_new_tokens),
                                hooks.value_or(nullptr),
                                max_seconds,
                                draft_model.value_or(nullptr),
                                keeps_if_settled,
                                always_drafts,
                                interruptible};
             }),
             py::kw_only(), "prompts"_a, "config"_a, "seeds"_a, "max_running"_a, "want_logprobs"_a,
             "token_bytes"_a = py::none(), "max_new_tokens"_a = std::vector<int64_t>(), "hooks"_a = py::none(),
             "max_seconds"_a = py::none(), "draft_model"_a = py::none(), "keeps_if_settled"_a = false,
             "always_drafts"_a = false, "interruptible"_a = true)
        .def_readwrite("seeds", &Request::seeds, "One a row of the result, 0 to 2**64 - 1.");
    py::class_<Engine, std::shared_ptr<Engine>> cls(m, "Engine",
                                                    "Generates for all calls that are under way on one model.");
    bind_prefixes(cls);
    cls.def(py::init<Weights, std::optional<int64_t>, int64_t, bool, bool>(), "weights"_a, "cache_bytes"_a,
            "max_step_tokens"_a, "keep_prefixes"_a = false, "exact"_a = true)
        .def("check", &Engine::check, "request"_a, py::call_guard<py::gil_scoped_release>(),
             "Raises what add would raise for a bad request or for want of room.")
        .def(
            "add",
            [](const std::shared_ptr<Engine>& engine, const Request& request) {
                std::shared_ptr<Call> call;
                {
                    SignalPoll poll;
                    const py::gil_scoped_release release;
                    call = engine->add(request, std::ref(poll));
                }
                return std::make_unique<CallHandle>(engine, std::move(call));
            },
            "request"_a,
            "Adds every prompt num_return_sequences times; nothing is computed before the call is advanced.")
        .def(
            "score", &score_rows, "rows"_a, "max_running"_a,
            "For each row the log-probabilities of all its tokens but the first, and an empty string; or none, and the "
            "message of an error. The GIL is released. Ctrl-C raises KeyboardInterrupt on the main thread.")
        .def("serves", &Engine::serves, "weights"_a, "cache_bytes"_a, "max_step_tokens"_a, "exact"_a = true,
             "Whether calls on these live tensors, with these limits, can share this engine.")
        .def("counters", &counters, "Steps, computed tokens, preemptions, used blocks and bytes of the cache so far.");
}

}  // namespace demiurgic
