#include "kernels/cuda/layer_kernels.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/layers.h"

// The entries of the table over tensors: they take pointers and shapes, and call the launchers of the weights' type.
namespace demiurgic::cuda {

namespace {

const Layers& layers_for(at::ScalarType dtype) {
    return dtype == at::kFloat ? kFloat32Layers : dtype == at::kBFloat16 ? kBFloat16Layers : kFloat16Layers;
}

template <class T>
T* data_of(const at::Tensor& tensor) {
    TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
    return tensor.mutable_data_ptr<T>();
}

template <class T>
const T* const_data_of(const at::Tensor& tensor) {
    TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
    return tensor.const_data_ptr<T>();
}

Matrix matrix_of(const Linear& linear) {
    if (!linear.weight.defined()) return {};
    TORCH_INTERNAL_ASSERT(linear.weight.stride(1) == 1);
    return {linear.weight.const_data_ptr(), linear.weight.stride(0),
            linear.bias.defined() ? linear.bias.const_data_ptr() : nullptr};
}

Norm norm_of(const at::Tensor& weight, double eps) {
    return {weight.scalar_type() == at::kFloat, static_cast<float>(eps)};
}

// Calls the launcher of an entry on the current stream.
template <class Args>
void run(Context& context, at::ScalarType dtype, cudaError_t (*Layers::*entry)(const Args&, const Launch&),
         const Args& args) {
    const c10::cuda::CUDAGuard guard(context.device);
    const auto memory = [](const at::Tensor& bytes) { return bytes.defined() ? bytes.data_ptr() : nullptr; };
    const Launch launch{c10::cuda::getCurrentCUDAStream(context.device.index()), memory(context.scratch), false,
                        context.library.get(), memory(context.library_scratch)};
    C10_CUDA_CHECK((layers_for(dtype).*entry)(args, launch));
}

void embed(Context& context, const EmbedArgs& args) {
    TORCH_INTERNAL_ASSERT(args.table.stride(1) == 1);
    run(context, args.table.scalar_type(), &Layers::embed,
        Embed{args.tokens.numel(),
              const_data_of<int64_t>(args.tokens),
              {{args.table.const_data_ptr(), args.table.stride(0)}},
              args.table.size(1),
              data_of<float>(args.out)});
}

void attention_in(Context& context, const AttentionInArgs& args) {
    TORCH_INTERNAL_ASSERT(args.k_cache.is_contiguous() && args.v_cache.is_contiguous());
    run(context, args.q.weight.scalar_type(), &Layers::attention_in,
        AttentionIn{args.x.size(0),
                    const_data_of<float>(args.x),
                    args.x.size(1),
                    {{args.norm.const_data_ptr(), matrix_of(args.q), matrix_of(args.k), matrix_of(args.v)}},
                    norm_of(args.norm, args.norm_eps),
                    const_data_of<float>(args.cos),
                    const_data_of<float>(args.sin),
                    nullptr,
                    const_data_of<int64_t>(args.slots),
                    args.q_out.size(1),
                    args.k_cache.size(1),
                    args.k_cache.size(3),
                    args.k_cache.size(2),
                    args.k_cache.data_ptr(),
                    args.v_cache.data_ptr(),
                    data_of<float>(args.q_out)});
}

void attention_out(Context& context, const AttentionOutArgs& args) {
    run(context, args.out.weight.scalar_type(), &Layers::attention_out,
        AttentionOut{args.x.size(0),
                     const_data_of<float>(args.attended),
                     args.out.weight.size(1),
                     {{matrix_of(args.out)}},
                     args.x.size(1),
                     data_of<float>(args.x)});
}

void mlp(Context& context, const MlpArgs& args) {
    run(context, args.up.weight.scalar_type(), &Layers::mlp,
        Mlp{args.x.size(0),
            {{args.norm.const_data_ptr(), matrix_of(args.gate), matrix_of(args.up), matrix_of(args.down)}},
            norm_of(args.norm, args.norm_eps),
            args.gate.weight.defined(),
            args.activation,
            args.x.size(1),
            args.up.weight.size(0),
            data_of<float>(args.x)});
}

void head(Context& context, const HeadArgs& args) {
    run(context, args.head.weight.scalar_type(), &Layers::head,
        Head{args.x.size(0),
             const_data_of<float>(args.x),
             args.x.size(1),
             args.head.weight.size(0),
             {{args.norm.const_data_ptr(), matrix_of(args.head)}},
             norm_of(args.norm, args.norm_eps),
             data_of<float>(args.logits)});
}

void make_room(at::Tensor& memory, int64_t bytes, at::Device device) {
    if (memory.defined() && memory.size(0) >= bytes) return;
    memory = at::Tensor();  // first: both at once might not fit
    memory = at::empty({bytes}, at::TensorOptions().device(device).dtype(at::kByte));
}

template <int64_t ELEMENT_BYTES>
void prepare(Context& context, const StepShape& shape) {
    make_room(context.scratch, scratch_bytes(shape.num_tokens, shape.widest, ELEMENT_BYTES), context.device);
    if (!context.library) return;
    make_room(context.library_scratch, library_scratch_bytes(shape.num_tokens, shape.widest), context.device);
}

}  // namespace

void add_layer_kernels(Kernels& table, at::ScalarType dtype) {
    table.prepare = dtype == at::kFloat ? prepare<4> : prepare<2>;
    table.embed = {embed, "cuda"};
    table.attention_in = {attention_in, "cuda"};
    table.attention_out = {attention_out, "cuda"};
    table.mlp = {mlp, "cuda"};
    table.head = {head, "cuda"};
    table.float_activations = true;
}

}  // namespace demiurgic::cuda
