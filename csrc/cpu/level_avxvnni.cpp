#define RWKV_VEC_VNNI 1
#include "cpu/vec_avx2.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* avxvnni_table() {
    static constexpr KernelTable table = make_table("avxvnni");
    return &table;
}

} // namespace rwkv::cpu
