#include "cpu/vec_avx2.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* avx2_table() {
    static constexpr KernelTable table = make_table("avx2");
    return &table;
}

} // namespace rwkv::cpu
