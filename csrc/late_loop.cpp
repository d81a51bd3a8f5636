#include "late_loop.h"

#include <exception>
#include <limits>
#include <numeric>

#include "kernels/reference.h"
#include "kernels/transfer.h"
#include "philox.h"

namespace demiurgic {

void LateLoop::begin(const std::vector<LoopRow>& rows) {
    auto config = std::make_shared<GenerationConfig>();
    config->eos_token_id = Ids{};
    std::vector<int64_t> last;
    rows_.clear();
    for (const LoopRow& row : rows) {
        last.push_back(row.tokens[row.num_tokens - 1]);
        auto sequence = std::make_unique<Sequence>(std::vector<int64_t>(static_cast<size_t>(row.num_tokens)), config,
                                                   row.options.seed);
        sequence->blocks = row.blocks;
        rows_.push_back({row.options, row.edits, std::move(sequence), row.limit});
    }
    live_.resize(rows.size());
    std::iota(live_.begin(), live_.end(), size_t{0});
    tokens_ = tensor_of(last, at::kLong);
    kept_.push_back(move_together({&tokens_}, stream_.device(), /*non_blocking=*/true));
    counts_ = TokenCounts(rows, vocab_, stream_.device(), kept_);
}

void LateLoop::extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) {
    rows_[static_cast<size_t>(row)].sequence->blocks = blocks;
    rows_[static_cast<size_t>(row)].limit = limit;
}

// Lets go those of the live rows that have come to rest.
void LateLoop::choose_rows(Flight& flight) {
    std::vector<int64_t> places;
    for (size_t place = 0; place < live_.size(); ++place) {
        if (rows_[live_[place]].rests) continue;
        places.push_back(static_cast<int64_t>(place));
        flight.rows.push_back(live_[place]);
    }
    if (flight.rows.size() == live_.size()) return;
    live_ = flight.rows;
    at::Tensor index = tensor_of(places, at::kLong);
    flight.kept.push_back(move_together({&index}, stream_.device(), /*non_blocking=*/true));
    tokens_ = tokens_.index_select(0, index);
    counts_.keep(index);
}

// What does not depend on the tokens since begin: steps 1 and 5 of the order of sampling. A ban stays one, whatever
// penalties come after it.
std::vector<TokenEdit> LateLoop::edits_of(const Row& row) const {
    std::vector<TokenEdit> edits;
    for (const StepEdit& edit : row.edits) {
        TokenEdit& now = edits.emplace_back(TokenEdit{edit.token});
        now.bias = edit.bias;
        now.bans = row.sequence->size() < edit.banned_before;
    }
    return edits;
}

void LateLoop::step(Flight& flight) {
    std::vector<Work> work;
    std::vector<std::vector<TokenEdit>> edits;
    std::vector<SampleRow> options;
    bool want_logprobs = false;
    for (const size_t i : flight.rows) {
        const Row& row = rows_[i];
        const StepSampling& option = row.options;
        const int64_t position = row.sequence->size();
        edits.push_back(edits_of(row));
        options.push_back({edits.back().data(), static_cast<int64_t>(edits.back().size()), option.greedy,
                           option.temperature, option.top_k, option.nucleus, option.typical, option.min_p,
                           token_bits(option.seed, static_cast<uint64_t>(position))});
        want_logprobs |= option.want_logprobs;
        work.push_back({row.sequence.get(), position - 1, 1});
        flight.positions.push_back(position);
    }
    Batch batch(work, block_size_, stream_.device(), /*non_blocking=*/true);
    flight.kept.push_back(batch.on_host);
    batch.tokens = tokens_;
    const Drawn drawn = draw_on_device(decoder_.decode(batch, cache_, [] {}), options, want_logprobs, counts_);
    flight.kept.push_back(drawn.on_host);
    tokens_ = drawn.token.clamp_min(0);  // any one in place of none, for the surplus step of a row that has got none
    counts_.add(tokens_);
    std::tie(flight.token, flight.logprob, flight.processed_logprob) =
        std::tie(drawn.token, drawn.logprob, drawn.processed_logprob);
    flight.kept.push_back(move_together({&flight.token, &flight.logprob, &flight.processed_logprob}, at::kCPU,
                                        /*non_blocking=*/true));
    for (const size_t i : flight.rows) {
        Row& row = rows_[i];
        row.sequence->append(0);
        row.rests = row.sequence->size() >= row.limit;
    }
}

void LateLoop::launch() {
    Flight& flight = flights_.emplace_back();
    flight.kept.swap(kept_);
    choose_rows(flight);
    if (!flight.rows.empty()) step(flight);
    if (stream_.device().is_cpu()) return;
    flight.end.emplace(stream_.device_type());
    flight.end->record(stream_);
}

std::vector<StepResult> LateLoop::read() {
    const Flight flight = std::move(flights_.front());
    flights_.pop_front();
    std::vector<StepResult> results(rows_.size(), StepResult{-1, 0.0f, 0.0f, 1, 0, -1});
    for (size_t place = 0; place < flight.rows.size(); ++place) {
        const auto number = [place](const at::Tensor& numbers) {
            return numbers.defined() ? numbers.const_data_ptr<float>()[place] : std::numeric_limits<float>::quiet_NaN();
        };
        results[flight.rows[place]] = {flight.token.const_data_ptr<int64_t>()[place],
                                       number(flight.logprob),
                                       number(flight.processed_logprob),
                                       /*rests=*/0,
                                       0,
                                       flight.positions[place]};
    }
    return results;
}

// Called by destructors too: where waiting fails the device is lost, as whatever is done next will say.
void LateLoop::drop() {
    if (flights_.empty() && kept_.empty()) return;
    try {
        tokens_.to(at::kCPU);  // comes after all that was asked for
    } catch (const std::exception&) {
        tokens_ = at::Tensor();  // gone with the device
    }
    flights_.clear();
    kept_.clear();
}

void LateLoop::forget() {
    rows_.clear();
    tokens_ = at::Tensor();
    counts_ = TokenCounts();
}

}  // namespace demiurgic
