#include <pybind11/stl.h>

#include "bindings.h"
#include "stopping.h"

namespace py = pybind11;

namespace demiurgic {
namespace {

using namespace pybind11::literals;

std::shared_ptr<TokenBytes> make_token_bytes(const std::vector<std::string>& tokens,
                                             const std::vector<int64_t>& special, const std::string& spelling,
                                             const std::string& leading_blank) {
    const std::map<std::string, TokenSpelling> spellings{{"byte_level", TokenSpelling::byte_level},
                                                         {"pieces", TokenSpelling::pieces},
                                                         {"byte_fallback", TokenSpelling::byte_fallback},
                                                         {"raw", TokenSpelling::raw}};
    const std::map<std::string, LeadingBlank> blanks{{"kept", LeadingBlank::kept},
                                                     {"one_dropped", LeadingBlank::one_dropped},
                                                     {"token_dropped", LeadingBlank::token_dropped}};
    return std::make_shared<TokenBytes>(tokens, special, spellings.at(spelling), blanks.at(leading_blank));
}

// A sequence without a model: what a row of chosen tokens comes to.
struct Replay {
    Replay(const std::vector<int64_t>& prompt, const GenerationConfig& config,
           const std::optional<std::shared_ptr<TokenBytes>>& bytes)
        : sequence(prompt, resolved(config), 0) {
        if (!bytes) return;
        sequence.text = std::make_unique<RowText>(std::make_shared<TextRules>(*bytes, sequence.config), prompt);
    }

    static std::shared_ptr<const GenerationConfig> resolved(GenerationConfig config) {
        if (!config.eos_token_id) config.eos_token_id = Ids{};
        return std::make_shared<const GenerationConfig>(std::move(config));
    }

    std::string append(int64_t token) {
        if (sequence.finished()) throw py::value_error("The row has ended; nothing can be appended.");
        sequence.append(token);
        const FinishReason reason = reason_to_stop(sequence);
        if (reason != FinishReason::none) trim(sequence, reason);
        sequence.finish_reason = reason;
        return name_of(reason);
    }

    Sequence sequence;
};

}  // namespace

void bind_texts(py::module_& m) {
    py::class_<TokenBytes, std::shared_ptr<TokenBytes>>(m, "TokenBytes",
                                                        "The bytes that each token of a vocabulary stands for.")
        .def(py::init(&make_token_bytes), "tokens"_a, "special"_a, "spelling"_a, "leading_blank"_a = "kept")
        .def(
            "of", [](const TokenBytes& bytes, int64_t token) { return py::bytes(std::string(bytes.of(token))); },
            "token"_a, "The bytes of one token; none of a special one and of an id outside the vocabulary.")
        .def("__len__", &TokenBytes::size);
    py::class_<Replay>(m, "Replay",
                       "A row that is given its tokens instead of generating them: where it ends, and why.")
        .def(py::init<std::vector<int64_t>, const GenerationConfig&,
                      const std::optional<std::shared_ptr<TokenBytes>>&>(),
             "prompt"_a, "config"_a, "token_bytes"_a = py::none())
        .def("append", &Replay::append, "token"_a,
             "Takes the next token; returns why the row has ended, or none. Raises ValueError where it had ended.")
        .def_property_readonly("tokens",
                               [](const Replay& r) {
                                   return std::vector<int64_t>(r.sequence.tokens.begin() + r.sequence.prompt_length,
                                                               r.sequence.tokens.end());
                               })
        .def_property_readonly(
            "text", [](const Replay& r) { return py::bytes(r.sequence.text ? r.sequence.text->text() : ""); })
        .def_property_readonly(
            "settled",
            [](const Replay& r) { return std::pair(r.sequence.settled_tokens(), r.sequence.settled_bytes()); })
        .def_property_readonly("stopped_by", [](const Replay& r) { return stopped_by(r.sequence); });
}

}  // namespace demiurgic
