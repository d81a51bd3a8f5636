#include "row_text.h"

#include <algorithm>
#include <type_traits>

namespace demiurgic {

namespace {

int64_t size_of(const std::string& text) { return static_cast<int64_t>(text.size()); }

}  // namespace

TextRules::TextRules(std::shared_ptr<const TokenBytes> bytes, std::shared_ptr<const GenerationConfig> options)
    : token_bytes(std::move(bytes)), config(std::move(options)), stops(config->stop) {}

RowText::RowText(std::shared_ptr<const TextRules> rules, const std::vector<int64_t>& prompt)
    : rules_(std::move(rules)), num_held_(rules_->config->tokens_before_end(static_cast<int64_t>(prompt.size()))) {
    const TokenBytes& bytes = *rules_->token_bytes;
    is_first_ = std::all_of(prompt.begin(), prompt.end(), [&](int64_t token) { return bytes.of(token).empty(); });
    if (rules_->config->stop_at == "function") stop_at_ = FunctionEnd();
    if (rules_->config->stop_at == "code_block") stop_at_ = CodeBlockEnd();
    if (std::holds_alternative<std::monostate>(stop_at_)) return;
    for (const int64_t token : prompt) {
        for (const char byte : bytes.of(token)) {
            read_stop_at(byte);
            ++prompt_bytes_;
        }
    }
    match_.reset();  // what ends in the prompt is over
}

void RowText::append(int64_t token) {
    const std::string_view bytes = is_first_ ? rules_->token_bytes->of_first(token) : rules_->token_bytes->of(token);
    if (!rules_->token_bytes->of(token).empty()) is_first_ = false;
    const int64_t begin = size_of(text_);
    text_ += bytes;
    ends_.push_back(size_of(text_));
    const bool held = static_cast<int64_t>(ends_.size()) <= num_held_;
    if (held) held_bytes_ = size_of(text_);
    for (int64_t i = begin; i < size_of(text_) && !ended_; ++i) {
        read_stop_at(text_[i]);
        if (held) {
            match_.reset();
            continue;
        }
        state_ = rules_->stops.next(state_, static_cast<unsigned char>(text_[i]));
        const int64_t end = i + 1, stop = rules_->stops.match(state_);
        if (stop >= 0) propose({end - size_of(rules_->config->stop[stop]), end, stop});
        ended_ = match_ && end - rules_->stops.open(state_) >= match_->begin;
    }
}

void RowText::read_stop_at(char byte) {
    std::visit(
        [&](auto& scanner) {
            if constexpr (!std::is_same_v<std::decay_t<decltype(scanner)>, std::monostate>) {
                if (!scanner.read(byte)) return;
                // A fence at the very end of the prompt has ended a block there; of a definition that is not known.
                constexpr bool is_block = std::is_same_v<std::decay_t<decltype(scanner)>, CodeBlockEnd>;
                if (is_block && scanner.end() <= prompt_bytes_) return;
                const int64_t end = std::max<int64_t>(scanner.end() - prompt_bytes_, 0);
                if (end >= held_bytes_) propose({end, end, -1});
            }
        },
        stop_at_);
}

void RowText::propose(Match match) {
    if (!match_ || match.begin < match_->begin) match_ = match;
}

int64_t RowText::cut() {
    const bool include = rules_->config->include_stop && match_->stop >= 0;
    const int64_t end = include ? match_->end : match_->begin;
    // The first token that reaches the end of the match has a part of it.
    const auto last = include ? std::lower_bound(ends_.begin(), ends_.end(), end) + 1
                              : std::upper_bound(ends_.begin(), ends_.end(), end);
    const int64_t num_kept = last - ends_.begin();
    end_after(num_kept, end);
    return num_kept;
}

void RowText::end_after(int64_t num_tokens, int64_t num_bytes) {
    ends_.resize(num_tokens);
    text_.resize(num_bytes);
    ended_ = is_cut_ = true;
}

int64_t RowText::settled_bytes() const {
    if (is_cut_) return size_of(text_);
    int64_t settled = size_of(text_) - rules_->stops.open(state_);
    if (match_) settled = std::min(settled, match_->begin);
    std::visit(
        [&](const auto& scanner) {
            if constexpr (!std::is_same_v<std::decay_t<decltype(scanner)>, std::monostate>) {
                settled = std::min(settled, std::max<int64_t>(scanner.settled() - prompt_bytes_, 0));
            }
        },
        stop_at_);
    return std::max(settled, held_bytes_);
}

int64_t RowText::settled_tokens() const {
    const auto last = std::upper_bound(ends_.begin(), ends_.end(), settled_bytes());
    return last - ends_.begin();
}

}  // namespace demiurgic
