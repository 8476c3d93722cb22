#include "cpu/vec_neon.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* neon_table() {
    static constexpr KernelTable table = make_table("neon");
    return &table;
}

} // namespace rwkv::cpu
