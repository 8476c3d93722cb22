#define RWKV_VEC_DOTPROD 1
#include "cpu/vec_neon.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* dotprod_table() {
    static constexpr KernelTable table = make_table("dotprod");
    return &table;
}

} // namespace rwkv::cpu
