#include "kernels/cpu/isa.h"

namespace demiurgic::cpu {

#if defined(__x86_64__)
namespace amx {
extern const Isa isa;
}
namespace avx512_bf16 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
namespace avx2 {
extern const Isa isa;
}
#elif defined(__aarch64__)
namespace neon {
extern const Isa isa;
}
#endif
namespace portable {
extern const Isa isa;
}

const std::vector<const Isa*>& built_isas() {
    static const std::vector<const Isa*> isas = {
#if defined(__x86_64__)
        &amx::isa,      &avx512_bf16::isa, &avx512::isa, &avx2::isa,
#elif defined(__aarch64__)
        &neon::isa,
#endif
        &portable::isa,
    };
    return isas;
}

}  // namespace demiurgic::cpu
