#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "prompt_lookup.h"
#include "repetition_guard.h"
#include "reports.h"
#include "row_text.h"
#include "token_edits.h"

namespace demiurgic {

enum class FinishReason { none, eos, stop, length, error, cancelled, repetition };

const char* name_of(FinishReason reason);

class DraftModel;
struct Call;
struct Hooks;
struct SharedPrompt;

// Most tokens of a row, its prompt included; max_length, where given, wins over max_new_tokens.
int64_t max_tokens_of(int64_t prompt_length, const GenerationConfig& config);

// One row of a generation: its tokens, how many of them are in the cache, and why it stopped. Or a row that is scored: its
// tokens are given, nothing is generated, and only `prompt_logprobs` are wanted.
struct Sequence {
    Sequence(std::vector<int64_t> prompt, std::shared_ptr<const GenerationConfig> config, uint64_t seed);

    int64_t size() const { return static_cast<int64_t>(tokens.size()); }
    // Tokens that go through the decoder. Nothing is predicted from the last token of a scored row.
    int64_t num_inputs() const { return scored && !tokens.empty() ? size() - 1 : size(); }
    int64_t num_generated() const { return size() - prompt_length; }
    bool finished() const { return finish_reason != FinishReason::none; }

    // The first of the positions [start, end) from which the next token of the prompt is still to be scored, and how many
    // there are. Whoever computes the prompt scores it, once.
    struct Span {
        int64_t first, count;
    };
    Span unscored(int64_t start, int64_t end) const;
    // Of all the prompt's tokens but the first; none where they are not wanted or not all known.
    std::vector<float> all_prompt_logprobs() const;

    // Appends one generated token and keeps the edits, the text and the guard up to date.
    void append(int64_t token);

    // Takes back all generated tokens, and what is known of them, but the first so many.
    void keep(int64_t num_generated);

    // So many of the generated tokens, and bytes of their text, stay, whatever comes.
    int64_t settled_tokens() const;
    int64_t settled_bytes() const;

    std::vector<int64_t> tokens;  // the prompt, then what was generated
    const int64_t prompt_length;
    const std::shared_ptr<const GenerationConfig> config;  // eos_token_id is resolved: never nullopt
    const uint64_t seed;
    const int64_t max_tokens;  // prompt included
    bool scored = false;

    TokenEdits edits;                      // of the logits of the next token
    std::unique_ptr<PromptLookup> lookup;  // where drafts come from the sequence itself; made when it first wants some
    int64_t num_drafted = 0;               // drafts that went through the decoder
    int64_t num_accepted = 0;              // of them, those that came

    std::unique_ptr<RowText> text;                // null without a tokenizer
    std::unique_ptr<RepetitionGuard> repetition;  // null where stop_on_repetition is off

    int64_t num_cached = 0;       // the first so many tokens have their keys and values in `blocks`
    std::vector<int32_t> blocks;  // cache blocks, in order of position
    int64_t epoch = 0;            // of the kept prefixes that they may join (PrefixIndex::epoch)

    // Of the prompt's tokens but the first, by the model, as far as they are known; shared by the copies of a prompt. Null:
    // they are not wanted.
    std::shared_ptr<std::vector<float>> prompt_logprobs;
    std::vector<float> logprobs;            // of generated tokens, by the model
    std::vector<float> processed_logprobs;  // of generated tokens, by what the options left
    Reports raw_reports;                    // of the positions of generated tokens, where they are wanted
    Reports processed_reports;

    FinishReason finish_reason = FinishReason::none;
    std::string error;  // where finish_reason is error

    int64_t id = 0;                               // among the sequences of its engine
    Call* call = nullptr;                         // the call it belongs to, which owns it
    int64_t row = 0;                              // of the call's result
    std::shared_ptr<SharedPrompt> shared_prompt;  // among copies of one prompt; null for a single one
};

// The copies of one prompt that have not started yet. The first to run, the leader, computes the prompt; the others start
// from its blocks.
struct SharedPrompt {
    const Sequence* leader = nullptr;
    int64_t num_members = 0;      // sequences that point here
    std::vector<int32_t> blocks;  // the computed prompt, held for the members; empty until then
    int64_t epoch = 0;            // of `blocks`, as in Sequence
};

// The sequences of one call of generate or score.
struct Call {
    std::vector<std::unique_ptr<Sequence>> sequences;  // in the order of the rows of the result
    int64_t max_running = 256;
    bool want_logprobs = false;
    std::shared_ptr<DraftModel> draft_model;  // where drafts come from a model
    bool always_drafts = false;               // as many as there can be, whatever they cost
    std::shared_ptr<const Hooks> hooks;       // of the user's; null: none
    bool keeps_if_settled = false;            // what its rows leave to a session waits for Engine::settle
    bool settled = false;                     // that has been
    bool interruptible = true;                // between two steps by code of the user's, which may change the weights
    std::optional<std::chrono::steady_clock::time_point> deadline;  // what is unfinished then, ends

    int64_t num_running = 0;
    int64_t num_unfinished = 0;
    int64_t num_steps = 0;  // that computed something of this call
    bool cancelled = false;
    std::exception_ptr failure;  // what a hook threw, until it is rethrown to who advances the call
    double prefill_seconds = 0;  // in steps that computed prompt tokens of this call
    double decode_seconds = 0;   // in other steps of this call

    bool finished() const { return num_unfinished == 0; }
};

}  // namespace demiurgic
