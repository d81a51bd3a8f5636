// Generates tokens from a checkpoint with Demiurgic's core: C++ and libtorch, no Python. README.md says how to run it.

#include <c10/util/Exception.h>

#include <charconv>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checkpoint.h"
#include "engine.h"
#include "philox.h"

namespace {

using demiurgic::GenerationConfig;

constexpr const char* kUsage =
    "usage: generate MODEL PRESET [OPTION=VALUE ...] TOKEN...\n"
    "  MODEL   the file that the Python lines of README.md write\n"
    "  PRESET  greedy, balanced_code, ...: a wrong name lists them\n"
    "  OPTION  a number of GenerationConfig, such as max_new_tokens=32 or seed=7; 0 and 1 switch\n"
    "  TOKEN   the ids of the prompt\n";

// ---- the command line -----------------------------------------------------------------------------------------------

GenerationConfig preset(const std::string& name) {
    std::string names;
    for (const demiurgic::Preset& known : demiurgic::presets()) {
        if (name == known.name) return known.config;
        names += (names.empty() ? "" : ", ") + std::string(known.name);
    }
    throw std::invalid_argument("There is no preset '" + name + "'; there are " + names + ".");
}

template <class Number>
Number parsed(const std::string& name, const std::string& text) {
    Number number{};
    const char* last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, number);
    if (error != std::errc() || end != last) {
        throw std::invalid_argument(name + " is '" + text + "', which is not a number that fits.");
    }
    return number;
}

bool parsed_flag(const std::string& name, const std::string& text) {
    if (text == "0" || text == "1") return text == "1";
    throw std::invalid_argument(name + " is '" + text + "', but must be 0 or 1.");
}

// The text of an option as its type says; its range is checked by the core.
demiurgic::Value parsed_value(const demiurgic::Option& option, const std::string& text) {
    switch (option.type) {
        case demiurgic::OptionType::boolean:
            return parsed_flag(option.name, text);
        case demiurgic::OptionType::integer:
            return parsed<int64_t>(option.name, text);
        case demiurgic::OptionType::number:
            return parsed<double>(option.name, text);
        case demiurgic::OptionType::seed:
            return demiurgic::Seed(parsed<uint64_t>(option.name, text));
        default:
            throw std::invalid_argument(std::string("This example takes no lists, so it cannot set ") + option.name +
                                        ".");
    }
}

demiurgic::Request read_arguments(const std::vector<std::string>& arguments) {
    demiurgic::Request request;
    request.config = preset(arguments.at(1));
    request.config.seed = demiurgic::Seed(uint64_t{0});
    request.prompts.emplace_back();
    for (size_t i = 2; i < arguments.size(); ++i) {
        const size_t equals = arguments[i].find('=');
        if (equals == std::string::npos) {
            request.prompts[0].push_back(parsed<int64_t>("A token id", arguments[i]));
        } else {
            const demiurgic::Option& option = demiurgic::find_option(arguments[i].substr(0, equals));
            option.set(request.config, parsed_value(option, arguments[i].substr(equals + 1)));
        }
    }
    request.config.validate();
    const uint64_t seed = std::get<uint64_t>(*request.config.seed);
    for (int64_t row = 0; row < request.config.num_return_sequences; ++row) {
        request.seeds.push_back(demiurgic::derive_seed(seed, row));
    }
    return request;
}

// ---- generation -----------------------------------------------------------------------------------------------------

// Prints the generated ids of each row on a line. False where a row ended in an error.
bool generate(const std::vector<std::string>& arguments) {
    demiurgic::Request request = read_arguments(arguments);
    const Checkpoint checkpoint = read_checkpoint(arguments[0]);
    request.config.eos_token_id = checkpoint.eos_token_ids;

    demiurgic::Engine engine(checkpoint.weights, std::nullopt, 512);  // a cache of what fits, prompts in chunks of 512
    const demiurgic::Poll poll = [] {};  // what it throws ends the generation: the place for a Cancel button
    const std::shared_ptr<demiurgic::Call> call = engine.add(request, poll);
    while (engine.advance(*call, poll)) {
    }

    bool good = true;
    for (const auto& row : call->sequences) {
        for (int64_t i = row->prompt_length; i < row->size(); ++i) {
            std::cout << (i > row->prompt_length ? " " : "") << row->tokens[i];
        }
        std::cout << '\n';
        if (row->finish_reason == demiurgic::FinishReason::error) {
            std::cerr << "generate: " << row->error << '\n';
            good = false;
        }
    }
    return good;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() < 3) {
        std::cerr << kUsage;
        return 1;
    }
    try {
        return generate(arguments) ? 0 : 1;
    } catch (const c10::Error& error) {
        std::cerr << "generate: " << error.what_without_backtrace() << '\n';
    } catch (const std::exception& error) {
        std::cerr << "generate: " << error.what() << '\n';
    }
    return 1;
}
