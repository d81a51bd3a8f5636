#include "kernels/cpu/cpu_kernels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "host_memory.h"
#include "kernels/cpu/checksum.h"
#include "kernels/cpu/float_mode.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/last_level_cache.h"
#include "kernels/cpu/sample.h"

#ifdef _OPENMP
#include <omp.h>
#else
#include <thread>
#endif

// The entries of the table over tensors: they take pointers and shapes, and call the instruction set's own.
namespace demiurgic::cpu {

namespace {

Matrix matrix_of(const Linear& linear) {
    if (!linear.weight.defined()) return {};
    return {linear.weight.const_data_ptr(), linear.weight.stride(0),
            linear.bias.defined() ? linear.bias.const_data_ptr() : nullptr, linear.weight.size(0),
            linear.weight.size(1)};
}

Norm norm_of(const at::Tensor& weight, double eps) {
    return {weight.const_data_ptr(), weight.scalar_type() == at::kFloat, static_cast<float>(eps)};
}

float* floats(const at::Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

const int64_t* integers(const at::Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); }

void embed(Context& context, const EmbedArgs& args) {
    const Matrix table = {args.table.const_data_ptr(), args.table.stride(0), nullptr, args.table.size(0),
                          args.table.size(1)};
    context.entries->embed(*context.member, {integers(args.tokens), args.tokens.size(0), table, floats(args.out)});
}

void attention_in(Context& context, const AttentionInArgs& args) {
    const int64_t d = args.k_cache.size(3);
    context.entries->attention_in(
        *context.member,
        {floats(args.x), args.x.size(0), norm_of(args.norm, args.norm_eps), matrix_of(args.q), matrix_of(args.k),
         matrix_of(args.v), floats(args.cos), floats(args.sin), integers(args.slots), args.q_out.size(1),
         args.k_cache.size(1), d, args.k_cache.data_ptr(), args.v_cache.data_ptr(), floats(args.q_out)});
}

void attend(Context& context, const AttendArgs& args) {
    context.entries->attend(
        *context.member,
        {floats(args.q), args.k_cache.const_data_ptr(), args.v_cache.const_data_ptr(), args.rows.data(),
         static_cast<int64_t>(args.rows.size()), integers(args.block_table), args.block_table.size(1), args.q.size(1),
         args.k_cache.size(1), args.q.size(2), static_cast<float>(args.scale), floats(args.out)});
}

void attention_out(Context& context, const AttentionOutArgs& args) {
    context.entries->attention_out(*context.member,
                                   {floats(args.attended), args.x.size(0), matrix_of(args.out), floats(args.x)});
}

void mlp(Context& context, const MlpArgs& args) {
    context.entries->mlp(*context.member, {args.x.size(0), norm_of(args.norm, args.norm_eps), matrix_of(args.gate),
                                           matrix_of(args.up), matrix_of(args.down), args.activation, floats(args.x)});
}

void select_rows(Context& context, const SelectRowsArgs& args) {
    const int64_t width = args.from.size(1), num_rows = args.rows.size(0);
    Team& team = *context.member->team;
    const int member = context.member->index;
    for (int64_t row = team.take(member, num_rows); row < num_rows; row = team.take(member, num_rows)) {
        std::copy_n(floats(args.from) + integers(args.rows)[row] * width, width, floats(args.out) + row * width);
    }
    team.barrier(member);
}

void head(Context& context, const HeadArgs& args) {
    context.entries->head(*context.member, {floats(args.x), args.x.size(0), norm_of(args.norm, args.norm_eps),
                                            matrix_of(args.head), floats(args.logits)});
}

// torch's own number; inside a parallel region of the caller there is no second team to be had.
int num_threads() {
#ifdef _OPENMP
    if (omp_in_parallel()) return 1;
#endif
    return std::max(1, at::get_num_threads());
}

void prepare(Context& context, const StepShape& shape) {
    context.num_threads = num_threads();
    const Scratch scratch = context.entries->scratch(shape, context.num_threads);
    context.own_scratch = scratch.own;
    context.weights_in_cache = shape.weight_bytes > 0 && shape.weight_bytes <= last_level_cache_bytes();
    const int64_t bytes = scratch.shared + context.num_threads * scratch.own;
    if (context.scratch.defined() && context.scratch.size(0) >= bytes) return;
    context.scratch = at::Tensor();  // first: both at once might not fit
    context.scratch = empty_of_kept_memory({bytes}, at::TensorOptions().dtype(at::kByte));
}

// The part of one member of the team.
void walk(const Context& context, Team& team, int index, const std::function<void(Context&)>& loop) {
    const DefaultFloatMode float_mode;
    char* end = static_cast<char*>(context.scratch.data_ptr()) + context.scratch.size(0);
    char* shared = static_cast<char*>(context.scratch.data_ptr());
    const Member member{&team, index, shared, end - (index + 1) * context.own_scratch, context.weights_in_cache};
    Context mine = context;
    mine.member = &member;
    mine.is_first = index == 0;
    team.run_member([&] { loop(mine); });
}

void run(Context& context, const std::function<void(Context&)>& loop) {
    Team team(context.num_threads);
#ifdef _OPENMP
#pragma omp parallel num_threads(context.num_threads)
    {
        team.resize(omp_get_num_threads());
        walk(context, team, omp_get_thread_num(), loop);
    }
#else
    std::vector<std::thread> others;
    for (int i = 1; i < context.num_threads; ++i) others.emplace_back([&, i] { walk(context, team, i, loop); });
    walk(context, team, 0, loop);
    for (std::thread& other : others) other.join();
#endif
    team.rethrow();
}

Kernels make_kernels(const Isa& isa, const Entries& entries, const Kernels& reference) {
    Kernels kernels = reference;
    kernels.prepare = prepare;
    kernels.run = run;
    kernels.embed = {embed, isa.name};
    kernels.attention_in = {attention_in, isa.name};
    kernels.attend = {attend, isa.name};
    kernels.attention_out = {attention_out, isa.name};
    kernels.mlp = {mlp, isa.name};
    kernels.select_rows = {select_rows, isa.name};
    kernels.head = {head, isa.name};
    kernels.sample = {sample, isa.name};
    kernels.log_probability = {log_probability, isa.name};
    kernels.checksum = {checksum, isa.name};
    kernels.exact_rows = true;
    kernels.float_activations = true;
    kernels.cache_layout = CacheLayout::keys_by_coordinate;
    kernels.entries = &entries;
    return kernels;
}

const std::vector<const Isa*>& runnable() {
    static const std::vector<const Isa*> isas = [] {
        std::vector<const Isa*> found;
        for (const Isa* isa : built_isas()) {
            if (isa->runs_here()) found.push_back(isa);
        }
        return found;
    }();
    return isas;
}

}  // namespace

const Isa* choose_isa(const std::optional<std::string>& name) {
    for (const Isa* isa : runnable()) {
        if (!name || *name == isa->name) return isa;
    }
    return nullptr;
}

std::vector<std::string> running_isas() {
    std::vector<std::string> names;
    for (const Isa* isa : runnable()) names.emplace_back(isa->name);
    return names;
}

const Kernels* cpu_kernels(const Isa& isa, at::ScalarType dtype, const Kernels& reference) {
    const Entries* entries = dtype == at::kFloat      ? &isa.float32
                             : dtype == at::kBFloat16 ? &isa.bfloat16
                             : dtype == at::kHalf     ? &isa.float16
                                                      : nullptr;
    if (!entries) return nullptr;
    static std::mutex mutex;
    static std::map<const Entries*, Kernels> tables;  // stay where they are as others are added
    const std::lock_guard lock(mutex);
    const auto found = tables.find(entries);
    if (found != tables.end()) return &found->second;
    return &tables.emplace(entries, make_kernels(isa, *entries, reference)).first->second;
}

}  // namespace demiurgic::cpu
