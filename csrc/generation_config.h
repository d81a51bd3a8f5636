#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace demiurgic {

using Ids = std::vector<int64_t>;
using LogitBias = std::map<int64_t, double>;
using Strings = std::vector<std::string>;
using Seed = std::variant<uint64_t, std::vector<uint64_t>>;

// Every option of a generation, with its default. What each means, its range and its place in the order of sampling is
// said once, in the table of generation_config.cpp.
struct GenerationConfig {
    std::optional<int64_t> max_new_tokens = 100;
    std::optional<int64_t> max_length;
    int64_t min_length = 0;
    int64_t min_new_tokens = 0;
    double temperature = 0.8;
    int64_t top_k = 50;
    double top_p = 0.95;
    double typical_p = 1.0;
    double min_p = 0.0;
    bool do_sample = true;
    double repetition_penalty = 1.0;
    double frequency_penalty = 0.0;
    double presence_penalty = 0.0;
    std::optional<int64_t> repetition_context_size;
    bool penalize_prompt = true;
    int64_t no_repeat_ngram_size = 0;
    LogitBias logit_bias;
    Ids bad_token_ids;
    std::optional<Seed> seed;
    int64_t num_return_sequences = 1;
    std::optional<int64_t> pad_token_id;
    std::optional<Ids> eos_token_id;
    Ids stop_token_ids;
    bool use_cache = true;
    std::string speculate;  // "" is None
    int64_t max_draft_tokens = 16;
    Strings stop;
    bool include_stop = false;
    std::string stop_at;  // "" is None
    std::optional<int64_t> stop_on_repetition;
    int64_t repetition_min_tokens = 64;
    bool trim_repetition = false;
    int64_t top_logprobs = 0;
    std::string top_logprobs_mode = "raw";  // raw | processed | both
    bool prompt_logprobs = false;
    bool entropy = false;

    bool operator==(const GenerationConfig&) const = default;

    // Throws std::invalid_argument where two options contradict each other. Single ranges are checked by Option::set.
    void validate() const;

    // How many new tokens a row must have before it may end but by its length: min_length and min_new_tokens.
    int64_t tokens_before_end(int64_t prompt_length) const;

    bool greedy() const { return !do_sample || temperature == 0.0; }
    // Which distributions top_logprobs and entropy are about.
    bool reports_raw() const { return top_logprobs_mode != "processed"; }
    bool reports_processed() const { return top_logprobs_mode != "raw"; }
};

// What an option may hold; monostate is None.
using Value = std::variant<std::monostate, bool, int64_t, double, Ids, LogitBias, Seed, std::string, Strings>;

enum class OptionType { boolean, integer, number, ids, logit_bias, seed, text, texts };

struct Option {
    const char* name;
    OptionType type;
    const char* type_name;  // as Python spells it
    const char* range;      // what is allowed, in words
    const char* doc;
    bool in_dict;  // one of the fourteen keys that to_dict always gives
    Value (*get)(const GenerationConfig&);
    // Takes the alternative of `type` or None; throws std::invalid_argument where the value is out of range, WrongType
    // where None is not allowed.
    void (*set)(GenerationConfig&, const Value&);
};

// The one table of options: bindings, stub check, command line and documentation are made from it.
const std::vector<Option>& options();

struct UnknownOption : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// None for an option that cannot be switched off.
struct WrongType : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Throws UnknownOption, which names the nearest known option.
const Option& find_option(std::string_view name);

// The nearest of `names` by edit distance, or "" if none is near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& names);

struct Preset {
    const char* name;
    const char* doc;
    GenerationConfig config;
};

const std::vector<Preset>& presets();

}  // namespace demiurgic
