#define RWKV_VEC_DOTPROD 1
#define RWKV_VEC_I8MM 1
#include "cpu/vec_neon.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* i8mm_table() {
    static constexpr KernelTable table = make_table("i8mm");
    return &table;
}

} // namespace rwkv::cpu
