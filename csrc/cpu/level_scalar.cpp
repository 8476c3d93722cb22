#include "cpu/vec_scalar.h"
//
#include "cpu/level_inl.h"

namespace rwkv::cpu {

const KernelTable* scalar_table() {
    static constexpr KernelTable table = make_table("scalar");
    return &table;
}

} // namespace rwkv::cpu
