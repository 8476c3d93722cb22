#include "cpu/vec_avx512.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* avx512_table() {
    static constexpr KernelTable table = make_table("avx512");
    return &table;
}

} // namespace rwkv::cpu
