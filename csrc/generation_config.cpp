#include "generation_config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace demiurgic {

namespace {

using Config = GenerationConfig;

std::string text_of(int64_t value) { return std::to_string(value); }

// With as many digits as tell it from its neighbours.
std::string text_of(double value) {
    char digits[32];
    for (int precision = 6; precision <= 17; ++precision) {
        std::snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (std::strtod(digits, nullptr) == value) break;
    }
    return digits;
}

[[noreturn]] void refuse(const char* name, const std::string& given, const std::string& allowed) {
    throw std::invalid_argument(std::string(name) + " is " + given + ", but must be " + allowed + ".");
}

[[noreturn]] void refuse_none(const char* name, const char* allowed) {
    throw WrongType(std::string(name) + " is None, but must be " + allowed + ".");
}

// None switches an option off where `off` is given; otherwise it is refused.
int64_t integer_in(const char* name, const Value& value, int64_t low, std::optional<int64_t> off, const char* allowed) {
    if (std::holds_alternative<std::monostate>(value)) {
        if (!off) refuse_none(name, allowed);
        return *off;
    }
    const int64_t given = std::get<int64_t>(value);
    if (given < low) refuse(name, text_of(given), allowed);
    return given;
}

std::optional<int64_t> optional_integer(const char* name, const Value& value, int64_t low, const char* allowed) {
    if (std::holds_alternative<std::monostate>(value)) return std::nullopt;
    return integer_in(name, value, low, std::nullopt, allowed);
}

double number_in(const char* name, const Value& value, double low, double high, double off, const char* allowed) {
    if (std::holds_alternative<std::monostate>(value)) return off;
    const double given = std::get<double>(value);
    if (!(given >= low && given <= high)) refuse(name, text_of(given), allowed);  // NaN is refused too
    return given;
}

bool boolean(const char* name, const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) refuse_none(name, "True or False");
    return std::get<bool>(value);
}

Ids token_ids(const char* name, const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return {};
    const Ids& given = std::get<Ids>(value);
    for (const int64_t id : given) {
        if (id < 0) refuse(name, "a list with " + text_of(id), "token ids, which are not negative");
    }
    return given;
}

Value from_optional(const std::optional<int64_t>& value) { return value ? Value(*value) : Value(); }

constexpr const char* kProbability = "from 0 to 1";
constexpr const char* kTemperature = "0 (greedy) or from 0.0001 to 10000";
constexpr const char* kPenalty = "from -10000 to 10000";
constexpr const char* kFactor = "from 0.0001 to 10000";
constexpr const char* kTypical = "above 0 and at most 1";
constexpr const char* kNotNegative = "an integer of 0 or more";
constexpr const char* kPositive = "an integer of 1 or more";
constexpr const char* kStops = "strings of one character or more";
constexpr const char* kStopAt = "'function', 'code_block' or None";
constexpr const char* kCopies = "an integer of 2 or more";
constexpr const char* kTopLogprobs = "an integer from 0 to 1000 (0 or None switches it off)";
constexpr const char* kReported = "'raw', 'processed' or 'both'";

double temperature_of(const Value& value) {
    const double given = number_in("temperature", value, 0, 1e4, 1.0, kTemperature);
    if (given != 0 && given < 1e-4) refuse("temperature", text_of(given), kTemperature);
    return given;
}

constexpr const char* kSpeculate = "'ngram' or None";
constexpr const char* kDraftTokens = "an integer from 1 to 128";

std::string speculate_of(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return "";
    const std::string& given = std::get<std::string>(value);
    if (given != "ngram") refuse("speculate", "'" + given + "'", kSpeculate);
    return given;
}

int64_t max_draft_tokens_of(const Value& value) {
    const int64_t given = integer_in("max_draft_tokens", value, 1, std::nullopt, kDraftTokens);
    if (given > 128) refuse("max_draft_tokens", text_of(given), kDraftTokens);
    return given;
}

int64_t top_logprobs_of(const Value& value) {
    const int64_t given = integer_in("top_logprobs", value, 0, 0, kTopLogprobs);
    if (given > 1000) refuse("top_logprobs", text_of(given), kTopLogprobs);
    return given;
}

std::string top_logprobs_mode_of(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) refuse_none("top_logprobs_mode", kReported);
    const std::string& given = std::get<std::string>(value);
    if (given != "raw" && given != "processed" && given != "both") {
        refuse("top_logprobs_mode", "'" + given + "'", kReported);
    }
    return given;
}

LogitBias logit_bias_of(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return {};
    const LogitBias& given = std::get<LogitBias>(value);
    for (const auto& [id, bias] : given) {
        if (id < 0)
            refuse("logit_bias", "a mapping with the id " + text_of(id), "of token ids, which are not negative");
        if (!(std::abs(bias) <= 1e30)) {
            refuse("logit_bias", text_of(bias) + " for the id " + text_of(id),
                   "finite, at most 1e30 in size (to forbid a token, name it in bad_token_ids)");
        }
    }
    return given;
}

Strings stops_of(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return {};
    const Strings& given = std::get<Strings>(value);
    for (const std::string& stop : given) {
        if (stop.empty()) refuse("stop", "a list with an empty string in it", kStops);
    }
    return given;
}

std::string stop_at_of(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return "";
    const std::string& given = std::get<std::string>(value);
    if (given != "function" && given != "code_block") refuse("stop_at", "'" + given + "'", kStopAt);
    return given;
}

#define NAME(field) #field
#define INTEGER(field, low, off, range)               \
    [](const Config& c) -> Value { return c.field; }, \
        [](Config& c, const Value& v) { c.field = integer_in(NAME(field), v, low, off, range); }
#define OPTIONAL_INTEGER(field, low, range)                          \
    [](const Config& c) -> Value { return from_optional(c.field); }, \
        [](Config& c, const Value& v) { c.field = optional_integer(NAME(field), v, low, range); }
#define NUMBER(field, low, high, off, range)          \
    [](const Config& c) -> Value { return c.field; }, \
        [](Config& c, const Value& v) { c.field = number_in(NAME(field), v, low, high, off, range); }
#define BOOLEAN(field)                                \
    [](const Config& c) -> Value { return c.field; }, \
        [](Config& c, const Value& v) { c.field = boolean(NAME(field), v); }

std::vector<Option> make_options() {
    using T = OptionType;
    return {
        {"max_new_tokens", T::integer, "int | None", kNotNegative,
         "Most tokens to add to each prompt. 0 returns the prompt. None leaves the limit to max_length.", true,
         OPTIONAL_INTEGER(max_new_tokens, 0, kNotNegative)},
        {"max_length", T::integer, "int | None", kPositive,
         "Most tokens of a row, its prompt included and padding not. Where given, it wins over max_new_tokens.", true,
         OPTIONAL_INTEGER(max_length, 1, kPositive)},
        {"min_length", T::integer, "int | None", kNotNegative,
         "EOS and stop ids are forbidden until a row has this many tokens, its prompt included and padding not. Other ends but the length count from there.",
         true, INTEGER(min_length, 0, 0, kNotNegative)},
        {"temperature", T::number, "float | None", kTemperature,
         "Divides the logits: below 1 sharper, above 1 flatter. 0 is greedy; None is 1.", true,
         [](const Config& c) -> Value { return c.temperature; },
         [](Config& c, const Value& v) { c.temperature = temperature_of(v); }},
        {"top_k", T::integer, "int | None", kNotNegative,
         "Keeps the k most likely tokens and all ties with the k-th. 0 or None: off. A k above the vocabulary's "
         "size keeps all.",
         true, INTEGER(top_k, 0, 0, "an integer of 0 or more (0 or None switches it off)")},
        {"top_p", T::number, "float | None", kProbability,
         "Keeps the most likely tokens whose mass, of what top_k left, reaches p; the one that crosses included. 1 "
         "or None: off; 0 keeps the best token.",
         true, NUMBER(top_p, 0, 1, 1.0, kProbability)},
        {"typical_p", T::number, "float | None", kTypical,
         "Locally typical sampling (Meister et al., 2022): keeps the tokens whose surprise is nearest to the "
         "entropy, until their mass reaches p, the one that crosses included. Where set, it stands in for top_p. 1 "
         "or None: off.",
         true, [](const Config& c) -> Value { return c.typical_p == 1.0 ? Value() : Value(c.typical_p); },
         [](Config& c, const Value& v) {
             c.typical_p = number_in("typical_p", v, std::numeric_limits<double>::denorm_min(), 1, 1.0, kTypical);
         }},
        {"do_sample", T::boolean, "bool", "True or False", "True draws tokens; False takes the most likely one.", true,
         BOOLEAN(do_sample)},
        {"repetition_penalty", T::number, "float | None", kFactor,
         "For every distinct token of the context: a logit l becomes l * p where l < 0, else l / p (Keskar et al., "
         "2019). 1 or None: off.",
         true, NUMBER(repetition_penalty, 1e-4, 1e4, 1.0, kFactor)},
        {"frequency_penalty", T::number, "float | None", kPenalty,
         "Subtracts f times the number of times that the token stands in the context. 0 or None: off.", true,
         NUMBER(frequency_penalty, -1e4, 1e4, 0.0, kPenalty)},
        {"presence_penalty", T::number, "float | None", kPenalty,
         "Subtracts q from every token that stands in the context. 0 or None: off.", true,
         NUMBER(presence_penalty, -1e4, 1e4, 0.0, kPenalty)},
        {"num_return_sequences", T::integer, "int", kPositive,
         "Copies of each prompt, each with its own seed; the prompt is computed once.", true,
         INTEGER(num_return_sequences, 1, std::nullopt, kPositive)},
        {"pad_token_id", T::integer, "int | None", kNotNegative,
         "Fills a row after its end. None: the model configuration's, else its first EOS id, else 0.", true,
         OPTIONAL_INTEGER(pad_token_id, 0, kNotNegative)},
        {"eos_token_id", T::ids, "int | list[int] | None", "token ids",
         "A row ends after one of these ids. None: the model configuration's; []: none.", true,
         [](const Config& c) -> Value { return c.eos_token_id ? Value(*c.eos_token_id) : Value(); },
         [](Config& c, const Value& v) {
             c.eos_token_id.reset();
             if (!std::holds_alternative<std::monostate>(v)) c.eos_token_id = token_ids("eos_token_id", v);
         }},
        {"min_new_tokens", T::integer, "int | None", kNotNegative,
         "EOS and stop ids are forbidden until a row has this many new tokens. Other ends but the length count from there.",
         false, INTEGER(min_new_tokens, 0, 0, kNotNegative)},
        {"min_p", T::number, "float | None", kProbability,
         "Keeps the tokens whose probability is at least min_p times the largest. 0 or None: off.", false,
         NUMBER(min_p, 0, 1, 0.0, kProbability)},
        {"repetition_context_size", T::integer, "int | None", kPositive,
         "repetition_penalty looks at the last so many tokens only. None: at all.", false,
         OPTIONAL_INTEGER(repetition_context_size, 1, kPositive)},
        {"penalize_prompt", T::boolean, "bool", "True or False",
         "False: frequency_penalty and presence_penalty count generated tokens only.", false, BOOLEAN(penalize_prompt)},
        {"no_repeat_ngram_size", T::integer, "int | None", kNotNegative,
         "Forbids every token that would repeat an n-gram of the context. 0 or None: off.", false,
         INTEGER(no_repeat_ngram_size, 0, 0, kNotNegative)},
        {"logit_bias", T::logit_bias, "dict[int, float] | None", "token ids and finite numbers",
         "Added to the raw logits of the named tokens.", false,
         [](const Config& c) -> Value { return c.logit_bias.empty() ? Value() : Value(c.logit_bias); },
         [](Config& c, const Value& v) { c.logit_bias = logit_bias_of(v); }},
        {"bad_token_ids", T::ids, "list[int] | None", "token ids", "Tokens that are never produced.", false,
         [](const Config& c) -> Value { return c.bad_token_ids.empty() ? Value() : Value(c.bad_token_ids); },
         [](Config& c, const Value& v) { c.bad_token_ids = token_ids("bad_token_ids", v); }},
        {"stop_token_ids", T::ids, "list[int] | None", "token ids",
         "A row ends after one of these ids, with the reason stop.", false,
         [](const Config& c) -> Value { return c.stop_token_ids.empty() ? Value() : Value(c.stop_token_ids); },
         [](Config& c, const Value& v) { c.stop_token_ids = token_ids("stop_token_ids", v); }},
        {"seed", T::seed, "int | list[int] | None", "integers from 0 to 2**64 - 1",
         "An int: row i draws with derive(seed, i). A list of one a prompt: copy j draws with derive(seed[b], j). "
         "A list of one a row: as they are. None: one is drawn from torch's CPU generator.",
         false, [](const Config& c) -> Value { return c.seed ? Value(*c.seed) : Value(); },
         [](Config& c, const Value& v) {
             c.seed.reset();
             if (!std::holds_alternative<std::monostate>(v)) c.seed = std::get<Seed>(v);
         }},
        {"use_cache", T::boolean, "bool", "True or False",
         "False computes the whole prefix again at every token: the same result, slowly.", false, BOOLEAN(use_cache)},
        {"speculate", T::text, "str | None", kSpeculate,
         "'ngram': what followed the last tokens where they stood before, in the prompt or in what was generated, is "
         "computed together with the next token, as drafts; those that come are taken at once. The result is the same, "
         "sooner where text repeats itself.",
         false, [](const Config& c) -> Value { return c.speculate.empty() ? Value() : Value(c.speculate); },
         [](Config& c, const Value& v) { c.speculate = speculate_of(v); }},
        {"max_draft_tokens", T::integer, "int", kDraftTokens,
         "Most drafts of a row in one step, with speculate or a draft_model. How many there are is chosen by how many "
         "come and what they cost.",
         false, [](const Config& c) -> Value { return c.max_draft_tokens; },
         [](Config& c, const Value& v) { c.max_draft_tokens = max_draft_tokens_of(v); }},
        {"stop", T::texts, "str | list[str] | None", kStops,
         "A row ends, with the reason stop, where its generated text has one of these strings: the one that begins "
         "first counts. Text and tokens end before it. Needs the tokenizer.",
         false, [](const Config& c) -> Value { return c.stop.empty() ? Value() : Value(c.stop); },
         [](Config& c, const Value& v) { c.stop = stops_of(v); }},
        {"include_stop", T::boolean, "bool", "True or False", "True: text and tokens end with the stop string.", false,
         BOOLEAN(include_stop)},
        {"stop_at", T::text, "str | None", kStopAt,
         "'function': a row ends after the first top-level definition of Python (def, async def, class), by dedent. "
         "'code_block': after the first fenced block. One that the prompt has begun counts. Needs the tokenizer.",
         false, [](const Config& c) -> Value { return c.stop_at.empty() ? Value() : Value(c.stop_at); },
         [](Config& c, const Value& v) { c.stop_at = stop_at_of(v); }},
        {"stop_on_repetition", T::integer, "int | None", kCopies,
         "A row ends, with the reason repetition, where its last generated tokens are one run of at most 1024 tokens "
         "so many times or more. None: off.",
         false, OPTIONAL_INTEGER(stop_on_repetition, 2, kCopies)},
        {"repetition_min_tokens", T::integer, "int", kPositive,
         "stop_on_repetition looks at repetitions of so many tokens or more, all copies together.", false,
         INTEGER(repetition_min_tokens, 1, std::nullopt, kPositive)},
        {"trim_repetition", T::boolean, "bool", "True or False",
         "True: what stop_on_repetition has ended is cut after the first copy.", false, BOOLEAN(trim_repetition)},
        {"top_logprobs", T::integer, "int | None", kTopLogprobs,
         "The result tells so many of the most likely tokens at each position, with their log-probabilities: the most "
         "likely first, the lowest id on ties. 0 or None: off.",
         false, [](const Config& c) -> Value { return c.top_logprobs; },
         [](Config& c, const Value& v) { c.top_logprobs = top_logprobs_of(v); }},
        {"top_logprobs_mode", T::text, "str", kReported,
         "The distribution of top_logprobs and entropy: 'raw' is the model's, 'processed' what the options left of it, "
         "'both' gives each.",
         false, [](const Config& c) -> Value { return c.top_logprobs_mode; },
         [](Config& c, const Value& v) { c.top_logprobs_mode = top_logprobs_mode_of(v); }},
        {"prompt_logprobs", T::boolean, "bool", "True or False",
         "The result tells the log-probability of every token of the prompt but the first, as score does, without "
         "computing the prompt again.",
         false, BOOLEAN(prompt_logprobs)},
        {"entropy", T::boolean, "bool", "True or False",
         "The result tells the entropy, in nats, of the distribution at each position; top_logprobs_mode says of which.",
         false, BOOLEAN(entropy)},
    };
}

#undef NAME
#undef INTEGER
#undef OPTIONAL_INTEGER
#undef NUMBER
#undef BOOLEAN

Config preset(double temperature, int64_t top_k, double top_p, double repetition, double frequency, double presence,
              int64_t max_new_tokens) {
    Config config;
    config.temperature = temperature;
    config.top_k = top_k;
    config.top_p = top_p;
    config.repetition_penalty = repetition;
    config.frequency_penalty = frequency;
    config.presence_penalty = presence;
    config.max_new_tokens = max_new_tokens;
    return config;
}

std::vector<Preset> make_presets() {
    Config greedy;
    greedy.do_sample = false;
    return {
        {"greedy", "The most likely token at every step.", greedy},
        {"balanced_code", "Code, balanced between variety and care.", preset(.8, 50, .95, 1.1, .2, 0, 512)},
        {"precise_code", "Code, careful.", preset(.6, 40, .95, 1.05, .1, 0, 512)},
        {"creative_code", "Code, with more variety.", preset(1.0, 100, .9, 1.15, .3, .5, 512)},
        {"natural_text", "Prose.", preset(.9, 50, .92, 1.2, 0, .6, 256)},
        {"completion_fim", "Filling in the middle of code.", preset(.7, 40, .95, 1.1, .15, 0, 256)},
    };
}

int64_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<int64_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int64_t>(j);
    for (size_t i = 1; i <= a.size(); ++i) {
        int64_t diagonal = row[0];
        row[0] = static_cast<int64_t>(i);
        for (size_t j = 1; j <= b.size(); ++j) {
            const int64_t substituted = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
        }
    }
    return row[b.size()];
}

}  // namespace

void GenerationConfig::validate() const {
    if (!max_new_tokens && !max_length) {
        throw std::invalid_argument("max_new_tokens and max_length are both None; give at least one of them.");
    }
    if (max_length && min_length > *max_length) {
        refuse("min_length", text_of(min_length), "at most max_length, which is " + text_of(*max_length));
    }
    if (!max_length && min_new_tokens > *max_new_tokens) {
        refuse("min_new_tokens", text_of(min_new_tokens),
               "at most max_new_tokens, which is " + text_of(*max_new_tokens));
    }
}

int64_t GenerationConfig::tokens_before_end(int64_t prompt_length) const {
    return std::max(min_new_tokens, min_length - prompt_length);
}

const std::vector<Option>& options() {
    static const std::vector<Option> table = make_options();
    return table;
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& names) {
    std::string best;
    int64_t best_distance = std::max<int64_t>(2, static_cast<int64_t>(name.size()) / 2);
    for (const std::string& known : names) {
        const int64_t distance = edit_distance(name, known);
        if (distance < best_distance || (distance == best_distance && best.empty())) {
            best_distance = distance;
            best = known;
        }
    }
    return best;
}

const Option& find_option(std::string_view name) {
    std::vector<std::string> names;
    for (const Option& option : options()) {
        if (name == option.name) return option;
        names.emplace_back(option.name);
    }
    const std::string nearest = nearest_name(name, names);
    throw UnknownOption("There is no generation option '" + std::string(name) + "'" +
                        (nearest.empty() ? "." : "; did you mean '" + nearest + "'?"));
}

const std::vector<Preset>& presets() {
    static const std::vector<Preset> table = make_presets();
    return table;
}

}  // namespace demiurgic
